"""Which of a tagger's old tags each new one is, and what those start as that are none."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

from tagger.core.vocabulary import CATEGORIES, RATING, UNKNOWN, Tag, normal

New: TypeAlias = Literal["related", "mean", "fresh"]
Kept: TypeAlias = Literal["carried", "carried_by_alias"]

_NAMED = 3  # of the tags that a new one starts as


class Start(NamedTuple):
    """What rows of the head start as: the mean of some that were carried."""

    words: str
    carried: list[int]  # rows
    new: list[int]  # rows


def match(
    tags: Sequence[Tag], olds: Sequence[Tag], aliases: Mapping[str, str]
) -> dict[int, tuple[int, Kept]]:
    """Return the old tag of each that has one, by number. No old tag is that of two.

    A name counts more than an alias, and the same category more than another. Ratings are ratings
    alone: there is a tag `general` beside the rating.
    """
    found: dict[int, tuple[int, Kept]] = {}
    used: set[int] = set()
    own = [old.name for old in olds]
    meant = [aliases.get(name, name) for name in own]
    ways: list[tuple[Kept, list[str]]] = [("carried", own), ("carried_by_alias", meant)]
    for (outcome, names), strict in product(ways, (True, False)):
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            numbers.setdefault(name, []).append(number)
        for row, tag in enumerate(tags):
            there = numbers.get(normal(tag.name), ()) if row not in found else ()
            free = (number for number in there if number not in used)
            fit = (n for n in free if _alike(olds[n].category, tag.category, strict))
            if (old := next(fit, None)) is not None:
                found[row] = old, outcome
                used.add(old)
    return found


def _alike(old: int, now: int, strict: bool) -> bool:
    """Return whether tags of these categories may be the same."""
    if strict:
        return old == now
    return UNKNOWN in (old, now) or (old == RATING) == (now == RATING)


def starts(tags: Sequence[Tag], carried: Sequence[int], new: New) -> list[Start]:
    """Return what the tags without an old one start as; nothing for `fresh`."""
    groups: dict[tuple[int, str], list[int]] = {}
    for row in carried:
        for key in _keys(tags[row], "related"):
            groups.setdefault(key, []).append(row)
    found: dict[tuple[int, str], Start] = {}
    missing = sorted(set(range(len(tags))) - set(carried))
    for row in missing if new != "fresh" else ():
        key = next(key for key in _keys(tags[row], new) if key in groups)
        if key not in found:
            found[key] = Start(_in_words(tags, key, groups[key]), groups[key], [])
        found[key].new.append(row)
    return list(found.values())


def _keys(tag: Tag, new: New) -> list[tuple[int, str]]:
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
