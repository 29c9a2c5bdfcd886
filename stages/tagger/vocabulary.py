"""The tags that a model learns, in the order of its outputs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tagger import files
from tagger.errors import TaggerError

# Danbooru's codes, in the order in which a vocabulary lists them.
CATEGORIES = {
    9: "rating",
    0: "general",
    4: "character",
    3: "copyright",
    1: "artist",
    5: "meta",
}
RATINGS = ("general", "sensitive", "questionable", "explicit")

_RANK = {category: rank for rank, category in enumerate(CATEGORIES)}


class Tag(NamedTuple):
    tag_id: int
    name: str
    category: int
    count: int  # type: ignore[assignment]  # posts; hides tuple.count, which nobody needs


def select(tags: Iterable[Tag], *, min_count: int) -> list[Tag]:
    """Return the tags on at least `min_count` posts, in the order of a vocabulary.

    Raises TaggerError where none is left.
    """
    tags = list(tags)
    kept = [tag for tag in tags if tag.count >= min_count]
    if not kept:
        most = max((tag.count for tag in tags), default=0)
        raise TaggerError(
            f"No tag is on {min_count:,} posts, the most common one is on {most:,}. "
            "Lower vocabulary.min_count or bring more pictures."
        )
    return ordered(kept)


def ordered(tags: Iterable[Tag]) -> list[Tag]:
    """Return the tags by category, within a category by falling count, then by name."""
    return sorted(tags, key=lambda tag: (_RANK[tag.category], -tag.count, tag.name))


def match(wanted: Sequence[Tag], seen: Iterable[Tag]) -> tuple[list[Tag], list[str]]:
    """Return the seen tags that are wanted by name, and the wanted names that no post has.

    Counts are those seen; so are ids and categories, unless the wanted tag says otherwise.
    """
    by_name = {tag.name: tag for tag in seen if tag.count}
    found = [_merge(tag, by_name[tag.name]) for tag in wanted if tag.name in by_name]
    unknown = [tag.name for tag in wanted if tag.name not in by_name]
    if not found:
        raise TaggerError(
            f"No post has one of the {len(wanted):,} tags wanted. "
            "Compare vocabulary.source with the sidecars, or lower vocabulary.min_count."
        )
    return ordered(found), unknown


def count_categories(tags: Iterable[Tag]) -> dict[str, int]:
    """Return the number of tags in each category that has any, by its name."""
    counts = Counter(tag.category for tag in tags)
    return {name: counts[code] for code, name in CATEGORIES.items() if counts[code]}


def _merge(wanted: Tag, seen: Tag) -> Tag:
    return Tag(
        tag_id=seen.tag_id if wanted.tag_id < 0 else wanted.tag_id,
        name=seen.name,
        category=seen.category if wanted.category < 0 else wanted.category,
        count=seen.count,
    )


def write(tags: Sequence[Tag], path: Path) -> None:
    files.write_csv(path, Tag._fields, tags)


def read(path: Path) -> list[Tag]:
    """Return a vocabulary as `write` left it."""
    return [_parse(row, path, number) for number, row in _numbered(files.require(path))]


def read_selected(path: Path, *, min_count: int) -> list[Tag]:
    """Return the tags of a selected_tags.csv whose count, where given, is at least `min_count`.

    Only the column `name` is required. An id or category that is not given is -1.
    Raises TaggerError for a missing file or column, a value that is no number, a tag given twice.
    """
    if not path.is_file():
        raise TaggerError(f"vocabulary.source: there is no file {path}.")
    tags: dict[str, Tag] = {}
    for number, row in _numbered(path):
        tag = _parse(
            {"tag_id": "-1", "category": "-1", "count": str(min_count)} | row, path, number
        )
        if tag.name in tags:
            raise TaggerError(f"{path}: line {number} repeats the tag {tag.name!r}. Remove one.")
        tags[tag.name] = tag
    return [tag for tag in tags.values() if tag.count >= min_count]


def _numbered(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    rows = files.read_csv(path)
    return enumerate(({k: v for k, v in row.items() if v != ""} for row in rows), start=2)


def _parse(row: Mapping[str, str], path: Path, number: int) -> Tag:
    try:
        category = int(row["category"])
        if category not in (*CATEGORIES, -1):
            raise TaggerError(f"{path}: line {number} has the unknown category {category}.")
        return Tag(int(row["tag_id"]), row["name"], category, int(float(row["count"])))
    except KeyError as error:
        raise TaggerError(f"{path}: line {number} has no {error.args[0]!r}.") from None
    except (ValueError, OverflowError) as error:
        raise TaggerError(f"{path}: line {number}: {error}.") from None
