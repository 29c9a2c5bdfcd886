"""Judge predictions: all that is worked out from them, in a few passes over the disk."""

from collections.abc import Sequence
from dataclasses import dataclass

from tagger.core.vocabulary import Tag
from tagger.evaluation import bootstrap, jackknife, ranking, score_counts, tag_metrics
from tagger.evaluation.jackknife import Influence
from tagger.evaluation.prediction_store import Scored
from tagger.evaluation.quantized_logits import Floats
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.score_counts import Tally
from tagger.evaluation.tag_metrics import Figures


@dataclass(frozen=True)
class Judged:
    tally: Tally  # its marks are `tally.marks` of the thresholds
    ranking: Ranking
    influence: Influence
    figures: Figures  # as evaluate.json has them


def judge(scored: Scored, tags: Sequence[Tag], limits: Floats, seed: int) -> Judged:
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
