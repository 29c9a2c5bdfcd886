"""Rules for tags: categories, aliases, implications and renames.

A folder of rules may hold these tables, as CSV, Parquet, JSON or JSON lines:

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
    """All names are normalized, and all chains of rules are followed."""

    known_tags: Mapping[str, tuple[int, int]]  # category and id by name; -1: no id
    aliases: Mapping[str, str] = field(default_factory=dict)
    implications: Mapping[str, Sequence[str]] = field(default_factory=dict)
    deprecated: frozenset[str] = frozenset()
    renames: Mapping[str, str] = field(default_factory=dict)  # to "": drop the tag
    cycles: Sequence[str] = ()  # aliases and implications that lead back to their start

    @property
    def current_names(self) -> dict[str, str]:
        """The current name of a tag, by an old name."""
        return {**self.aliases, **{old: new for old, new in self.renames.items() if new}}


def read(*folders: Path) -> Rules:
    """Return the rules of folders. The first rule for a name counts.

    Raises TaggerError for a file that cannot be read, lacks a column or has an unknown category.
    """
    known_tags: dict[str, tuple[int, int]] = {}
    deprecated: dict[str, bool] = {}
    pairs: dict[str, dict[tuple[str, str], None]] = {
        name: {} for name in ("tag_aliases", "tag_implications", "renames")
    }
    for folder in folders:
        _add_known_tags(folder, known_tags, deprecated)
        for name, rules in pairs.items():
            rules.update(dict.fromkeys(_read_pairs(folder, name)))
    for name in RATINGS:
        category, tag_id = known_tags.get(name, (RATING, -1))
        has_id = tag_id >= 0 or category != RATING
        known_tags[name] = category, tag_id if has_id else _RATING_IDS[name]
    aliases, alias_cycles = _follow_aliases(dict(reversed(pairs["tag_aliases"])))
    implied = [(aliases.get(a, a), aliases.get(b, b)) for a, b in pairs["tag_implications"]]
    renames = dict(reversed(pairs["renames"]))
    for before, after in pairs["renames"]:
        if after and before in known_tags:
            known_tags.setdefault(after, known_tags[before])
    dropped = {name for name, is_deprecated in deprecated.items() if is_deprecated}
    implications, cycles = _close_implications(implied, dropped)
    return Rules(
        known_tags=known_tags,
        aliases=aliases,
        implications=implications,
        deprecated=frozenset(dropped),
        renames=renames,
        cycles=(*alias_cycles, *cycles),
    )


def _add_known_tags(
    folder: Path, known_tags: dict[str, tuple[int, int]], deprecated: dict[str, bool]
) -> None:
    for where, row in records.read_table(folder, "tags"):
        try:
            name = _name(row, "name")
            known_tags.setdefault(name, (_category(_value(row, "category")), _id(row)))
        except ValueError as error:
            raise TaggerError(f"{where}: {error}. See data/README.md.") from None
        if row.get("is_deprecated") is not None:
            flag = str(row["is_deprecated"]).lower() in ("true", "t", "1", "1.0")
            deprecated.setdefault(name, flag)


def _value(row: Record, column: str) -> Any:
    if column not in row:
        raise ValueError(
            f"there is no column {column!r}; the columns are {', '.join(row) or 'none'}"
        )
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
    """Return the id of a tag, -1 if it has none."""
    value = row.get("tag_id", row.get("id"))
    number = parse_integer(value)
    if number is None and value not in (None, "") and value == value:
        raise ValueError(f"{str(value)!r} is not an id")
    return -1 if number is None else max(-1, number)


def _read_pairs(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of names of a table of rules, except pairs of equal names."""
    for where, row in records.read_table(folder, name):
        if (row.get("status") or "active") != "active":
            continue
        columns = next((pair for pair in _PAIRS if pair[0] in row), None)
        if not columns:
            pairs = " or ".join(",".join(pair) for pair in _PAIRS)
            raise TaggerError(f"{where}: needs the columns {pairs}, but has {', '.join(row)}.")
        try:
            before = _name(row, columns[0])
            after = "" if row.get(columns[1], "") is None else _name(row, columns[1])
        except ValueError as error:
            raise TaggerError(f"{where}: {error}.") from None
        if not before or not (after or name == "renames"):
            raise TaggerError(f"{where}: {columns[1] if before else columns[0]} is empty.")
        if before != after:
            yield before, after


def _follow_aliases(aliases: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the final tag of each alias, without cycles, and the aliases that lead to a cycle."""
    targets: dict[str, str] = {}
    cycles = []
    for start in aliases:
        path, name = {start}, aliases[start]
        while name in aliases and name not in path:
            path.add(name)
            name = aliases[name]
        if name in path:
            cycles.append(f"alias {start} -> {aliases[start]}")
        else:
            targets[start] = name
    return targets, cycles


def _close_implications(
    pairs: Sequence[tuple[str, str]], dropped: set[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return all tags that each tag implies over any number of steps, and the tags on a cycle."""
    direct: dict[str, dict[str, None]] = {}
    for before, after in pairs:
        if before != after:  # aliases can make them equal
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
