"""Evaluate predictions: all metrics, with intervals, in a few passes over the disk."""

from collections.abc import Sequence
from dataclasses import dataclass

from tagger.core.arrays import Floats
from tagger.core.vocabulary import Tag
from tagger.evaluation import bootstrap, jackknife, ranking, score_counts, tag_metrics
from tagger.evaluation.jackknife import Jackknife
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.score_counts import ScoreCounts
from tagger.evaluation.tag_metrics import MetricTree


@dataclass(frozen=True)
class EvaluationResult:
    counts: ScoreCounts  # at `score_counts.evaluation_thresholds`
    ranking: Ranking
    jackknife: Jackknife
    metrics: MetricTree  # as in evaluate.json


def evaluate(
    store: PredictionStore, tags: Sequence[Tag], thresholds: Floats, seed: int
) -> EvaluationResult:
    """Return the metrics of predictions, with 95 % intervals.

    thresholds: (tags,)
    seed: of the resamples behind the intervals
    """
    counts, image_ranking, metrics = measure(store, tags, thresholds)
    influences = jackknife.compute(store, counts, tags, thresholds)
    intervals = bootstrap.intervals(influences, seed)
    for name, tree in (*metrics["categories"].items(), (bootstrap.OVERALL, metrics)):
        tree["intervals"] = intervals[name]
    return EvaluationResult(counts, image_ranking, influences, metrics)


def measure(
    store: PredictionStore, tags: Sequence[Tag], thresholds: Floats
) -> tuple[ScoreCounts, Ranking, MetricTree]:
    """Return the metrics of predictions without intervals, and what they follow from."""
    quantized = score_counts.evaluation_thresholds(thresholds)
    counts = score_counts.count(store, tag_metrics.pool_numbers(tags), thresholds=quantized)
    image_ranking = ranking.rank_labels(store)
    return counts, image_ranking, tag_metrics.summarize(counts, tags, image_ranking)
