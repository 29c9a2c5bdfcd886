"""HTML that Gradio has no component for: the tags of an image, and the files that failed."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from tagger.core.vocabulary import CATEGORIES
from tagger.inference.captions import Caption, PredictedTag
from tagger.inference.outputs import FailedImage
from tagger.web.messages import PageMessages

CSS_PATH = Path(__file__).with_name("page.css")
FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]

# Clicking a tag triggers `click` of the component, with the name of the tag.
CLICK_JS = """
element.addEventListener("click", event => {
    const button = event.target.closest("button[data-tag]");
    if (button) trigger("click", {tag: button.dataset.tag});
});
"""


def tag_list(
    caption: Caption,
    thresholds: Mapping[str, float],
    messages: PageMessages,
    selected_tag: str | None,
    *,
    selectable: bool,
) -> str:
    """Return the tags by category, each with its confidence and a mark at its threshold.

    selected_tag: the tag whose map is shown
    selectable: whether tags are buttons
    """
    tags, rating = list(caption.tags), caption.rating
    sections = []
    for category in CATEGORIES.values():
        notes = {tag: "" for tag in tags if tag.category == category}
        if category == "rating" and rating and not notes:
            notes[rating] = messages.below_threshold
        rows = [
            _row(tag, thresholds[tag.name], note, tag.name == selected_tag, selectable)
            for tag, note in notes.items()
        ]
        if rows:
            title = f"<h3>{escape(messages.categories[category])} <small>{len(rows)}</small></h3>"
            sections.append(f'<section data-category="{category}">{title}{"".join(rows)}</section>')
    empty = "" if tags else f"<p>{escape(messages.no_tags)}</p>"
    return f'<div class="tags">{empty}{"".join(sections)}</div>'


def _row(
    tag: PredictedTag, threshold: float, note: str, is_selected: bool, selectable: bool
) -> str:
    name = escape(tag.name)
    bar = (
        f'<span class="bar"><i style="width:{100 * tag.confidence:.1f}%"></i>'
        f'<b style="left:{100 * threshold:.1f}%"></b></span>'
    )
    content = f'<span class="name">{name}</span>{bar}<output>{tag.confidence:.3f}</output>'
    title = f' title="{escape(note)}" data-below' if note else ""
    if not selectable:
        return f'<div class="tag"{title}>{content}</div>'
    pressed = str(is_selected).lower()
    return (
        f'<button type="button" class="tag" data-tag="{name}" aria-pressed="{pressed}"{title}>'
        f"{content}</button>"
    )


def failure_list(failures: Sequence[FailedImage], total: int, messages: PageMessages) -> str:
    if not failures:
        return ""
    rows = "".join(
        f"<li><strong>{escape(failure.file)}</strong>: {escape(failure.detail)}</li>"
        for failure in failures
    )
    title = escape(messages.failures.format(len(failures), total))
    return f'<div class="failures" role="alert"><h3>{title}</h3><ul>{rows}</ul></div>'


def hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def heading(messages: PageMessages, model_summary: str) -> str:
    return f"<header><h1>{escape(messages.title)}</h1><p>{escape(model_summary)}</p></header>"


def drop_css(messages: PageMessages) -> str:
    """Return the style that puts our invitation to drop images in the place of Gradio's."""
    text = json.dumps(messages.drop, ensure_ascii=False)
    return f"#drop .wrap {{ font-size: 0 }} #drop .wrap::after {{ content: {text} }}"
