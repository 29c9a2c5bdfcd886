"""The figures of categories and bands are those of their tags alone; tables say the same."""

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

LIMITS = np.linspace(0.2, 0.6, 12)


def judge(predictions: RandomPredictions) -> EvaluationResult:
    count = predictions.truth.shape[1]
    with TemporaryStore(predictions) as scored:
        return result.evaluate(scored, make_tags(count, (9, 0, 4)), LIMITS[:count], seed=0)


def test_each_category_is_judged_as_if_alone() -> None:
    predictions = random_predictions(200, 12)
    summary = judge(predictions).metrics
    assert list(summary["categories"]) == ["rating", "general", "character"]
    for number, found in enumerate(summary["categories"].values()):
        inside = slice(4 * number, 4 * number + 4)
        truth, logits = predictions.truth[:, inside], predictions.logits[:, inside]
        chosen = sigmoid(logits) >= LIMITS[inside]
        assert found["tags"] == 4
        for average in ("macro", "micro"):
            ap = average_precision_score(truth, logits, average=average)
            assert found[f"{average}_ap"] == pytest.approx(ap, abs=1e-6)
            f1 = f1_score(truth, chosen, average=average)
            assert found[f"{average}_f1"] == pytest.approx(f1, abs=1e-6)
        for measure, (low, high) in found["intervals"].items():
            assert 0 <= low <= found[measure] <= high <= 1


def test_bands_are_a_tenth_four_tenths_and_half_of_the_tags_by_count() -> None:
    counts = np.random.default_rng(0).permutation(np.arange(100))
    numbers = tag_metrics.frequency_bands(counts)
    assert np.bincount(numbers).tolist() == [10, 40, 50]
    assert counts[numbers == 0].min() > counts[numbers == 1].max()
    assert counts[numbers == 1].min() > counts[numbers == 2].max()
    assert tag_metrics.frequency_bands([]).tolist() == []
    summary = judge(random_predictions(100, 12)).metrics
    assert list(summary["bands"]) == list(BANDS)
    assert [band["tags"] for band in summary["bands"].values()] == [2, 4, 6]
    assert summary["bands"]["head"]["counts"] == [999, 1000]


def test_every_tag_has_a_row_and_no_precision_without_support() -> None:
    predictions = random_predictions(150, 12)
    predictions.truth[:, 5] = False
    listed = make_tags(12, (9, 0, 4))
    rows = tables.tag_rows(judge(predictions).counts, listed, LIMITS)
    for number, (tag, row) in enumerate(zip(listed, rows, strict=True)):
        named = dict(zip(tables.TAG_HEADER, row, strict=True))
        truth = predictions.truth[:, number]
        chosen = sigmoid(predictions.logits[:, number]) >= LIMITS[number]
        assert (named["name"], named["category"]) == (tag.name, CATEGORIES[tag.category])
        assert (named["count"], named["support"]) == (tag.count, truth.sum())
        assert named["f1"] == pytest.approx(f1_score(truth, chosen, zero_division=0), abs=1e-6)
        p = torch.tensor(sigmoid(predictions.logits[:, number]))
        error = binary_calibration_error(p, torch.tensor(truth, dtype=torch.long), n_bins=15)
        assert named["ece"] == pytest.approx(float(error), abs=1e-6)
        assert named["brier"] == pytest.approx(((p.numpy() - truth) ** 2).mean(), abs=1e-6)
    assert rows[5][tables.TAG_HEADER.index("ap")] == ""


@settings(max_examples=40)
@given(small_predictions())
def test_every_point_of_the_curve_can_be_had_with_a_threshold(
    predictions: RandomPredictions,
) -> None:
    points = tables.pr_rows(judge(predictions).counts)
    if not predictions.truth.any():
        assert points == []
        return
    precision, recall, _ = precision_recall_curve(
        predictions.truth.ravel(), predictions.logits.ravel()
    )
    known = {
        (round(float(r), 6), round(float(p), 6)) for r, p in zip(recall, precision, strict=True)
    }
    assert {(float(r), float(p)) for r, p in points} <= known
    assert [r for r, _ in points] == sorted({r for r, _ in points})
    assert points[-1][0] == 1


def test_f1_by_threshold_is_scikit_learns() -> None:
    predictions = random_predictions(120, 6)
    rows = tables.f1_rows(judge(predictions).counts)
    for row in rows[::14]:
        named = dict(zip(tables.F1_HEADER, row, strict=True))
        chosen = sigmoid(predictions.logits) >= named["threshold"]
        for average in ("macro", "micro"):
            theirs = f1_score(predictions.truth, chosen, average=average, zero_division=0)
            assert named[f"{average}_f1"] == pytest.approx(theirs, abs=1e-6)


def test_reliability_says_how_often_tags_are_there_by_confidence() -> None:
    predictions = random_predictions(300, 4)
    confidences = sigmoid(predictions.logits).ravel()
    rows = tables.reliability_rows(judge(predictions).counts)
    assert sum(pairs for *_, pairs in rows) == 1200
    bins = np.minimum((confidences * 15).astype(int), 14)
    for (confidence, true, pairs), number in zip(rows, np.unique(bins), strict=True):
        assert pairs == (bins == number).sum()
        assert confidence == pytest.approx(confidences[bins == number].mean(), abs=1e-6)
        share = predictions.truth.ravel()[bins == number].mean()
        assert true == pytest.approx(share, abs=1e-6)
