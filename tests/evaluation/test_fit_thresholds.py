"""Thresholds are the best for each objective; those of rare tags are shrunk to their category's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core import thresholds
from tagger.core.arrays import Floats, Scores, Truth
from tagger.core.logits import logit, sigmoid
from tagger.core.thresholds import ALL, Objective, Threshold
from tagger.core.vocabulary import CATEGORIES
from tagger.evaluation import (
    fit_thresholds,
    objectives,
    quantized_logits,
    score_counts,
    tag_metrics,
)
from tagger.evaluation.objectives import DecisionCurves
from tagger.evaluation.score_counts import Histogram


def fit(predictions: RandomPredictions, objective: Objective = "f1") -> list[Threshold]:
    with TemporaryStore(predictions) as store:
        return fit_thresholds.fit(store, make_tags(predictions.truth.shape[1]), objective)


def best(
    predictions: RandomPredictions, objective: Objective = "f1", target: float | None = None
) -> tuple[Floats, float]:
    """Return the best threshold of each tag and of all pairs, as probabilities."""
    with TemporaryStore(predictions) as store:
        counts = score_counts.count(store, np.zeros(store.tag_count, np.int64))
    everything = counts.pooled(np.ones(len(counts), np.bool_))
    tags, (pooled,) = (
        sigmoid(objectives.best_thresholds(curves, objective, target))
        for curves in (DecisionCurves.of_tags(counts), DecisionCurves.of_pool(everything))
    )
    return tags, float(pooled)


def all_thresholds(scores: Scores) -> Floats:
    """Return a threshold for each way to separate some scores, falling."""
    seen = np.unique(scores)[::-1].astype(np.float64)
    return np.array([np.inf, *((seen[:-1] + seen[1:]) / 2), -np.inf])


def precision_recall(truth: Truth, decisions: Truth) -> tuple[Floats, Floats]:
    """Return precision and recall of each row of decisions, (rows, images), 0 for 0 / 0."""
    true = (decisions & truth).sum(axis=-1)
    return true / np.maximum(1, decisions.sum(axis=-1)), true / truth.sum()


@settings(max_examples=25)
@given(small_predictions(), st.sampled_from([0.3, 0.6, 1.0]))
def test_fitted_thresholds_are_the_best(predictions: RandomPredictions, target: float) -> None:
    logits, truth = predictions
    columns = [*zip(logits.T, truth.T, strict=True), (logits.ravel(), truth.ravel())]
    goals: dict[Objective, float | None] = {"f1": None, "precision_recall": None}
    goals |= {"precision": target, "recall": target}
    fitted = {objective: best(predictions, objective, goals[objective]) for objective in goals}
    for place, (scores, labels) in enumerate(columns):
        thresholds = {name: [*tags, pooled][place] for name, (tags, pooled) in fitted.items()}
        if not labels.any():
            assert np.isnan(list(thresholds.values())).all()
            continue
        chosen = {name: sigmoid(scores) >= value for name, value in thresholds.items()}
        others = scores >= all_thresholds(scores)[:, None]
        predicted, (precision, recall) = others.sum(axis=1), precision_recall(labels, others)
        f1 = 2 * precision * recall / np.maximum(1e-12, precision + recall)
        assert f1_score(labels, chosen["f1"]) == pytest.approx(f1.max())
        fits = predicted[predicted <= labels.sum()]
        assert chosen["precision_recall"].sum() == fits.max()
        assert chosen["recall"].sum() == predicted[recall >= target - 1e-12].min()
        reached = recall[(predicted > 0) & (precision >= target - 1e-12)].max(initial=0)
        assert np.isnan(thresholds["precision"]) == (reached == 0)
        if reached:
            assert precision_score(labels, chosen["precision"]) >= target - 1e-12
            assert recall_score(labels, chosen["precision"]) == pytest.approx(reached)


def test_a_threshold_lies_halfway_between_scores() -> None:
    logits = np.array([[3.0], [1.0], [-1.0], [-2.0]], np.float32)
    tag_thresholds, pooled = best(RandomPredictions(logits, logits > 0))
    assert tag_thresholds.tolist() == [pooled] == [0.5]


def test_pools_of_billions_of_pairs_do_not_overflow() -> None:
    high, low = quantized_logits.quantize(np.array([2.0, -2.0]))
    pooled = Histogram(*np.zeros((2, quantized_logits.LEVELS), np.int64))
    pooled.pairs[[high, low]] = 3_000_000_000
    pooled.positives[[high, low]] = 2_900_000_000, 100_000_000
    curves = DecisionCurves.of_pool(pooled)
    assert curves.steps.predicted.tolist() == [3_000_000_000, 6_000_000_000]
    assert objectives.best_thresholds(curves, "f1").tolist() == [0]


def test_a_tag_on_every_image_has_a_threshold_of_half_at_most() -> None:
    logits = np.array([[3.0, -3.0], [5.0, -2.0]], np.float32)
    tag_thresholds, _ = best(RandomPredictions(logits, np.ones((2, 2), np.bool_)))
    assert tag_thresholds[0] == 0.5
    assert tag_thresholds[1] < sigmoid(np.array(-3.0))


def test_the_table_has_a_row_for_all_tags_each_category_and_each_tag() -> None:
    predictions = random_predictions(300, 10)
    rows = fit(predictions)
    tags = make_tags(10)
    assert [(row.category, row.name) for row in rows] == [
        (ALL, ""),
        ("general", ""),
        ("character", ""),
        *((CATEGORIES[tag.category], tag.name) for tag in tags),
    ]
    p = sigmoid(predictions.logits)
    where = [slice(0, 10), slice(0, 5), slice(5, 10), *(slice(n, n + 1) for n in range(10))]
    for row, inside in zip(rows, where, strict=True):
        truth = predictions.truth[:, inside].ravel()
        chosen = p[:, inside].ravel() >= row.threshold
        assert row.support == truth.sum()
        assert row.f1 == pytest.approx(f1_score(truth, chosen), abs=1e-6)
        assert row.precision == pytest.approx(precision_score(truth, chosen), abs=1e-6)
        assert row.recall == pytest.approx(recall_score(truth, chosen), abs=1e-6)
    assert [row.kind for row in rows] == ["global", "category", "category", *["tag"] * 10]
    assert {(row.objective, row.target) for row in rows} == {("f1", None)}
    assert [row.strength is None for row in rows] == [row.kind != "tag" for row in rows]
    values = thresholds.per_tag(rows, tags, "tag")
    assert values.tolist() == [row.threshold for row in rows[3:]]


def test_a_tag_without_a_positive_has_the_threshold_of_its_category() -> None:
    predictions = random_predictions(200, 6)
    predictions.truth[:, 1] = False
    predictions.truth[:, 3:] = False
    rows = {(row.category, row.name): row for row in fit(predictions, "precision_recall")}
    assert rows["general", "tag_1"].threshold == rows["general", ""].threshold
    assert rows["general", "tag_1"].objective == "precision_recall"
    assert rows["character", ""].threshold == rows[ALL, ""].threshold
    assert rows["character", "tag_4"].threshold == rows[ALL, ""].threshold


@pytest.mark.parametrize("images", [0, 4])
def test_thresholds_without_a_positive_are_half(images: int) -> None:
    rows = fit(random_predictions(images, 3, density=0))
    assert {row.threshold for row in rows} == {0.5}
    assert {row.support for row in rows} == {0}


def test_shrinkage_goes_from_the_tags_to_the_categorys_threshold() -> None:
    predictions = random_predictions(300, 6)
    tags = make_tags(6)
    with TemporaryStore(predictions) as store:
        counts = fit_thresholds.count(store, tags)
        values = fit_thresholds.shrunk_thresholds(counts, tags, np.array([0, 30, np.inf]), "f1")
    tag_thresholds = objectives.best_thresholds(DecisionCurves.of_tags(counts), "f1")
    assert values[:, 0] == pytest.approx(tag_thresholds)
    assert np.ptp(values[:3, 2]) == np.ptp(values[3:, 2]) == 0
    weight = counts.support / (counts.support + 30)
    assert values[:, 1] == pytest.approx(weight * tag_thresholds + (1 - weight) * values[:, 2])


def test_similar_rare_tags_are_shrunk_and_different_ones_are_not() -> None:
    alike, differing = random_predictions(600, 40, 3, density=0.02), random_predictions(600, 4, 3)
    differing.logits[:] += np.array([-6, -2, 2, 6])
    with TemporaryStore(alike) as store:
        assert fit_thresholds.best_strength(store, make_tags(40), "f1") >= 8
    with TemporaryStore(differing) as store:
        assert fit_thresholds.best_strength(store, make_tags(4, [0]), "f1") <= 4


def test_shrinkage_improves_f1_on_new_images() -> None:
    gains = []
    for seed in range(5):
        seen = random_predictions(300, 60, seed, density=0.03)
        new = random_predictions(4000, 60, 100 + seed, density=0.03)
        rows = fit(seen)
        values = thresholds.per_tag(rows, make_tags(60), "tag")
        with TemporaryStore(seen) as store:
            tag_thresholds = objectives.best_thresholds(
                DecisionCurves.of_tags(fit_thresholds.count(store, make_tags(60))), "f1"
            )
        scores = [
            mean_f1(new, sigmoid(logit(values))),
            mean_f1(new, sigmoid(tag_thresholds)),
        ]
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.01


def mean_f1(predictions: RandomPredictions, values: Floats) -> float:
    chosen = sigmoid(predictions.logits) >= values
    return float(f1_score(predictions.truth, chosen, average="macro", zero_division=0))


def test_the_table_holds_the_f1_at_each_threshold() -> None:
    predictions = random_predictions(250, 8)
    rows = fit(predictions)
    values = thresholds.per_tag(rows, make_tags(8), "tag")
    with TemporaryStore(predictions) as store:
        quantized = quantized_logits.quantize_thresholds(values)[:, None]
        counts = score_counts.count(
            store, tag_metrics.pool_numbers(make_tags(8)), thresholds=quantized
        )
    f1 = tag_metrics.decision_metrics(counts.decisions(0))["f1"]
    assert f1 == pytest.approx([row.f1 for row in rows if row.name], abs=1e-6)
