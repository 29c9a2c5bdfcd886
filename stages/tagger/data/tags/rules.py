"""What is known of tags beside the pictures: categories, aliases, implications, renames.

A folder of rules holds any of these, as CSV, Parquet, JSON or JSON lines:

- `tags`: `name`, `category`, and optionally `tag_id` or `id`, and `is_deprecated`
- `tag_aliases`: `alias,tag`, or Danbooru's `antecedent_name,consequent_name,status`
- `tag_implications`: `antecedent_name,consequent_name`, and optionally `status`
- `renames`: `from,to`, applied last; an empty `to` drops the tag
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagger.core import records
from tagger.core.errors import TaggerError
from tagger.core.records import Record
from tagger.core.vocabulary import RATING, RATINGS, normalize_name, parse_category, parse_integer

_PAIRS = (("antecedent_name", "consequent_name"), ("alias", "tag"), ("from", "to"))
# Danbooru has no tags for ratings; these ids are those of the WD taggers.
_RATING_IDS = {name: 9_999_999 - number for number, name in enumerate(RATINGS)}


@dataclass(frozen=True)
class Rules:
    """What to make of a tag as it is written, all names normal and all chains followed."""

    known_tags: Mapping[str, tuple[int, int]]  # category and tag id by name; -1: no id
    aliases: Mapping[str, str] = field(default_factory=dict)
    implications: Mapping[str, Sequence[str]] = field(default_factory=dict)
    deprecated: frozenset[str] = frozenset()
    renames: Mapping[str, str] = field(default_factory=dict)  # to "": dropped
    cycles: Sequence[str] = ()  # aliases and implications that lead back to where they start

    @property
    def current_names(self) -> dict[str, str]:
        """The tag that is meant, by the name of one that is no more."""
        return {**self.aliases, **{old: new for old, new in self.renames.items() if new}}


def read(*folders: Path) -> Rules:
    """Return the rules of some folders; of what is said twice, the first counts.

    Raises TaggerError for a file that cannot be read, lacks a column or has an unknown category.
    """
    known: dict[str, tuple[int, int]] = {}
    deprecated: dict[str, bool] = {}
    pairs: dict[str, dict[tuple[str, str], None]] = {
        name: {} for name in ("tag_aliases", "tag_implications", "renames")
    }
    for folder in folders:
        _add_known(folder, known, deprecated)
        for name, found in pairs.items():
            found.update(dict.fromkeys(_pairs(folder, name)))
    for name in RATINGS:
        category, tag_id = known.get(name, (RATING, -1))
        known[name] = category, _RATING_IDS[name] if tag_id < 0 and category == RATING else tag_id
    aliases, alias_cycles = _follow(dict(reversed(pairs["tag_aliases"])))
    implied = [(aliases.get(a, a), aliases.get(b, b)) for a, b in pairs["tag_implications"]]
    renames = dict(reversed(pairs["renames"]))
    for before, after in pairs["renames"]:
        if after and before in known:
            known.setdefault(after, known[before])
    dropped = {name for name, is_deprecated in deprecated.items() if is_deprecated}
    implications, cycles = _close(implied, dropped)
    return Rules(
        known_tags=known,
        aliases=aliases,
        implications=implications,
        deprecated=frozenset(dropped),
        renames=renames,
        cycles=(*alias_cycles, *cycles),
    )


def _add_known(
    folder: Path, known: dict[str, tuple[int, int]], deprecated: dict[str, bool]
) -> None:
    for where, row in records.read_table(folder, "tags"):
        try:
            name = _name(row, "name")
            known.setdefault(name, (_category(_value(row, "category")), _id(row)))
        except ValueError as error:
            raise TaggerError(f"{where}: {error}. See data/README.md.") from None
        if row.get("is_deprecated") is not None:
            flag = str(row["is_deprecated"]).lower() in ("true", "t", "1", "1.0")
            deprecated.setdefault(name, flag)


def _value(row: Record, column: str) -> Any:
    if column not in row:
        raise ValueError(f"there is no column {column!r}, but {', '.join(row) or 'none'}")
    return row[column]


def _name(row: Record, column: str) -> str:
    name = _value(row, column)
    if not isinstance(name, str):
        raise ValueError(f"{column} is {name!r}, not a text")
    return normalize_name(name)


def _category(value: Any) -> int:
    code = parse_category(value)
    if code is None:
        raise ValueError(f"unknown category {str(value)!r}")
    return code


def _id(row: Record) -> int:
    """Return the id of a tag, -1 where none is given."""
    value = row.get("tag_id", row.get("id"))
    number = parse_integer(value)
    if number is None and value not in (None, "") and value == value:
        raise ValueError(f"{str(value)!r} is no id")
    return -1 if number is None else max(-1, number)


def _pairs(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield what stands for what; a tag that stands for itself says nothing."""
    for where, row in records.read_table(folder, name):
        if (row.get("status") or "active") != "active":
            continue
        columns = next((pair for pair in _PAIRS if pair[0] in row), None)
        if not columns:
            wanted = " or ".join(",".join(pair) for pair in _PAIRS)
            raise TaggerError(f"{where}: needs the columns {wanted}, but has {', '.join(row)}.")
        try:
            before = _name(row, columns[0])
            after = "" if row.get(columns[1], "") is None else _name(row, columns[1])
        except ValueError as error:
            raise TaggerError(f"{where}: {error}.") from None
        if not before or not (after or name == "renames"):
            raise TaggerError(f"{where}: {columns[1] if before else columns[0]} is empty.")
        if before != after:
            yield before, after


def _follow(aliases: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return where each alias ends, and those that end nowhere; the latter are left out."""
    ends: dict[str, str] = {}
    cycles = []
    for start in aliases:
        path, name = {start}, aliases[start]
        while name in aliases and name not in path:
            path.add(name)
            name = aliases[name]
        if name in path:
            cycles.append(f"alias {start} -> {aliases[start]}")
        else:
            ends[start] = name
    return ends, cycles


def _close(
    pairs: Sequence[tuple[str, str]], dropped: set[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return all that each tag implies, over any number of steps, and the tags on a cycle."""
    direct: dict[str, dict[str, None]] = {}
    for before, after in pairs:
        if before != after:  # as aliases may have made them
            direct.setdefault(before, {})[after] = None
    closed = {}
    cycles = []
    for start in direct:
        reached: dict[str, None] = {}
        pending = list(direct[start])
        while pending:
            name = pending.pop()
            if name not in reached:
                reached[name] = None
                pending.extend(direct.get(name, ()))
        if start in reached:
            cycles.append(f"implication {start} -> {start}")
        closed[start] = tuple(sorted(reached.keys() - {start} - dropped))
    return closed, cycles
