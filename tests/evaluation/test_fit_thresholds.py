"""Thresholds are the best there are by each aim; those of rare tags lean on their category's."""

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
from tagger.core.arrays import Floats, Scores
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


def every(scores: Scores) -> Floats:
    """Return a threshold for each way to part some scores, falling."""
    seen = np.unique(scores)[::-1].astype(np.float64)
    return np.array([np.inf, *((seen[:-1] + seen[1:]) / 2), -np.inf])


@settings(max_examples=25)
@given(small_predictions(), st.sampled_from([0.3, 0.6, 1.0]))
def test_there_is_no_better_threshold(predictions: RandomPredictions, target: float) -> None:
    logits, truth = predictions
    columns = [(logits[:, tag], truth[:, tag]) for tag in range(truth.shape[1])]
    columns.append((logits.ravel(), truth.ravel()))
    goals: list[tuple[Objective, float | None]] = [
        ("f1", None),
        ("precision_recall", None),
        ("precision", target),
        ("recall", target),
    ]
    for objective, goal in goals:
        own, pooled = best(predictions, objective, goal)
        for threshold, (scores, wanted) in zip([*own, pooled], columns, strict=True):
            if not wanted.any():
                assert np.isnan(threshold)
                continue
            chosen = sigmoid(scores) >= threshold
            others = [scores >= other for other in every(scores)]
            if objective == "f1":
                most = max(f1_score(wanted, other, zero_division=0) for other in others)
                assert f1_score(wanted, chosen) == pytest.approx(most)
            elif objective == "precision_recall":
                fits = [other.sum() for other in others if other.sum() <= wanted.sum()]
                assert chosen.sum() == max(fits)
            elif objective == "recall":
                enough = [o.sum() for o in others if recall_score(wanted, o) >= target - 1e-12]
                assert chosen.sum() == min(enough)
            else:
                reach = [
                    recall_score(wanted, other)
                    for other in others
                    if other.any() and precision_score(wanted, other) >= target - 1e-12
                ]
                assert np.isnan(threshold) == (not reach or max(reach) == 0)
                if not np.isnan(threshold):
                    assert precision_score(wanted, chosen) >= target - 1e-12
                    assert recall_score(wanted, chosen) == pytest.approx(max(reach))


def test_a_threshold_lies_in_the_middle_of_its_gap() -> None:
    logits = np.array([[3.0], [1.0], [-1.0], [-2.0]], np.float32)
    own, pooled = best(RandomPredictions(logits, logits > 0))
    assert own.tolist() == [pooled] == [0.5]


def test_a_tag_on_every_picture_is_given_from_a_half_on_at_the_latest() -> None:
    logits = np.array([[3.0, -3.0], [5.0, -2.0]], np.float32)
    own, _ = best(RandomPredictions(logits, np.ones((2, 2), np.bool_)))
    assert own[0] == 0.5
    assert own[1] < sigmoid(np.array(-3.0))


def test_the_table_has_a_row_for_all_for_each_category_and_for_each_tag() -> None:
    predictions = random_predictions(300, 10)
    rows = fit(predictions)
    listed = make_tags(10)
    assert [(row.category, row.name) for row in rows] == [
        (ALL, ""),
        ("general", ""),
        ("character", ""),
        *((CATEGORIES[tag.category], tag.name) for tag in listed),
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
    limits = thresholds.per_tag(rows, listed, "tag")
    assert limits.tolist() == [row.threshold for row in rows[3:]]


def test_a_tag_that_no_picture_shows_has_the_threshold_of_its_category() -> None:
    predictions = random_predictions(200, 6)
    predictions.truth[:, 1] = False
    predictions.truth[:, 3:] = False
    rows = {(row.category, row.name): row for row in fit(predictions, "precision_recall")}
    assert rows["general", "tag_1"].threshold == rows["general", ""].threshold
    assert rows["general", "tag_1"].objective == "precision_recall"
    assert rows["character", ""].threshold == rows[ALL, ""].threshold
    assert rows["character", "tag_4"].threshold == rows[ALL, ""].threshold


@pytest.mark.parametrize("pictures", [0, 4])
def test_where_nothing_is_true_thresholds_are_a_half(pictures: int) -> None:
    rows = fit(random_predictions(pictures, 3, density=0))
    assert {row.threshold for row in rows} == {0.5}
    assert {row.support for row in rows} == {0}


def test_shrinking_goes_from_the_tags_own_to_its_categorys() -> None:
    predictions = random_predictions(300, 6)
    listed = make_tags(6)
    with TemporaryStore(predictions) as scored:
        counted = fit_thresholds.count(scored, listed)
        limits = fit_thresholds.shrunk_thresholds(counted, listed, np.array([0, 30, np.inf]), "f1")
    own = objectives.best_thresholds(DecisionCurves.of_tags(counted), "f1")
    assert limits[:, 0] == pytest.approx(own)
    assert np.ptp(limits[:3, 2]) == np.ptp(limits[3:, 2]) == 0
    weight = counted.support / (counted.support + 30)
    assert limits[:, 1] == pytest.approx(weight * own + (1 - weight) * limits[:, 2])


def test_rare_tags_gain_by_leaning_on_their_category_and_differing_ones_are_let_alone() -> None:
    alike, differing = random_predictions(600, 40, 3, density=0.02), random_predictions(600, 4, 3)
    differing.logits[:] += np.array([-6, -2, 2, 6])
    with TemporaryStore(alike) as scored:
        assert fit_thresholds.best_strength(scored, make_tags(40), "f1") >= 8
    with TemporaryStore(differing) as scored:
        assert fit_thresholds.best_strength(scored, make_tags(4, [0]), "f1") <= 4


def test_shrinking_gains_on_pictures_not_seen() -> None:
    gains = []
    for seed in range(5):
        seen = random_predictions(300, 60, seed, density=0.03)
        new = random_predictions(4000, 60, 100 + seed, density=0.03)
        rows = fit(seen)
        limits = thresholds.per_tag(rows, make_tags(60), "tag")
        with TemporaryStore(seen) as scored:
            own = objectives.best_thresholds(
                DecisionCurves.of_tags(fit_thresholds.count(scored, make_tags(60))), "f1"
            )
        scores = [
            mean_f1(new, sigmoid(logit(limits))),
            mean_f1(new, sigmoid(own)),
        ]
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.01


def mean_f1(predictions: RandomPredictions, limits: Floats) -> float:
    chosen = sigmoid(predictions.logits) >= limits
    return float(f1_score(predictions.truth, chosen, average="macro", zero_division=0))


def test_figures_at_the_thresholds_are_those_that_the_table_tells() -> None:
    predictions = random_predictions(250, 8)
    rows = fit(predictions)
    limits = thresholds.per_tag(rows, make_tags(8), "tag")
    with TemporaryStore(predictions) as scored:
        marks = quantized_logits.quantize_thresholds(limits)[:, None]
        counted = score_counts.count(
            scored, tag_metrics.pool_numbers(make_tags(8)), thresholds=marks
        )
    f1 = tag_metrics.decision_metrics(counted.decisions(0))["f1"]
    assert f1 == pytest.approx([row.f1 for row in rows if row.name], abs=1e-6)
