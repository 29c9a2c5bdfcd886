"""Labels that are likely missing or wrong, by confident learning, for each tag by itself.

Northcutt et al. 2021, https://arxiv.org/abs/1911.00068: a label is an issue if the model is as
confident of the opposite as it is, on average, on the images labelled so, and finds the opposite
more probable. The model must not have been trained on the images.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats, Ints
from tagger.core.logits import finite_logit
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import quantized_logits
from tagger.evaluation.prediction_store import PredictionStore, TagBlock
from tagger.evaluation.quantized_logits import UNKNOWN, QuantizedLogits

HEADER = ("split", "id", "file", "category", "tag", "issue", "confidence")

_SLACK = 1e-6  # within which cleanlab takes probabilities for equal
_ISSUE = np.dtype(
    [
        ("certainty", np.float64),
        ("tag", np.int32),
        ("image", np.int32),
        ("score", np.uint16),
        ("missing", np.bool_),
    ]
)
_Issues = npt.NDArray[np.void]  # (issues,), of _ISSUE


class LabelIssue(NamedTuple):
    image: int
    tag: int
    missing: bool  # the label is likely missing; otherwise it is likely wrong
    confidence: float  # of the tag, by the model
    certainty: float  # in nats, see `_certainty`


class LabelIssues(NamedTuple):
    missing: Ints  # (tags,), labels that are likely missing
    wrong: Ints  # (tags,), labels that are likely wrong
    most_certain: list[LabelIssue]  # by falling certainty


def find(store: PredictionStore, limit: int = 10_000, min_support: int = 5) -> LabelIssues:
    """Return label issues, the same as cleanlab's `confident_learning`.

    limit: how many to return one by one
    min_support: images with a tag, and without it; fewer do not show what is usual for it
    """

    def find_in_block(block: TagBlock) -> tuple[list[tuple[int, int]], _Issues]:
        counts, most_certain = [], [np.empty(0, _ISSUE)]
        for place in range(len(block.scores)):
            issues = _issues_of_tag(block.tags.start + place, *block[place], min_support)
            missing = int(np.count_nonzero(issues["missing"]))
            counts.append((missing, len(issues) - missing))
            most_certain.append(_most_certain(issues, limit))
        return counts, _most_certain(np.concatenate(most_certain), limit)

    counts: list[tuple[int, int]] = []
    most_certain = np.empty(0, _ISSUE)
    for block_counts, issues in store.map_tag_blocks(find_in_block):
        counts += block_counts
        most_certain = _most_certain(np.concatenate([most_certain, issues]), limit)
    missing, wrong = np.array(counts, np.int64).reshape(-1, 2).T
    return LabelIssues(missing, wrong, list(_listed(most_certain)))


def _issues_of_tag(tag: int, scores: QuantizedLogits, rows: Ints, min_support: int) -> _Issues:
    """Return the label issues of a tag.

    scores: (images,); those of the positives are made UNKNOWN
    rows: (positives,), images known to have it
    """
    positives = scores[rows]
    scores[rows] = UNKNOWN
    negatives = int(np.count_nonzero(scores))
    if min(len(rows), negatives) < max(1, min_support):
        return np.empty(0, _ISSUE)
    likely = quantized_logits.probability_table()
    positive_mean = float(likely[positives].mean())
    negative_mean = float(likely[scores].sum() / negatives)
    low = likely[positives] <= min(negative_mean + _SLACK, 0.5 - _SLACK / 2)
    lowest = max(positive_mean - _SLACK, 0.5 + _SLACK / 2)
    high = np.flatnonzero(scores >= quantized_logits.quantize_thresholds(lowest))
    issues = np.empty(len(high) + np.count_nonzero(low), _ISSUE)
    issues["tag"] = tag
    issues["image"] = np.concatenate([high, rows[low]])
    issues["score"] = np.concatenate([scores[high], positives[low]])
    issues["missing"] = np.arange(len(issues)) < len(high)
    issues["certainty"] = _certainty(issues, positive_mean, negative_mean)
    return issues


def _certainty(issues: _Issues, positive_mean: float, negative_mean: float) -> Floats:
    """Return how many nats the model is away from what is usual for the label, (issues,).

    They count for less if the model is unsure of the tag on images that have it, too. For six
    models trained with errors planted in proportion to the images of a tag, 96 % of the first
    3,000 issues are right in this order, the most of all orders tried, and 64 % in the order of
    self-confidence or, the same for two classes, cleanlab's margin. (If every label is as likely
    to be false, these do better.)

    positive_mean, negative_mean: mean probability of the tag on images with and without it
    """
    usual_positive, usual_negative = finite_logit(np.array([positive_mean, negative_mean]))
    logits = quantized_logits.logit_table()[issues["score"]]
    away = np.where(issues["missing"], logits - usual_negative, usual_positive - logits)
    return np.asarray(away * positive_mean)


def _most_certain(issues: _Issues, limit: int) -> _Issues:
    return issues[np.argsort(-issues["certainty"], kind="stable")[:limit]]


def _listed(issues: _Issues) -> Iterator[LabelIssue]:
    confidences = quantized_logits.probability_table()[issues["score"]]
    columns = issues["image"], issues["tag"], issues["missing"], confidences, issues["certainty"]
    return map(LabelIssue, *(column.tolist() for column in columns))


def rows(
    split: str,
    issues: Sequence[LabelIssue],
    ids: Sequence[str],
    files: Sequence[str],
    tags: Sequence[Tag],
) -> Iterator[tuple[Any, ...]]:
    """Yield a row per issue under HEADER; ids, files: (images,), in the order of the store."""
    for image, number, missing, confidence, _ in issues:
        tag, kind = tags[number], "missing" if missing else "wrong"
        names = CATEGORIES[tag.category], tag.name, kind
        yield split, ids[image], files[image], *names, round(confidence, 6)
