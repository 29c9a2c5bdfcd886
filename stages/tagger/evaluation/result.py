"""Judge predictions: all that is worked out from them, in a few passes over the disk."""

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
    counts: ScoreCounts  # its marks are `tally.marks` of the thresholds
    ranking: Ranking
    jackknife: Jackknife
    metrics: MetricTree  # as evaluate.json has them


def evaluate(
    store: PredictionStore, tags: Sequence[Tag], thresholds: Floats, seed: int
) -> EvaluationResult:
    """Return how good predictions are at some thresholds, with 95 % intervals.

    limits: (tags,), the thresholds
    seed: of the draws behind the intervals
    """
    counted = score_counts.count(
        store,
        tag_metrics.pool_numbers(tags),
        thresholds=score_counts.evaluation_thresholds(thresholds),
    )
    ranked = ranking.rank_labels(store)
    moved = jackknife.compute(store, counted, tags, thresholds)
    summed = tag_metrics.summarize(counted, tags, ranked)
    within = bootstrap.intervals(moved, seed)
    for name, inside in (*summed["categories"].items(), (bootstrap.OVERALL, summed)):
        inside["intervals"] = within[name]
    return EvaluationResult(counted, ranked, moved, summed)
