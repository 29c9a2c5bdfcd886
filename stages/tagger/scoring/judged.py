"""Judge predictions: all that is worked out from them, in a few passes over the disk."""

from collections.abc import Sequence
from dataclasses import dataclass

from tagger.scoring import bootstrap, figures, influence, ranking, tally
from tagger.scoring.codes import Floats
from tagger.scoring.figures import Figures
from tagger.scoring.influence import Influence
from tagger.scoring.ranking import Ranking
from tagger.scoring.scored import Scored
from tagger.scoring.tally import Tally
from tagger.vocabulary import Tag


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
    counted = tally.count(scored, figures.pool_of(tags), marks=tally.marks(limits))
    ranked = ranking.of(scored)
    moved = influence.of(scored, counted, tags, limits)
    summed = figures.summary(counted, tags, ranked)
    within = bootstrap.intervals(moved, seed)
    for name, inside in (*summed["categories"].items(), (bootstrap.OVERALL, summed)):
        inside["intervals"] = within[name]
    return Judged(counted, ranked, moved, summed)
