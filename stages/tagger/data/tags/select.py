"""Which tags a model learns: those seen that pass the limits; each of the others has its reason."""

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagger import params
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag, matches_glob, normalize_name, sort_tags

# Why a tag is not learnt, in the order of asking.
NOT_LISTED = "not in the list"
CATEGORY = "category"
EXCLUDED = "excluded"
COUNT = "too rare"
MAXIMUM = "max tags"
KEPT = "kept"

OUTCOME_COLUMNS = ("category", "outcome", "tags", "labels")
DROPPED_COLUMNS = (*Tag._fields, "reason")


@dataclass(frozen=True)
class Selection:
    kept: list[Tag]  # in the order of a vocabulary
    dropped: list[tuple[Tag, str]]  # with the reason, in the same order
    unseen_names: list[str]  # names listed that no post has
    unmatched_globs: list[str]  # globs that match no tag


def select_tags(
    seen: Sequence[Tag], p: params.VocabularyParams, listed: Mapping[str, Tag] | None = None
) -> Selection:
    """Return which of the seen tags to learn.

    listed: by name, the tags that alone are wanted; where its id and category are known, they win
        over those seen, and its count is the one held against the minimum
    Raises TaggerError where no tag is left.
    """
    present = {tag.name: tag for tag in seen if tag.count}
    tags = [_merged(tag, (listed or {}).get(tag.name)) for tag in present.values()]
    included, excluded = _matching(p.include, present), _matching(p.exclude, present)
    reasons = {
        tag.name: "" if tag.name in included else _reason(tag, p, listed, excluded) for tag in tags
    }
    passed = [tag for tag in tags if not reasons[tag.name]]
    passed.sort(key=lambda tag: (tag.name not in included, -tag.count, tag.name))
    reasons |= {tag.name: MAXIMUM for tag in _beyond(passed, p, included)}
    kept = [tag for tag in passed if not reasons[tag.name]]
    if not kept:
        raise TaggerError(_nothing_left(tags, Counter(reasons.values())))
    return Selection(
        kept=sort_tags(kept),
        dropped=[(tag, reasons[tag.name]) for tag in sort_tags(tags) if reasons[tag.name]],
        unseen_names=[name for name in listed or {} if name not in present],
        unmatched_globs=[
            glob for glob in (*p.include, *p.exclude) if not _matching([glob], present)
        ],
    )


def count_outcomes(found: Selection) -> list[tuple[Any, ...]]:
    """Return rows under OUTCOME: what became of the tags of each category."""
    tags: Counter[tuple[int, str]] = Counter()
    labels: Counter[tuple[int, str]] = Counter()
    for tag, reason in (*((tag, KEPT) for tag in found.kept), *found.dropped):
        tags[tag.category, reason] += 1
        labels[tag.category, reason] += tag.count
    reasons = (KEPT, NOT_LISTED, CATEGORY, EXCLUDED, COUNT, MAXIMUM)
    return [
        (name, reason, tags[code, reason], labels[code, reason])
        for code, name in CATEGORIES.items()
        for reason in reasons
        if tags[code, reason]
    ]


def _merged(seen: Tag, listed: Tag | None) -> Tag:
    if listed is None:
        return seen
    tag_id = seen.tag_id if listed.tag_id < 0 else listed.tag_id
    category = seen.category if listed.category < 0 else listed.category
    return seen._replace(tag_id=tag_id, category=category)


def _reason(
    tag: Tag, p: params.VocabularyParams, listed: Mapping[str, Tag] | None, excluded: Container[str]
) -> str:
    """Return why a tag is not learnt, or nothing."""
    if listed is not None and tag.name not in listed:
        return NOT_LISTED
    category = CATEGORIES[tag.category]
    if category not in p.categories:
        return CATEGORY
    if tag.name in excluded:
        return EXCLUDED
    count = tag.count if listed is None else listed[tag.name].count
    return COUNT if 0 <= count < p.min_counts.get(category, p.min_count) else ""


def _matching(globs: Sequence[str], names: Mapping[str, Tag]) -> set[str]:
    patterns = [normalize_name(glob) for glob in globs]
    return {name for name in names if any(matches_glob(name, one) for one in patterns)}


def _beyond(
    tags: Iterable[Tag], p: params.VocabularyParams, included: Container[str]
) -> Iterator[Tag]:
    """Yield the tags that are beyond what there may be, of their category or overall."""
    taken: Counter[int] = Counter()
    for tag in tags:
        of_category = p.max_tags_of.get(CATEGORIES[tag.category], math.inf)
        overall = math.inf if p.max_tags is None else p.max_tags
        full = taken[tag.category] >= of_category or taken.total() >= overall
        if full and tag.name not in included:
            yield tag
        else:
            taken[tag.category] += 1


def _nothing_left(tags: Sequence[Tag], reasons: Counter[str]) -> str:
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{count:,} {why}" for why, count in ranked)
    most = max((tag.count for tag in tags), default=0)
    return (
        f"No tag is left of {len(tags):,} ({told or 'there was none'}); the most common one is on "
        f"{most:,} posts. Loosen the limits under vocabulary, or bring more pictures."
    )
