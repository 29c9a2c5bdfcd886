"""Match the tags of a new model to those of an old one, and find starts for the others."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

from tagger.core.vocabulary import CATEGORIES, RATING, UNKNOWN, Tag, normalize_name

NewTagStart: TypeAlias = Literal["related", "mean", "fresh"]
MatchOutcome: TypeAlias = Literal["transferred", "transferred_by_alias"]

_EXAMPLES = 3  # tags named in a description


class StartGroup(NamedTuple):
    """New tags whose rows of the head start as the mean of matched rows."""

    description: str
    matched_rows: list[int]
    new_rows: list[int]


def match_tags(
    tags: Sequence[Tag], old_tags: Sequence[Tag], aliases: Mapping[str, str]
) -> dict[int, tuple[int, MatchOutcome]]:
    """Return the number of the old tag and the outcome, by number of the tag, if there is a match.

    No old tag matches twice. Equal names count more than aliases, and equal categories more than
    different ones. Ratings match ratings only: `general` is a rating and a tag.
    """
    matches: dict[int, tuple[int, MatchOutcome]] = {}
    used: set[int] = set()
    names = [old.name for old in old_tags]
    current = [aliases.get(name, name) for name in names]
    ways: list[tuple[MatchOutcome, list[str]]] = [
        ("transferred", names),
        ("transferred_by_alias", current),
    ]
    for (outcome, old_names), strict in product(ways, (True, False)):
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(old_names):
            numbers.setdefault(name, []).append(number)
        for row, tag in enumerate(tags):
            same_name = numbers.get(normalize_name(tag.name), ()) if row not in matches else ()
            candidates = (
                number
                for number in same_name
                if number not in used and _fits(old_tags[number].category, tag.category, strict)
            )
            if (old := next(candidates, None)) is not None:
                matches[row] = old, outcome
                used.add(old)
    return matches


def _fits(old: int, new: int, strict: bool) -> bool:
    """Return whether tags of these categories can match."""
    if strict:
        return old == new
    return UNKNOWN in (old, new) or (old == RATING) == (new == RATING)


def group_new_tags(
    tags: Sequence[Tag], matched_rows: Sequence[int], new: NewTagStart
) -> list[StartGroup]:
    """Return the starts of the tags without a match, none for `fresh`."""
    groups: dict[tuple[int, str], list[int]] = {}
    for row in matched_rows:
        for key in _group_keys(tags[row], "related"):
            groups.setdefault(key, []).append(row)
    starts: dict[tuple[int, str], StartGroup] = {}
    unmatched_rows = sorted(set(range(len(tags))) - set(matched_rows))
    for row in unmatched_rows if new != "fresh" else ():
        key = next(key for key in _group_keys(tags[row], new) if key in groups)
        if key not in starts:
            starts[key] = StartGroup(_describe(tags, key, groups[key]), groups[key], [])
        starts[key].new_rows.append(row)
    return list(starts.values())


def _group_keys(tag: Tag, new: NewTagStart) -> list[tuple[int, str]]:
    """Return category and last word of the groups that a tag is in, the narrowest first."""
    all_tags = (UNKNOWN, "")
    if new == "mean":
        return [all_tags]
    unqualified = re.sub(r"(_\([^()]*\))+$", "", tag.name)  # hair_(qualifier)
    return [(tag.category, unqualified.rpartition("_")[2]), (tag.category, ""), all_tags]


def _describe(tags: Sequence[Tag], key: tuple[int, str], rows: Sequence[int]) -> str:
    category, last_word = key
    if not last_word:
        return " ".join(f"mean of all {len(rows):,} {CATEGORIES.get(category, '')}".split())
    examples = ", ".join(tags[row].name for row in rows[:_EXAMPLES])
    return f"mean of {len(rows):,} related: {examples}" + (", ..." if len(rows) > _EXAMPLES else "")
