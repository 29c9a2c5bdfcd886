"""What is said of a picture: on the terminal, in sidecars, as JSON and as CSV."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tagger import files
from tagger.metrics import Floats
from tagger.vocabulary import CATEGORIES


class Given(NamedTuple):
    """A tag given to a picture."""

    tag: str
    category: str
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Caption:
    file: Path
    sidecar: Path  # where its tags belong as a .txt
    rating: str | None  # the likeliest one, whatever the threshold; None without ratings
    tags: Sequence[Given]  # by falling confidence


class Words(NamedTuple):
    picture: str
    heading: str
    nothing: str
    own: str  # in place of a number, where thresholds differ


WORDS = {
    "en": Words(
        picture="Picture: {}",
        heading="Predicted tags (confidence > {}):",
        nothing="No tag has a confidence above the threshold {}",
        own="of each tag",
    ),
    "zh": Words(
        picture="图片: {}",
        heading="预测标签 (置信度 > {}):",
        nothing="没有标签的置信度高于阈值 {}",
        own="各标签自己的阈值",
    ),
}


def text(caption: Caption, limits: Floats, lang: str) -> str:
    """Return what the terminal shows of a picture; limits: (tags,), often all the same."""
    words = WORDS[lang]
    limit = f"{limits[0]:g}" if (limits == limits[0]).all() else words.own
    lines = [words.picture.format(caption.file)]
    lines.append((words.heading if caption.tags else words.nothing).format(limit))
    lines += [f"{given.tag}: {given.confidence:.4f}" for given in caption.tags]
    return "\n".join(lines) + "\n"


def write_sidecars(captions: Iterable[Caption]) -> None:
    for caption in captions:
        tags = ", ".join(given.tag for given in caption.tags)
        files.write_text(caption.sidecar, f"{tags}\n")


def write_json(captions: Iterable[Caption], path: Path) -> None:
    """Write one object per picture: its file, its rating, and its tags by category."""
    files.write_json(path, [_as_object(caption) for caption in captions])


def _as_object(caption: Caption) -> dict[str, Any]:
    tags: dict[str, dict[str, float]] = {name: {} for name in CATEGORIES.values()}
    for given in caption.tags:
        tags[given.category][given.tag] = round(given.confidence, 6)
    return {"file": str(caption.file), "rating": caption.rating, "tags": tags}


def write_csv(captions: Iterable[Caption], path: Path) -> None:
    """Write one row per picture and tag."""
    rows = (
        (caption.file, given.tag, given.category, f"{given.confidence:.6f}")
        for caption in captions
        for given in caption.tags
    )
    files.write_csv(path, ("file", "tag", "category", "confidence"), rows)
