"""How tags are written: for prompts, for captions, and in an order of one's own."""

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
    replacements: Mapping[str, str] = field(default_factory=dict)  # by nothing: left out

    def rename(self, tag: str) -> str:
        return self.replacements.get(tag, tag)

    def format(self, tag: str) -> str:
        """Return a tag as it stands in a caption."""
        text = tag.replace("_", " ") if self.spaces and not is_kaomoji(tag) else tag
        return text.replace("(", r"\(").replace(")", r"\)") if self.escape else text

    def format_weighted(self, tag: str, confidence: float) -> str:
        written = self.format(tag)
        return f"({written}:{confidence:.2f})" if self.confidence else written


def is_kaomoji(tag: str) -> bool:
    """Return whether a tag is a face, `^_^` or `<o>_<o>`: a letter at most to either side."""
    return bool(_SIDES.fullmatch(tag)) and all(
        sum(map(str.isalnum, side)) <= 1 for side in tag.split("_")
    )


def parse_tag(written: str) -> str:
    """Return the tag that was written, however it was: in lower_snake_case, without weight."""
    text = written.strip()
    weighted = _WEIGHT.fullmatch(text)
    return normalize_name(weighted[1] if weighted else text)


def merge_tags(present: Iterable[str], added: Iterable[str]) -> list[str]:
    """Return the written tags that are present, then those of the others that are not."""
    by_tag: dict[str, str] = {}
    for written in (*present, *added):
        if tag := parse_tag(written):
            by_tag.setdefault(tag, written.strip())
    return list(by_tag.values())


def reorder_tags(written: Sequence[str], first: Sequence[str], known: frozenset[str]) -> list[str]:
    """Return written tags with some of them first, if they are given.

    known: what the model may give; another word in `first` is put first whether given or not
    """
    by_tag = {parse_tag(text): text for text in written}
    front = [
        by_tag.get(parse_tag(word), word)
        for word in first
        if parse_tag(word) in by_tag or parse_tag(word) not in known
    ]
    return merge_tags(front, written)
