"""Which of a tagger's old tags each new one is, and what those start as that are none."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

from tagger.core.vocabulary import CATEGORIES, RATING, UNKNOWN, Tag, normalize_name

NewTagStart: TypeAlias = Literal["related", "mean", "fresh"]
MatchOutcome: TypeAlias = Literal["carried", "carried_by_alias"]

_NAMED = 3  # of the tags that a new one starts as


class StartGroup(NamedTuple):
    """What rows of the head start as: the mean of some that were carried."""

    description: str
    matched_rows: list[int]  # rows
    new_rows: list[int]  # rows


def match_tags(
    tags: Sequence[Tag], old_tags: Sequence[Tag], aliases: Mapping[str, str]
) -> dict[int, tuple[int, MatchOutcome]]:
    """Return the old tag of each that has one, by number. No old tag is that of two.

    A name counts more than an alias, and the same category more than another. Ratings are ratings
    alone: there is a tag `general` beside the rating.
    """
    found: dict[int, tuple[int, MatchOutcome]] = {}
    used: set[int] = set()
    own = [old.name for old in old_tags]
    meant = [aliases.get(name, name) for name in own]
    ways: list[tuple[MatchOutcome, list[str]]] = [("carried", own), ("carried_by_alias", meant)]
    for (outcome, names), strict in product(ways, (True, False)):
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            numbers.setdefault(name, []).append(number)
        for row, tag in enumerate(tags):
            there = numbers.get(normalize_name(tag.name), ()) if row not in found else ()
            free = (number for number in there if number not in used)
            fit = (n for n in free if _alike(old_tags[n].category, tag.category, strict))
            if (old := next(fit, None)) is not None:
                found[row] = old, outcome
                used.add(old)
    return found


def _alike(old: int, now: int, strict: bool) -> bool:
    """Return whether tags of these categories may be the same."""
    if strict:
        return old == now
    return UNKNOWN in (old, now) or (old == RATING) == (now == RATING)


def group_new_tags(
    tags: Sequence[Tag], matched_rows: Sequence[int], new: NewTagStart
) -> list[StartGroup]:
    """Return what the tags without an old one start as; nothing for `fresh`."""
    groups: dict[tuple[int, str], list[int]] = {}
    for row in matched_rows:
        for key in _keys(tags[row], "related"):
            groups.setdefault(key, []).append(row)
    found: dict[tuple[int, str], StartGroup] = {}
    missing = sorted(set(range(len(tags))) - set(matched_rows))
    for row in missing if new != "fresh" else ():
        key = next(key for key in _keys(tags[row], new) if key in groups)
        if key not in found:
            found[key] = StartGroup(_in_words(tags, key, groups[key]), groups[key], [])
        found[key].new_rows.append(row)
    return list(found.values())


def _keys(tag: Tag, new: NewTagStart) -> list[tuple[int, str]]:
    """Return the groups of tags that one is in, the narrowest first."""
    everything = (UNKNOWN, "")
    if new == "mean":
        return [everything]
    bare = re.sub(r"(_\([^()]*\))+$", "", tag.name)  # hair_(qualifier)
    return [(tag.category, bare.rpartition("_")[2]), (tag.category, ""), everything]


def _in_words(tags: Sequence[Tag], key: tuple[int, str], rows: Sequence[int]) -> str:
    category, ending = key
    if not ending:
        return " ".join(f"mean of all {len(rows):,} {CATEGORIES.get(category, '')}".split())
    some = ", ".join(tags[row].name for row in rows[:_NAMED])
    return f"mean of {len(rows):,} related: {some}" + (", ..." if len(rows) > _NAMED else "")
