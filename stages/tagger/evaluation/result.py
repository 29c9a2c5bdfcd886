"""Judge predictions: all that is worked out from them, in a few passes over the disk."""

from collections.abc import Sequence
from dataclasses import dataclass

from tagger.core.vocabulary import Tag
from tagger.evaluation import bootstrap, jackknife, ranking, score_counts, tag_metrics
from tagger.evaluation.jackknife import Influence
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import Floats
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.score_counts import ScoreCounts
from tagger.evaluation.tag_metrics import MetricTree


@dataclass(frozen=True)
class Judged:
    tally: ScoreCounts  # its marks are `tally.marks` of the thresholds
    ranking: Ranking
    influence: Influence
    figures: MetricTree  # as evaluate.json has them


def judge(scored: PredictionStore, tags: Sequence[Tag], limits: Floats, seed: int) -> Judged:
    """Return how good predictions are at some thresholds, with 95 % intervals.

    limits: (tags,), the thresholds
    seed: of the draws behind the intervals
    """
    counted = score_counts.count(
        scored, tag_metrics.pool_of(tags), marks=score_counts.marks(limits)
    )
    ranked = ranking.of(scored)
    moved = jackknife.of(scored, counted, tags, limits)
    summed = tag_metrics.summary(counted, tags, ranked)
    within = bootstrap.intervals(moved, seed)
    for name, inside in (*summed["categories"].items(), (bootstrap.OVERALL, summed)):
        inside["intervals"] = within[name]
    return Judged(counted, ranked, moved, summed)
