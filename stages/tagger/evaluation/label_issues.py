"""Labels that are likely missing or likely wrong, by confident learning, for each tag by itself.

Northcutt et al. 2021, https://arxiv.org/abs/1911.00068: a label is in doubt where the model is as
confident of the opposite as it is on average of the pictures labelled so, and finds it the more
probable. The pictures must not be those it was trained on.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.logits import finite_logit
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.evaluation import columns, quantized_logits
from tagger.evaluation.columns import TagBlock
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits

HEADER = ("part", "id", "file", "category", "tag", "issue", "confidence")

_SLACK = 1e-6  # by which cleanlab takes probabilities for equal
_DOUBT = np.dtype(
    [
        ("sureness", np.float64),
        ("tag", np.int32),
        ("picture", np.int32),
        ("code", np.uint16),
        ("missing", np.bool_),
    ]
)
_Found = npt.NDArray[np.void]  # (doubts,), of _DOUBT


class LabelIssue(NamedTuple):
    image: int
    tag: int
    missing: bool  # likely there, though not said; otherwise likely not there, though said
    confidence: float  # of the tag, by the model
    certainty: float  # nats, as `_sureness` weighs them


class LabelIssues(NamedTuple):
    missing: Ints  # (tags,), labels of each that are likely missing
    wrong: Ints  # (tags,), labels of each that are likely wrong
    most_certain: list[LabelIssue]  # the surest first, by what `_sureness` says


def find(scored: PredictionStore, limit: int = 10_000, min_support: int = 5) -> LabelIssues:
    """Return the labels in doubt, as cleanlab finds them by `confident_learning`.

    most: how many are returned one by one
    least: pictures with a tag, and without it, fewer of which do not tell what is usual for it
    """

    def one(some: TagBlock) -> tuple[Ints, _Found]:
        counts = np.zeros((len(some.scores), 2), np.int64)
        surest = []
        for place in range(len(some.scores)):
            found = _of_tag(some.tags.start + place, *some[place], min_support)
            missing = np.count_nonzero(found["missing"])
            counts[place] = missing, len(found) - missing
            surest.append(_surest(found, limit))
        return counts, _surest(np.concatenate(surest), limit)

    counts, surest = [np.empty((0, 2), np.int64)], np.empty(0, _DOUBT)
    for counted, found in columns.map_tag_blocks(scored, one):
        counts.append(counted)
        surest = _surest(np.concatenate([surest, found]), limit)
    missing, wrong = np.concatenate(counts).T
    return LabelIssues(missing, wrong, list(_listed(surest)))


def _of_tag(tag: int, scores: QuantizedLogits, rows: Ints, least: int) -> _Found:
    """Return the labels of a tag that are in doubt.

    scores: (pictures,), in which those of the positives are made unknown
    rows: (positives,), pictures known to have it
    """
    own = scores[rows]
    scores[rows] = quantized_logits.UNKNOWN
    without = int(np.count_nonzero(scores))
    if min(len(rows), without) < max(1, least):
        return np.empty(0, _DOUBT)
    likely = quantized_logits.probability_table()
    usual = float(likely[own].mean()), float(likely[scores].sum() / without)  # with and without it
    low = likely[own] <= min(usual[1] + _SLACK, 0.5 - _SLACK / 2)
    high = np.flatnonzero(
        scores >= quantized_logits.quantize_thresholds(max(usual[0] - _SLACK, 0.5 + _SLACK / 2))
    )
    found = np.empty(len(high) + np.count_nonzero(low), _DOUBT)
    found["tag"] = tag
    found["picture"] = np.concatenate([high, rows[low]])
    found["code"] = np.concatenate([scores[high], own[low]])
    found["missing"] = np.arange(len(found)) < len(high)
    found["sureness"] = _sureness(found, *usual)
    return found


def _sureness(found: _Found, with_it: float, without: float) -> Floats:
    """Return how many nats the model is away from what is usual for the label, (doubts,).

    They count for less where it is unsure of the tag on pictures that have it, too. Of six models
    taught with errors planted in proportion to the pictures of a tag, 96 % of the first 3,000
    doubts are right so, the most of all orders tried, and 64 % by self-confidence or, for two
    classes the same, cleanlab's margin. (If every label is as likely to be false, these do better.)

    with_it, without: mean probabilities of the tag on pictures labelled so
    """
    usual = finite_logit(np.array([with_it, without]))
    logits = quantized_logits.logit_table()[found["code"]]
    away: Floats = np.where(found["missing"], logits - usual[1], usual[0] - logits)
    return away * with_it


def _surest(found: _Found, most: int) -> _Found:
    return found[np.argsort(-found["sureness"], kind="stable")[:most]]


def _listed(found: _Found) -> Iterator[LabelIssue]:
    confidences = quantized_logits.probability_table()[found["code"]]
    named = (found[name] for name in ("picture", "tag", "missing"))
    fields = (*named, confidences, found["sureness"])
    for row in zip(*(field.tolist() for field in fields), strict=True):
        yield LabelIssue(*row)


def rows(
    part: str,
    doubts: Sequence[LabelIssue],
    ids: Sequence[str],
    files: Sequence[str],
    tags: Sequence[Tag],
) -> Iterator[tuple[Any, ...]]:
    """Yield a row per doubt under HEADER.

    ids, files: (pictures,), in the order of the predictions
    """
    for picture, number, missing, confidence, _ in doubts:
        tag, issue = tags[number], "missing" if missing else "wrong"
        about = CATEGORIES[tag.category], tag.name, issue, round(confidence, 6)
        yield part, ids[picture], files[picture], *about
