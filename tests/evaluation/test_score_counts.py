"""Metrics from counted scores equal those of scikit-learn and torchmetrics, ties included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    coverage_error,
    label_ranking_average_precision_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_matthews_corrcoef,
    multilabel_ranking_average_precision,
)

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core.arrays import Ints
from tagger.core.logits import sigmoid
from tagger.evaluation import quantized_logits, ranking, result, score_counts, tag_metrics
from tagger.evaluation.ranking import Ranking
from tagger.evaluation.report import tables
from tagger.evaluation.score_counts import ScoreCounts
from tagger.evaluation.tag_metrics import MetricTree


def measure(
    predictions: RandomPredictions, threshold: float = 0.4, unlabelled: list[Ints] | None = None
) -> tuple[ScoreCounts, Ranking, MetricTree]:
    tags = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions, unlabelled=unlabelled or []) as store:
        return result.measure(store, tags, np.full(len(tags), threshold))


@pytest.mark.parametrize(("density", "steps"), [(0.3, 0), (0.02, 0), (0.5, 4), (0.98, 0)])
def test_metrics_of_each_tag_equal_scikit_learn(density: float, steps: int) -> None:
    predictions = random_predictions(400, 7, density=density, steps=steps)
    counts, *_ = measure(predictions)
    p = sigmoid(predictions.logits)
    each = tag_metrics.decision_metrics(counts.decisions(0))
    for tag, truth in enumerate(predictions.truth.T):
        if not truth.any():
            assert np.isnan(counts.average_precision[tag])
            continue
        predicted = p[:, tag] >= 0.4
        assert counts.average_precision[tag] == pytest.approx(
            average_precision_score(truth, predictions.logits[:, tag]), abs=1e-9
        )
        expected = precision_recall_fscore_support(
            truth, predicted, average="binary", zero_division=0
        )
        actual = [each[name][tag] for name in ("precision", "recall", "f1")]
        assert actual == pytest.approx(expected[:3], abs=1e-9)
        assert each["mcc"][tag] == pytest.approx(matthews_corrcoef(truth, predicted), abs=1e-9)
        brier, loss = (
            values[tag] / len(truth) for values in (counts.squared_error, counts.cross_entropy)
        )
        assert brier == pytest.approx(brier_score_loss(truth, p[:, tag], pos_label=True), abs=1e-9)
        assert loss == pytest.approx(log_loss(truth, p[:, tag], labels=[False, True]), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_over_all_tags_equal_scikit_learn_and_torchmetrics(seed: int) -> None:
    predictions = random_predictions(300, 9, seed, steps=[0, 0, 6][seed])
    counts, image_ranking, metrics = measure(predictions)
    truth, logits = predictions.truth, predictions.logits
    p, y = torch.tensor(sigmoid(logits)), torch.tensor(truth, dtype=torch.long)
    for average in ("macro", "micro"):
        f1 = multilabel_f1_score(p, y, num_labels=9, average=average, threshold=0.4)
        assert metrics[f"{average}_f1"] == pytest.approx(float(f1), abs=2e-6)
        ap = multilabel_average_precision(p, y, num_labels=9, average=average)
        assert metrics[f"{average}_ap"] == pytest.approx(float(ap), abs=2e-6)
        expected = average_precision_score(truth, logits, average=average)
        assert metrics[f"{average}_ap"] == pytest.approx(expected, abs=1e-6)
    error = binary_calibration_error(p.flatten(), y.flatten(), n_bins=15, norm="l1")
    assert metrics["ece"] == pytest.approx(float(error), abs=1e-6)
    mcc = multilabel_matthews_corrcoef(p, y, num_labels=9, threshold=0.4)
    assert metrics["micro_mcc"] == pytest.approx(float(mcc), abs=2e-6)
    assert metrics["brier"] == pytest.approx(((sigmoid(logits) - truth) ** 2).mean(), abs=1e-6)
    nats = torch.nn.functional.binary_cross_entropy(p, y.double(), reduction="sum") / 300
    assert metrics["loss"] == pytest.approx(float(nats), abs=1e-5)
    assert image_ranking.loss.sum() == pytest.approx(counts.cross_entropy.sum())
    assert metrics["coverage"] == pytest.approx(coverage_error(truth, logits), abs=1e-6)
    expected = label_ranking_average_precision_score(truth, logits)
    assert metrics["label_ranking_ap"] == pytest.approx(expected, abs=1e-6)
    if seed < 2:  # torchmetrics ranks ties in their order
        ranks = multilabel_ranking_average_precision(p, y, num_labels=9)
        assert metrics["label_ranking_ap"] == pytest.approx(float(ranks), abs=2e-6)


@settings(max_examples=60)
@given(small_predictions())
def test_ranking_of_each_image_equals_scikit_learn(predictions: RandomPredictions) -> None:
    if predictions.truth.shape[1] == 1:  # two classes to scikit-learn
        return
    with TemporaryStore(predictions) as store:
        image_ranking = ranking.rank_labels(store)
    for row, (logits, truth) in enumerate(zip(*predictions, strict=True)):
        assert image_ranking.coverage[row] == coverage_error(truth[None], logits[None])
        expected = label_ranking_average_precision_score(truth[None], logits[None])
        assert image_ranking.label_ranking_ap[row] == pytest.approx(expected)


@settings(max_examples=40)
@given(small_predictions())
def test_decisions_count_scores_that_reach_the_threshold(predictions: RandomPredictions) -> None:
    scores = quantized_logits.quantize(predictions.logits)
    random = np.random.default_rng(0)
    thresholds = np.stack([random.choice(column, 4) for column in scores.T]).astype(np.uint16)
    pools = tag_metrics.pool_numbers(make_tags(len(thresholds)))
    with TemporaryStore(predictions) as store:
        counts = score_counts.count(store, pools, thresholds=thresholds)
        alone = score_counts.count_decisions(store, thresholds)
    for index in range(4):
        reached = scores >= thresholds[:, index]
        decisions = counts.decisions(index)
        assert decisions.predicted.tolist() == reached.sum(axis=0).tolist()
        true = (reached & predictions.truth).sum(axis=0)
        assert decisions.true_positives.tolist() == true.tolist()
        assert np.array_equal(decisions, alone[index])


def test_unknown_labels_do_not_count() -> None:
    predictions = random_predictions(120, 6)
    predictions.truth[::3, :2] = False
    labelled_images = predictions.truth[:, :2].any(axis=1)
    counts, image_ranking, metrics = measure(predictions, unlabelled=[np.array([0, 1])])
    alone, *_ = measure(
        RandomPredictions(predictions.logits[labelled_images], predictions.truth[labelled_images])
    )
    assert counts.labelled.tolist() == [labelled_images.sum()] * 2 + [120] * 4
    assert counts.average_precision[:2] == pytest.approx(alone.average_precision[:2])
    for actual, expected in zip(counts.decisions(0), alone.decisions(0), strict=True):
        assert actual[:2].tolist() == expected[:2].tolist()
    assert metrics["unknown"] == 2 * (~labelled_images).sum()
    rest, labels = (
        predictions.logits[~labelled_images][:, 2:],
        predictions.truth[~labelled_images][:, 2:],
    )
    assert image_ranking.coverage[~labelled_images].mean() == pytest.approx(
        coverage_error(labels, rest)
    )
    expected_ap = label_ranking_average_precision_score(labels, rest)
    assert image_ranking.label_ranking_ap[~labelled_images].mean() == pytest.approx(expected_ap)


def test_tags_without_a_positive_do_not_count_in_macro_metrics() -> None:
    predictions = random_predictions(80, 5)
    predictions.truth[:, 3] = False
    _, _, metrics = measure(predictions)
    supported = predictions.truth.any(axis=0)
    assert (metrics["tags"], metrics["unsupported"], metrics["images"]) == (4, 1, 80)
    expected = average_precision_score(
        predictions.truth[:, supported], predictions.logits[:, supported]
    )
    assert metrics["macro_ap"] == pytest.approx(expected, abs=1e-6)


def test_a_tag_on_every_image_is_perfect_and_has_no_correlation() -> None:
    predictions = random_predictions(80, 3)
    predictions.truth[:, 1] = True
    counts, *_ = measure(predictions, threshold=1e-4)
    assert counts.average_precision[1] == 1
    each = tag_metrics.decision_metrics(counts.decisions(0))
    assert (each["f1"][1], each["mcc"][1]) == (1, 0)


@pytest.mark.parametrize("images", [0, 3])
def test_metrics_without_a_positive_are_zero(images: int) -> None:
    counts, _, metrics = measure(random_predictions(images, 3, density=0))
    assert {metrics[name] for name in ("macro_ap", "micro_ap", "macro_f1", "micro_f1")} == {0}
    assert (metrics["images"], metrics["unsupported"]) == (images, 3)
    assert tables.pr_rows(counts) == []
    assert len(tables.f1_rows(counts)) == len(score_counts.CURVE_THRESHOLDS)


def test_excluded_images_do_not_count() -> None:
    predictions = random_predictions(90, 4)
    excluded = np.arange(90) % 3 == 0
    thresholds = np.full((4, 1), 1 << 15, np.uint16)
    pools = tag_metrics.pool_numbers(make_tags(4))
    with TemporaryStore(predictions) as store:
        counts = score_counts.count(store, pools, thresholds=thresholds, excluded=excluded)
        (decisions,) = score_counts.count_decisions(store, thresholds, excluded)
    rest = RandomPredictions(predictions.logits[~excluded], predictions.truth[~excluded])
    with TemporaryStore(rest) as store:
        alone = score_counts.count(store, pools, thresholds=thresholds)
    assert np.array_equal(decisions, alone.decisions(0))
    assert np.array_equal(counts.decisions(0), alone.decisions(0))
    assert counts.average_precision == pytest.approx(alone.average_precision)
    for actual, expected in zip(counts.pools, alone.pools, strict=True):
        assert np.array_equal(actual, expected)
