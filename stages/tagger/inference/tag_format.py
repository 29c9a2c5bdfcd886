"""How tags are written: for prompts, for captions, and in a given order."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tagger.core.vocabulary import normalize_name

_WEIGHT = re.compile(r"\((.+):\d+(?:\.\d+)?\)")  # (tag:0.98)
_SIDES = re.compile(r"[^_]+_[^_]+")


@dataclass(frozen=True)
class TagFormat:
    spaces: bool = False  # in place of underscores, but for kaomoji such as ^_^
    escape: bool = False  # parentheses, which prompts take for weights
    confidence: bool = False  # write (tag:0.98)
    first: Sequence[str] = ()  # goes before all others
    replacements: Mapping[str, str] = field(default_factory=dict)  # by name; "": the tag is dropped

    def rename(self, tag: str) -> str:
        return self.replacements.get(tag, tag)

    def format(self, tag: str) -> str:
        """Return a tag as it stands in a caption."""
        text = tag.replace("_", " ") if self.spaces and not is_kaomoji(tag) else tag
        return text.replace("(", r"\(").replace(")", r"\)") if self.escape else text

    def format_weighted(self, tag: str, confidence: float) -> str:
        text = self.format(tag)
        return f"({text}:{confidence:.2f})" if self.confidence else text


def is_kaomoji(tag: str) -> bool:
    """Return whether a tag is a face, `^_^` or `<o>_<o>`: a letter at most to either side."""
    return bool(_SIDES.fullmatch(tag)) and all(
        sum(map(str.isalnum, side)) <= 1 for side in tag.split("_")
    )


def parse_tag(text: str) -> str:
    """Return the tag of any written form, in lower_snake_case and without weight."""
    text = text.strip()
    weighted = _WEIGHT.fullmatch(text)
    return normalize_name(weighted[1] if weighted else text)


def merge_tags(present: Iterable[str], added: Iterable[str]) -> list[str]:
    """Return the written tags that are present, then those added that are not."""
    by_tag: dict[str, str] = {}
    for text in (*present, *added):
        if tag := parse_tag(text):
            by_tag.setdefault(tag, text.strip())
    return list(by_tag.values())


def reorder_tags(texts: Sequence[str], first: Sequence[str], names: frozenset[str]) -> list[str]:
    """Return written tags, those of `first` before the others.

    names: the tags of the model; a word in `first` that is none of them is put first even if it
        is not among the texts
    """
    by_tag = {parse_tag(text): text for text in texts}
    front = [
        by_tag.get(parse_tag(word), word)
        for word in first
        if parse_tag(word) in by_tag or parse_tag(word) not in names
    ]
    return merge_tags(front, texts)
