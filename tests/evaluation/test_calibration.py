"""Fitted temperatures undo a scaling of the logits, and keep the order of scores."""

import numpy as np
import pytest
from scipy.special import expit

from support.predictions import RandomPredictions, TemporaryStore, make_tags
from tagger.core import calibration
from tagger.core.calibration import Temperatures
from tagger.core.thresholds import ALL
from tagger.evaluation import calibration as fit_calibration
from tagger.evaluation import score_counts, tag_metrics


def calibrated_predictions(images: int, count: int, seed: int = 0) -> RandomPredictions:
    """Draw labels as often as the logits say."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 2, (images, count)).astype(np.float32)
    return RandomPredictions(logits, random.random(logits.shape) < expit(logits))


def fit(predictions: RandomPredictions) -> Temperatures:
    tags = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions) as store:
        return fit_calibration.fit(score_counts.count(store, tag_metrics.pool_numbers(tags)), tags)


def test_each_category_gets_its_temperature() -> None:
    predictions = calibrated_predictions(3000, 8)
    predictions.logits[:, :4] *= 2
    predictions.logits[:, 4:] *= 0.5
    temperatures = fit(predictions)
    assert temperatures["general"] == pytest.approx(2, rel=0.05)
    assert temperatures["character"] == pytest.approx(0.5, rel=0.05)
    assert 0.5 < temperatures[ALL] < 2
    values = calibration.per_tag(temperatures, make_tags(8), "category")
    assert values.tolist() == [temperatures["general"]] * 4 + [temperatures["character"]] * 4
    assert set(calibration.per_tag(temperatures, make_tags(8), "global")) == {temperatures[ALL]}


def test_no_other_temperature_has_a_lower_loss() -> None:
    predictions = calibrated_predictions(400, 2)
    predictions.logits[:] *= 1.5
    temperatures = fit(predictions)[ALL]

    def loss(temperature: float) -> float:
        p = expit(predictions.logits.astype(np.float16).astype(np.float64) / temperature)
        return float(-np.log(np.where(predictions.truth, p, 1 - p)).mean())

    assert loss(temperatures) < min(loss(temperatures * 0.99), loss(temperatures * 1.01))


def test_calibration_keeps_the_decisions() -> None:
    predictions = calibrated_predictions(3000, 4)
    overconfident = expit(3 * predictions.logits)
    fitted = fit(RandomPredictions(3 * predictions.logits, predictions.truth))
    temperatures = calibration.per_tag(fitted, make_tags(4), "category")
    p = calibration.calibrate(overconfident, temperatures)
    assert np.abs(p - expit(predictions.logits)).max() < 0.02
    thresholds = np.array([0.2, 0.5, 0.9, 0.7])
    moved = calibration.calibrate(thresholds, temperatures)
    assert np.array_equal(p >= moved, overconfident >= thresholds)


@pytest.mark.parametrize("truth", [False, True])
def test_a_category_with_only_true_or_false_pairs_has_the_overall_temperature(truth: bool) -> None:
    predictions = calibrated_predictions(500, 4)
    predictions.truth[:, 2:] = truth
    temperatures = fit(predictions)
    assert temperatures["character"] == temperatures[ALL]
    predictions.truth[:] = truth
    assert set(fit(predictions).values()) == {1.0}


def test_temperatures_of_perfect_and_inverted_scores_are_bounded() -> None:
    logits = np.array([[2.0], [-2.0]], np.float32)
    assert fit(RandomPredictions(logits, logits > 0))[ALL] == 0.2
    assert fit(RandomPredictions(logits, logits < 0))[ALL] == 5.0
