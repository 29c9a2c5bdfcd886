"""Selection of the tags that a model learns. Every dropped tag has its reason."""

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagger import params
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag, matches_glob, normalize_name, sort_tags

# Reasons to drop a tag. The first that applies counts.
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
    kept: list[Tag]  # in vocabulary order
    dropped: list[tuple[Tag, str]]  # with the reason, in vocabulary order
    unseen_names: list[str]  # listed, but on no post
    unmatched_globs: list[str]


def select_tags(
    seen_tags: Sequence[Tag],
    p: params.VocabularyParams,
    listed_tags: Mapping[str, Tag] | None = None,
) -> Selection:
    """Return which of the seen tags to learn. Raises TaggerError if none remains.

    listed_tags: by name, the only tags to learn. A known id or category of a listed tag replaces
        that of the seen one, and its count is compared with the minimum.
    """
    present = {tag.name: tag for tag in seen_tags if tag.count}
    tags = [_merge(tag, (listed_tags or {}).get(tag.name)) for tag in present.values()]
    included, excluded = _match_globs(p.include, present), _match_globs(p.exclude, present)
    reasons = {
        tag.name: "" if tag.name in included else _reason(tag, p, listed_tags, excluded)
        for tag in tags
    }
    passed = [tag for tag in tags if not reasons[tag.name]]
    passed.sort(key=lambda tag: (tag.name not in included, -tag.count, tag.name))
    reasons |= {tag.name: MAXIMUM for tag in _over_maximum(passed, p, included)}
    kept = [tag for tag in passed if not reasons[tag.name]]
    if not kept:
        raise TaggerError(_no_tag_message(tags, Counter(reasons.values())))
    globs = (*p.include, *p.exclude)
    return Selection(
        kept=sort_tags(kept),
        dropped=[(tag, reasons[tag.name]) for tag in sort_tags(tags) if reasons[tag.name]],
        unseen_names=[name for name in listed_tags or {} if name not in present],
        unmatched_globs=[glob for glob in globs if not _match_globs([glob], present)],
    )


def count_outcomes(selection: Selection) -> list[tuple[Any, ...]]:
    """Return rows under OUTCOME_COLUMNS: tags and labels by category and outcome."""
    tags: Counter[tuple[int, str]] = Counter()
    labels: Counter[tuple[int, str]] = Counter()
    for tag, outcome in (*((tag, KEPT) for tag in selection.kept), *selection.dropped):
        tags[tag.category, outcome] += 1
        labels[tag.category, outcome] += tag.count
    outcomes = (KEPT, NOT_LISTED, CATEGORY, EXCLUDED, COUNT, MAXIMUM)
    return [
        (name, outcome, tags[code, outcome], labels[code, outcome])
        for code, name in CATEGORIES.items()
        for outcome in outcomes
        if tags[code, outcome]
    ]


def _merge(seen: Tag, listed: Tag | None) -> Tag:
    if listed is None:
        return seen
    tag_id = seen.tag_id if listed.tag_id < 0 else listed.tag_id
    category = seen.category if listed.category < 0 else listed.category
    return seen._replace(tag_id=tag_id, category=category)


def _reason(
    tag: Tag,
    p: params.VocabularyParams,
    listed_tags: Mapping[str, Tag] | None,
    excluded: Container[str],
) -> str:
    """Return the reason to drop a tag, empty if there is none."""
    if listed_tags is not None and tag.name not in listed_tags:
        return NOT_LISTED
    category = CATEGORIES[tag.category]
    if category not in p.categories:
        return CATEGORY
    if tag.name in excluded:
        return EXCLUDED
    count = tag.count if listed_tags is None else listed_tags[tag.name].count
    return COUNT if 0 <= count < p.min_counts.get(category, p.min_count) else ""


def _match_globs(globs: Sequence[str], names: Iterable[str]) -> set[str]:
    patterns = [normalize_name(glob) for glob in globs]
    return {name for name in names if any(matches_glob(name, pattern) for pattern in patterns)}


def _over_maximum(
    tags: Iterable[Tag], p: params.VocabularyParams, included: Container[str]
) -> Iterator[Tag]:
    """Yield the tags over the maximum of their category or of all. Included tags count, too."""
    taken: Counter[int] = Counter()
    max_tags = math.inf if p.max_tags is None else p.max_tags
    for tag in tags:
        max_of_category = p.max_tags_of.get(CATEGORIES[tag.category], math.inf)
        full = taken[tag.category] >= max_of_category or taken.total() >= max_tags
        if full and tag.name not in included:
            yield tag
        else:
            taken[tag.category] += 1


def _no_tag_message(tags: Sequence[Tag], reasons: Counter[str]) -> str:
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{count:,} {reason}" for reason, count in ranked)
    maximum = max((tag.count for tag in tags), default=0)
    return (
        f"No tag remains of {len(tags):,} ({counts or 'there was none'}). The most frequent one is "
        f"on {maximum:,} posts. Loosen the limits under vocabulary, or add images."
    )
