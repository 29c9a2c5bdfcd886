"""Intervals are as wide as those of resampled groups, and cover what they promise."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score

from support.predictions import RandomPredictions, TemporaryStore, make_tags, random_predictions
from tagger.core.arrays import Floats, Ints
from tagger.evaluation import bootstrap, jackknife, score_counts, tag_metrics
from tagger.evaluation.bootstrap import METRICS, OVERALL, Intervals
from tagger.evaluation.jackknife import Jackknife
from tagger.evaluation.metrics import dense

THRESHOLD = 0.4


def compute_jackknife(predictions: RandomPredictions, groups: Ints | None = None) -> Jackknife:
    tags = make_tags(predictions.truth.shape[1])
    thresholds = np.full(len(tags), THRESHOLD)
    quantized = score_counts.evaluation_thresholds(thresholds)
    with TemporaryStore(predictions, groups) as store:
        counts = score_counts.count(store, tag_metrics.pool_numbers(tags), thresholds=quantized)
        return jackknife.compute(store, counts, tags, thresholds)


def metrics_of(predictions: RandomPredictions, rows: Ints) -> list[float]:
    """Return METRICS of images, some of them more than once."""
    logits, truth = predictions.logits[rows], predictions.truth[rows]
    supported, predicted = truth.any(axis=0), expit(logits) >= THRESHOLD
    arguments = {"zero_division": 0.0}
    macro_f1 = 0.0
    if supported.any():
        columns = truth[:, supported], predicted[:, supported]
        macro_f1 = f1_score(*columns, average="macro", **arguments)
    return [
        dense.macro_ap(logits, truth),
        dense.micro_ap(logits, truth),
        macro_f1,
        f1_score(truth, predicted, average="micro", **arguments),
    ]


def resampled_metrics(predictions: RandomPredictions, groups: Ints, times: int) -> Floats:
    """Return the metrics of each resample, (times, metrics), of the images themselves."""
    random = np.random.default_rng(1)
    metrics = []
    for _ in range(times):
        weights = random.poisson(1, groups.max() + 1)[groups]
        metrics.append(metrics_of(predictions, np.repeat(np.arange(len(groups)), weights)))
    return np.array(metrics)


def half_widths(intervals: Intervals, category: str = OVERALL) -> Floats:
    return np.array([np.ptp(intervals[category][name]) / 2 for name in METRICS])


@pytest.mark.parametrize(("density", "of_each"), [(0.02, 1), (0.3, 1), (0.3, 4)])
def test_intervals_are_as_wide_as_those_of_resampled_groups(density: float, of_each: int) -> None:
    predictions = random_predictions(400, 20, density=density)
    groups = np.arange(400) // of_each
    if of_each > 1:  # images of a group are alike
        first = groups * of_each
        predictions = RandomPredictions(predictions.logits[first], predictions.truth[first])
    ours = half_widths(bootstrap.intervals(compute_jackknife(predictions, groups), seed=0))
    reference = resampled_metrics(predictions, groups, 300)
    assert ours == pytest.approx(1.96 * reference.std(axis=0), rel=0.2)


def test_95_percent_intervals_cover_the_expected_metric_95_percent_of_the_time() -> None:
    """On as many other images: on more images, average precision is a little lower."""
    ends = []
    for seed in range(100):
        values = compute_jackknife(random_predictions(200, 8, seed, density=0.1))
        intervals = bootstrap.intervals(values, seed)[OVERALL]
        ends.append([(*intervals[name], values.metrics[-1][name]) for name in METRICS])
    low, high, metric = np.moveaxis(np.array(ends), -1, 0)
    expected = metric.mean(axis=0)
    covered = ((low <= expected) & (expected <= high)).mean(axis=0)
    assert ((covered > 0.88) & (covered <= 0.99)).all(), covered


def test_the_seed_determines_the_intervals() -> None:
    values = compute_jackknife(random_predictions(100, 6))
    assert bootstrap.intervals(values, 3) == bootstrap.intervals(values, 3)
    assert bootstrap.intervals(values, 3) != bootstrap.intervals(values, 4)


def test_a_perfect_model_has_a_perfect_interval() -> None:
    truth = np.random.default_rng(0).random((60, 4)) < 0.5
    logits = np.where(truth, 4, -4).astype(np.float32)
    intervals = bootstrap.intervals(compute_jackknife(RandomPredictions(logits, truth)), 0)
    assert all(ends == [1, 1] for category in intervals.values() for ends in category.values())


@pytest.mark.parametrize("images", [0, 5])
def test_intervals_without_a_positive_are_zero(images: int) -> None:
    values = compute_jackknife(random_predictions(images, 4, density=0))
    assert all(ends == [0, 0] for ends in bootstrap.intervals(values, 0)[OVERALL].values())


def test_a_model_does_not_differ_from_itself() -> None:
    values = compute_jackknife(random_predictions(100, 6))
    differences = bootstrap.differences(values, values, 0)
    assert all(row == [0, 0, 0] for row in differences[OVERALL].values())


def test_paired_differences_have_narrower_intervals_than_the_metrics() -> None:
    predictions = random_predictions(400, 12)
    noise = np.random.default_rng(5).normal(0, 0.4, predictions.logits.shape)
    noisy = (predictions.logits + noise).astype(np.float16).astype(np.float32)
    better = compute_jackknife(predictions)
    worse = compute_jackknife(RandomPredictions(noisy, predictions.truth))
    differences = bootstrap.differences(better, worse, 0)
    for name in ("macro_ap", "micro_ap"):
        difference, low, high = differences[OVERALL][name]
        assert 0 < low < difference < high
        assert high - low < np.ptp(bootstrap.intervals(better, 0)[OVERALL][name]) / 1.5
        expected = better.metrics[-1][name] - worse.metrics[-1][name]
        assert difference == pytest.approx(expected)


def test_models_evaluated_on_different_images_are_not_compared() -> None:
    statistics, other = (compute_jackknife(random_predictions(images, 4)) for images in (30, 31))
    with pytest.raises(ValueError, match="different images"):
        bootstrap.differences(statistics, other, 0)


def test_resample_weights_follow_poissons_law_with_mean_one() -> None:
    weights = bootstrap.draw_weights(2000, 0)
    fractions = np.bincount(weights.ravel(), minlength=10)[:4] / weights.size
    assert fractions == pytest.approx(np.exp(-1) / np.array([1, 1, 2, 6]), abs=2e-3)
