"""Metrics of categories and bands are those of their tags alone; tables hold the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve
from torchmetrics.functional.classification import binary_calibration_error

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core.logits import sigmoid
from tagger.core.vocabulary import CATEGORIES
from tagger.evaluation import result, tag_metrics
from tagger.evaluation.report import tables
from tagger.evaluation.result import EvaluationResult
from tagger.evaluation.tag_metrics import BANDS

THRESHOLDS = np.linspace(0.2, 0.6, 12)


def evaluate(predictions: RandomPredictions) -> EvaluationResult:
    count = predictions.truth.shape[1]
    with TemporaryStore(predictions) as store:
        return result.evaluate(store, make_tags(count, (9, 0, 4)), THRESHOLDS[:count], seed=0)


def test_each_category_is_evaluated_as_if_alone() -> None:
    predictions = random_predictions(200, 12)
    metrics = evaluate(predictions).metrics
    assert list(metrics["categories"]) == ["rating", "general", "character"]
    for number, category_metrics in enumerate(metrics["categories"].values()):
        inside = slice(4 * number, 4 * number + 4)
        truth, logits = predictions.truth[:, inside], predictions.logits[:, inside]
        predicted = sigmoid(logits) >= THRESHOLDS[inside]
        assert category_metrics["tags"] == 4
        for average in ("macro", "micro"):
            ap = average_precision_score(truth, logits, average=average)
            assert category_metrics[f"{average}_ap"] == pytest.approx(ap, abs=1e-6)
            f1 = f1_score(truth, predicted, average=average)
            assert category_metrics[f"{average}_f1"] == pytest.approx(f1, abs=1e-6)
        for metric, (low, high) in category_metrics["intervals"].items():
            assert 0 <= low <= category_metrics[metric] <= high <= 1


def test_bands_are_a_tenth_four_tenths_and_half_of_the_tags_by_count() -> None:
    counts = np.random.default_rng(0).permutation(np.arange(100))
    numbers = tag_metrics.frequency_bands(counts)
    assert np.bincount(numbers).tolist() == [10, 40, 50]
    assert counts[numbers == 0].min() > counts[numbers == 1].max()
    assert counts[numbers == 1].min() > counts[numbers == 2].max()
    assert tag_metrics.frequency_bands([]).tolist() == []
    metrics = evaluate(random_predictions(100, 12)).metrics
    assert list(metrics["bands"]) == list(BANDS)
    assert [band["tags"] for band in metrics["bands"].values()] == [2, 4, 6]
    assert metrics["bands"]["head"]["counts"] == [999, 1000]


def test_every_tag_has_a_row_and_no_average_precision_without_support() -> None:
    predictions = random_predictions(150, 12)
    predictions.truth[:, 5] = False
    tags = make_tags(12, (9, 0, 4))
    rows = tables.tag_rows(evaluate(predictions).counts, tags, THRESHOLDS)
    for number, (tag, row) in enumerate(zip(tags, rows, strict=True)):
        named = dict(zip(tables.TAG_HEADER, row, strict=True))
        truth = predictions.truth[:, number]
        predicted = sigmoid(predictions.logits[:, number]) >= THRESHOLDS[number]
        assert (named["name"], named["category"]) == (tag.name, CATEGORIES[tag.category])
        assert (named["count"], named["support"]) == (tag.count, truth.sum())
        assert named["f1"] == pytest.approx(f1_score(truth, predicted, zero_division=0), abs=1e-6)
        p = torch.tensor(sigmoid(predictions.logits[:, number]))
        error = binary_calibration_error(p, torch.tensor(truth, dtype=torch.long), n_bins=15)
        assert named["ece"] == pytest.approx(float(error), abs=1e-6)
        assert named["brier"] == pytest.approx(((p.numpy() - truth) ** 2).mean(), abs=1e-6)
    assert rows[5][tables.TAG_HEADER.index("ap")] == ""


@settings(max_examples=40)
@given(small_predictions())
def test_every_point_of_the_precision_recall_curve_is_of_a_threshold(
    predictions: RandomPredictions,
) -> None:
    points = tables.pr_rows(evaluate(predictions).counts)
    if not predictions.truth.any():
        assert points == []
        return
    precision, recall, _ = precision_recall_curve(
        predictions.truth.ravel(), predictions.logits.ravel()
    )
    expected_points = {
        (round(float(r), 6), round(float(p), 6)) for r, p in zip(recall, precision, strict=True)
    }
    assert {(float(r), float(p)) for r, p in points} <= expected_points
    assert [r for r, _ in points] == sorted({r for r, _ in points})
    assert points[-1][0] == 1


def test_f1_by_threshold_equals_scikit_learn() -> None:
    predictions = random_predictions(120, 6)
    rows = tables.f1_rows(evaluate(predictions).counts)
    for row in rows[::14]:
        named = dict(zip(tables.F1_HEADER, row, strict=True))
        predicted = sigmoid(predictions.logits) >= named["threshold"]
        for average in ("macro", "micro"):
            expected = f1_score(predictions.truth, predicted, average=average, zero_division=0)
            assert named[f"{average}_f1"] == pytest.approx(expected, abs=1e-6)


def test_reliability_is_the_fraction_of_true_tags_by_confidence() -> None:
    predictions = random_predictions(300, 4)
    confidences = sigmoid(predictions.logits).ravel()
    rows = tables.reliability_rows(evaluate(predictions).counts)
    assert sum(pairs for *_, pairs in rows) == 1200
    bins = np.minimum((confidences * 15).astype(int), 14)
    for (confidence, true, pairs), number in zip(rows, np.unique(bins), strict=True):
        assert pairs == (bins == number).sum()
        assert confidence == pytest.approx(confidences[bins == number].mean(), abs=1e-6)
        fraction = predictions.truth.ravel()[bins == number].mean()
        assert true == pytest.approx(fraction, abs=1e-6)
