"""The vocabulary: the tags that a model learns, in the order of its outputs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core import files, records
from tagger.core.errors import TaggerError

Category = Literal["rating", "general", "character", "copyright", "artist", "meta"]

# Danbooru's codes, in the order in which a vocabulary lists them.
CATEGORIES: dict[int, Category] = {
    9: "rating",
    0: "general",
    4: "character",
    3: "copyright",
    1: "artist",
    5: "meta",
}
RATING = 9
RATINGS = ("general", "sensitive", "questionable", "explicit")

UNKNOWN = -1  # an unknown id, category or count
_CODES = {text: code for code, name in CATEGORIES.items() for text in (name, str(code))}
_RANK = {category: rank for rank, category in enumerate(CATEGORIES)}


class Tag(NamedTuple):
    tag_id: int
    name: str
    category: int
    count: int  # type: ignore[assignment]  # posts; hides tuple.count


def normalize_name(name: str) -> str:
    r"""Return a tag in lower_snake_case, as on Danbooru; `\(` of prompts is a parenthesis."""
    return "_".join(name.replace("\\(", "(").replace("\\)", ")").split()).lower()


def matches_glob(name: str, glob: str) -> bool:
    return name == glob or fnmatchcase(name, glob)


def parse_category(value: object) -> int | None:
    """Return the code of a category, given as a name or a number, None if it is unknown."""
    code = _CODES.get(str(value).strip().lower(), parse_integer(value))
    return code if code in CATEGORIES else None


def parse_integer(value: object) -> int | None:
    """Return an integer, also from an integral float: columns with gaps become floats."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else None


def sort_tags(tags: Iterable[Tag]) -> list[Tag]:
    """Return tags in vocabulary order: by category, then by falling count, then by name."""
    return sorted(tags, key=lambda tag: (_RANK[tag.category], -tag.count, tag.name))


def count_categories(tags: Iterable[Tag]) -> dict[str, int]:
    """Return the number of tags by name of the category, without empty categories."""
    counts = Counter(tag.category for tag in tags)
    return {name: counts[code] for code, name in CATEGORIES.items() if counts[code]}


def category_columns(tags: Sequence[Tag], category: Category) -> npt.NDArray[np.int64]:
    """Return the columns of the tags of a category."""
    return np.flatnonzero([CATEGORIES[tag.category] == category for tag in tags])


def write(tags: Sequence[Tag], path: Path) -> None:
    files.write_csv(path, Tag._fields, tags)


def read(path: Path) -> list[Tag]:
    """Return a vocabulary that `write` wrote."""
    return [
        _parse(row, line) for line, row in records.read_rows(files.check_size(files.require(path)))
    ]


def read_selected(path: Path) -> dict[str, Tag]:
    """Return the tags of a selected_tags.csv by name, in lower_snake_case.

    Only the column `name` is required. An unknown id, category or count is -1.
    Raises TaggerError for a missing file or column, a value that is no number, a repeated tag.
    """
    if not path.is_file():
        raise TaggerError(f"vocabulary.source: there is no file {path}.")
    tags: dict[str, Tag] = {}
    unknown = dict.fromkeys(("tag_id", "category", "count"), UNKNOWN)
    for line, row in records.read_rows(path):
        tag = _parse(unknown | {k: v for k, v in row.items() if v not in ("", None)}, line)
        name = normalize_name(tag.name)
        if not name:
            raise TaggerError(f"{line} has no 'name'.")
        if name in tags:
            raise TaggerError(f"{line} repeats the tag {name!r}. Remove one.")
        tags[name] = tag._replace(name=name)
    if not tags:
        raise TaggerError(f"{path} lists no tags. It must have a column 'name'.")
    return tags


def _parse(row: Mapping[str, Any], line: str) -> Tag:
    for column in Tag._fields:
        if column not in row:
            raise TaggerError(f"{line} has no {column!r}.")
    value = row["category"]
    category = UNKNOWN if value == UNKNOWN else parse_category(value)
    if category is None:
        raise TaggerError(f"{line} has the unknown category {str(value)!r}.")
    tag_id, count = parse_integer(row["tag_id"]), parse_integer(row["count"])
    if tag_id is None or count is None:
        column = "tag_id" if tag_id is None else "count"
        raise TaggerError(f"{line}: {column} is {str(row[column])!r}, not an integer.")
    return Tag(tag_id, str(row["name"]), category, count)
