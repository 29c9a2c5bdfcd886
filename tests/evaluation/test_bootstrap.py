"""Intervals are those that drawing whole groups anew gives, and hold what they promise."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score

from support.predictions import RandomPredictions, TemporaryStore, make_tags, random_predictions
from tagger.core.arrays import Floats
from tagger.evaluation import bootstrap, jackknife, score_counts, tag_metrics
from tagger.evaluation.bootstrap import METRICS, OVERALL, Intervals
from tagger.evaluation.counting import Ints
from tagger.evaluation.jackknife import Jackknife
from tagger.evaluation.metrics import dense

LIMIT = 0.4


def influences(predictions: RandomPredictions, groups: Ints | None = None) -> Jackknife:
    listed = make_tags(predictions.truth.shape[1])
    limits = np.full(len(listed), LIMIT)
    with TemporaryStore(predictions, groups) as scored:
        counted = score_counts.count(
            scored,
            tag_metrics.pool_numbers(listed),
            thresholds=score_counts.evaluation_thresholds(limits),
        )
        return jackknife.compute(scored, counted, listed, limits)


def measures(predictions: RandomPredictions, rows: Ints) -> list[float]:
    """Return the measures of pictures, some of them more than once."""
    logits, truth = predictions.logits[rows], predictions.truth[rows]
    has, given = truth.any(axis=0), expit(logits) >= LIMIT
    by = {"zero_division": 0.0}
    return [
        dense.macro_ap(logits, truth),
        dense.micro_ap(logits, truth),
        f1_score(truth[:, has], given[:, has], average="macro", **by) if has.any() else 0.0,
        f1_score(truth, given, average="micro", **by),
    ]


def drawn_by_hand(predictions: RandomPredictions, groups: Ints, times: int) -> Floats:
    """Return the measures of each draw, (times, measures), by drawing the pictures themselves."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(times):
        weights = random.poisson(1, groups.max() + 1)[groups]
        found.append(measures(predictions, np.repeat(np.arange(len(groups)), weights)))
    return np.array(found)


def half_widths(intervals: Intervals, category: str = OVERALL) -> Floats:
    return np.array([np.ptp(intervals[category][name]) / 2 for name in METRICS])


@pytest.mark.parametrize(("density", "of_each"), [(0.02, 1), (0.3, 1), (0.3, 4)])
def test_intervals_are_as_wide_as_by_drawing_groups_of_pictures(
    density: float, of_each: int
) -> None:
    predictions = random_predictions(400, 20, density=density)
    groups = np.arange(400) // of_each
    if of_each > 1:  # pictures of a group are alike
        first = groups * of_each
        predictions = RandomPredictions(predictions.logits[first], predictions.truth[first])
    ours = half_widths(bootstrap.intervals(influences(predictions, groups), seed=0))
    by_hand = drawn_by_hand(predictions, groups, 300)
    assert ours == pytest.approx(1.96 * by_hand.std(axis=0), rel=0.2)


def test_intervals_hold_what_is_to_be_expected_as_often_as_they_say() -> None:
    """On as many other pictures: on more, average precision is a little lower."""
    found = []
    for seed in range(100):
        some = influences(random_predictions(200, 8, seed, density=0.1))
        ends = bootstrap.intervals(some, seed)[OVERALL]
        found.append([(*ends[name], some.metrics[-1][name]) for name in METRICS])
    low, high, figure = np.moveaxis(np.array(found), -1, 0)
    expected = figure.mean(axis=0)
    held = ((low <= expected) & (expected <= high)).mean(axis=0)
    assert ((held > 0.88) & (held <= 0.99)).all(), held


def test_draws_are_decided_by_the_seed() -> None:
    found = influences(random_predictions(100, 6))
    assert bootstrap.intervals(found, 3) == bootstrap.intervals(found, 3)
    assert bootstrap.intervals(found, 3) != bootstrap.intervals(found, 4)


def test_a_perfect_model_has_a_perfect_interval() -> None:
    truth = np.random.default_rng(0).random((60, 4)) < 0.5
    logits = np.where(truth, 4, -4).astype(np.float32)
    found = bootstrap.intervals(influences(RandomPredictions(logits, truth)), 0)
    assert all(ends == [1, 1] for category in found.values() for ends in category.values())


@pytest.mark.parametrize("pictures", [0, 5])
def test_where_there_is_nothing_to_judge_intervals_are_empty(pictures: int) -> None:
    found = bootstrap.intervals(influences(random_predictions(pictures, 4, density=0)), 0)
    assert all(ends == [0, 0] for ends in found[OVERALL].values())


def test_a_model_differs_from_itself_by_nothing() -> None:
    found = influences(random_predictions(100, 6))
    compared = bootstrap.differences(found, found, 0)
    assert all(values == [0, 0, 0] for values in compared[OVERALL].values())


def test_differences_on_the_same_pictures_are_told_more_surely_than_apart() -> None:
    one = random_predictions(400, 12)
    noise = np.random.default_rng(5).normal(0, 0.4, one.logits.shape)
    other = RandomPredictions((one.logits + noise).astype(np.float16).astype(np.float32), one.truth)
    better, worse = influences(one), influences(other)
    compared = bootstrap.differences(better, worse, 0)
    for name in ("macro_ap", "micro_ap"):
        difference, low, high = compared[OVERALL][name]
        assert low < difference < high
        assert low > 0
        alone = np.ptp(bootstrap.intervals(better, 0)[OVERALL][name])
        assert high - low < alone / 1.5
        there = better.metrics[-1][name] - worse.metrics[-1][name]
        assert difference == pytest.approx(there)


def test_models_judged_on_other_pictures_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different pictures"):
        bootstrap.differences(
            influences(random_predictions(30, 4)), influences(random_predictions(31, 4)), 0
        )


def test_groups_are_drawn_once_on_average_as_poissons_law_says() -> None:
    weights = bootstrap._weights(2000, 0)
    shares = np.bincount(weights.ravel(), minlength=10)[:4] / weights.size
    assert shares == pytest.approx(np.exp(-1) / np.array([1, 1, 2, 6]), abs=2e-3)
