"""Temperatures undo what scaled the logits, and change no order."""

import numpy as np
import pytest
from scipy.special import expit

from support.predictions import RandomPredictions, TemporaryStore, make_tags
from tagger.core import calibration
from tagger.core.calibration import Temperatures
from tagger.core.thresholds import ALL
from tagger.evaluation import calibration as fit_calibration
from tagger.evaluation import score_counts, tag_metrics


def honest(pictures: int, count: int, seed: int = 0) -> RandomPredictions:
    """Draw labels as often as the logits say."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 2, (pictures, count)).astype(np.float32)
    return RandomPredictions(logits, random.random(logits.shape) < expit(logits))


def fit(predictions: RandomPredictions) -> Temperatures:
    listed = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions) as scored:
        return fit_calibration.fit(
            score_counts.count(scored, tag_metrics.pool_numbers(listed)), listed
        )


def test_the_temperature_of_each_category_is_found() -> None:
    predictions = honest(3000, 8)
    predictions.logits[:, :4] *= 2
    predictions.logits[:, 4:] *= 0.5
    found = fit(predictions)
    assert found["general"] == pytest.approx(2, rel=0.05)
    assert found["character"] == pytest.approx(0.5, rel=0.05)
    assert 0.5 < found[ALL] < 2
    limits = calibration.per_tag(found, make_tags(8), "category")
    assert limits.tolist() == [found["general"]] * 4 + [found["character"]] * 4
    assert set(calibration.per_tag(found, make_tags(8), "global")) == {found[ALL]}


def test_no_other_temperature_has_a_lower_loss() -> None:
    predictions = honest(400, 2)
    predictions.logits[:] *= 1.5
    found = fit(predictions)[ALL]

    def loss(temperature: float) -> float:
        p = expit(predictions.logits.astype(np.float16).astype(np.float64) / temperature)
        return float(-np.log(np.where(predictions.truth, p, 1 - p)).mean())

    assert loss(found) < min(loss(found * 0.99), loss(found * 1.01))


def test_it_calibrates_and_keeps_the_decisions() -> None:
    predictions = honest(3000, 4)
    overconfident = expit(3 * predictions.logits)
    found = fit(RandomPredictions(3 * predictions.logits, predictions.truth))
    temperatures = calibration.per_tag(found, make_tags(4), "category")
    p = calibration.calibrate(overconfident, temperatures)
    assert np.abs(p - expit(predictions.logits)).max() < 0.02
    limits = np.array([0.2, 0.5, 0.9, 0.7])
    moved = calibration.calibrate(limits, temperatures)
    assert np.array_equal(p >= moved, overconfident >= limits)


@pytest.mark.parametrize("truth", [False, True])
def test_where_all_or_no_pairs_are_true_the_rest_decides(truth: bool) -> None:
    predictions = honest(500, 4)
    predictions.truth[:, 2:] = truth
    found = fit(predictions)
    assert found["character"] == found[ALL]
    predictions.truth[:] = truth
    assert set(fit(predictions).values()) == {1.0}


def test_scores_that_part_rightly_or_wrongly_throughout_have_a_temperature_within_bounds() -> None:
    logits = np.array([[2.0], [-2.0]], np.float32)
    assert fit(RandomPredictions(logits, logits > 0))[ALL] == 0.2
    assert fit(RandomPredictions(logits, logits < 0))[ALL] == 5.0
