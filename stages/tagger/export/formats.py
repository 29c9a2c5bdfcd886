"""Tag lists and thresholds in the format of each tool."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tagger.core import files
from tagger.core.arrays import Floats
from tagger.core.thresholds import Threshold
from tagger.core.vocabulary import CATEGORIES, RATING, RATINGS, Tag

WD14 = "wd14"  # folders of layouts
KOHYA = "kohya"
KOHYA_ONNX = "model_optimized.onnx"
TAG_MAPPING = "tag_mapping.json"

_FIRST_RATING = 9999999  # its id in the WD14 layout; the others count down
_WD14_CATEGORIES = (0, 4)  # general and character, after the ratings


class Wd14Row(NamedTuple):
    """A row of the WD14 layout."""

    tag: Tag
    column: int | None  # of the model's outputs; None: none, the tag is never given


def write_selected_tags(tags: Sequence[Tag], thresholds: Floats, path: Path) -> None:
    """Write all tags in the order of the outputs, with their thresholds, as imgutils reads them."""
    rows = [(*tag, threshold) for tag, threshold in zip(tags, thresholds, strict=True)]
    files.write_csv(path, (*Tag._fields, "best_threshold"), rows)


def write_categories(path: Path) -> None:
    """Write the names of all categories, as imgutils reads them."""
    files.write_json(path, [{"category": code, "name": name} for code, name in CATEGORIES.items()])


def write_thresholds(fitted: Iterable[Threshold], path: Path) -> None:
    """Write the threshold of each category, as imgutils reads them; alpha 1 stands for F1."""
    codes = {name: code for code, name in CATEGORIES.items()}
    rows = [
        (codes[row.category], row.category, 1.0, row.threshold, row.f1, row.precision, row.recall)
        for row in fitted
        if not row.name and row.category in codes
    ]
    header = ("category", "name", "alpha", "threshold", "f1", "precision", "recall")
    files.write_csv(path, header, rows)


def wd14_rows(tags: Sequence[Tag]) -> list[Wd14Row]:
    """Return the rows of the WD14 layout: four ratings, then general tags, then characters.

    Each group must have a row: without a character, one tool takes all tags for characters.
    """
    columns = {(tag.category, tag.name): column for column, tag in enumerate(tags)}
    rows = []
    for number, name in enumerate(RATINGS):
        column = columns.get((RATING, name))
        count = 0 if column is None else tags[column].count
        rows.append(Wd14Row(Tag(_FIRST_RATING - number, name, RATING, count), column))
    for code in _WD14_CATEGORIES:
        group = [Wd14Row(tag, column) for column, tag in enumerate(tags) if tag.category == code]
        rows += group or [Wd14Row(Tag(0, f"no_{CATEGORIES[code]}_tags", code, 0), None)]
    return rows


def write_wd14_tags(rows: Sequence[Wd14Row], path: Path) -> None:
    files.write_csv(path, Tag._fields, [row.tag for row in rows])


def write_tag_mapping(tags: Sequence[Tag], path: Path) -> None:
    """Write all tags by their output, as kohya's sd-scripts read them from tag_mapping.json."""
    entries = {
        str(column): {"tag": tag.name, "category": CATEGORIES[tag.category].capitalize()}
        for column, tag in enumerate(tags)
    }
    files.write_json(path, entries)
