"""Pieces of the page that Gradio has no component for: HTML of tags and of what failed."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from tagger.core.vocabulary import CATEGORIES
from tagger.inference.given import Caption, PredictedTag
from tagger.inference.outputs import FailedImage
from tagger.web.messages import PageMessages

# A tag that is chosen is told to whoever listens to `click`.
CLICK_JS = """
element.addEventListener("click", event => {
    const chosen = event.target.closest("button[data-tag]");
    if (chosen) trigger("click", {tag: chosen.dataset.tag});
});
"""


def tag_list(
    caption: Caption,
    limits: Mapping[str, float],
    words: PageMessages,
    chosen: str | None,
    *,
    selectable: bool,
) -> str:
    """Return the tags by category, each with its confidence and a mark at its threshold.

    chosen: the tag whose map is shown
    look: whether a tag can be chosen
    """
    given = list(caption.tags)
    rating = caption.rating
    likeliest = [rating] if rating and not any(one.category == "rating" for one in given) else []
    parts = []
    for category in CATEGORIES.values():
        rows = [
            _row(one, limits, chosen, look=selectable) for one in given if one.category == category
        ]
        if category == "rating":
            rows += [
                _row(one, limits, chosen, look=selectable, note=words.below_threshold)
                for one in likeliest
            ]
        if rows:
            title = f"<h3>{escape(words.categories[category])} <small>{len(rows)}</small></h3>"
            parts.append(f'<section data-category="{category}">{title}{"".join(rows)}</section>')
    nothing = "" if given else f"<p>{escape(words.no_tags)}</p>"
    return f'<div class="tags">{nothing}{"".join(parts)}</div>'


def _row(
    one: PredictedTag,
    limits: Mapping[str, float],
    chosen: str | None,
    *,
    look: bool,
    note: str = "",
) -> str:
    name, limit = escape(one.name), 100 * limits[one.name]
    bar = (
        f'<span class="bar"><i style="width:{100 * one.confidence:.1f}%"></i>'
        f'<b style="left:{limit:.1f}%"></b></span>'
    )
    content = f'<span class="name">{name}</span>{bar}<output>{one.confidence:.3f}</output>'
    more = f' title="{escape(note)}" data-below' if note else ""
    if not look:
        return f'<div class="tag"{more}>{content}</div>'
    pressed = str(one.name == chosen).lower()
    return (
        f'<button type="button" class="tag" data-tag="{name}" aria-pressed="{pressed}"{more}>'
        f"{content}</button>"
    )


def failure_list(failed: Sequence[FailedImage], seen: int, words: PageMessages) -> str:
    if not failed:
        return ""
    rows = "".join(
        f"<li><strong>{escape(one.file)}</strong>: {escape(one.detail)}</li>" for one in failed
    )
    title = escape(words.failures.format(len(failed), seen))
    return f'<div class="failures" role="alert"><h3>{title}</h3><ul>{rows}</ul></div>'


def hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def heading(words: PageMessages, model: str) -> str:
    return f"<header><h1>{escape(words.title)}</h1><p>{escape(model)}</p></header>"


FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]

CSS_PATH = Path(__file__).with_name("page.css")


def drop_css(words: PageMessages) -> str:
    """Return the style that says how to drop pictures, in place of what Gradio says of files."""
    told = json.dumps(words.drop, ensure_ascii=False)
    return f"#drop .wrap {{ font-size: 0 }} #drop .wrap::after {{ content: {told} }}"
