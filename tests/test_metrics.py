"""Figures agree with scikit-learn, ties included; tags without a positive are left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from tagger import metrics
from tagger.metrics import Scores, Truth

Judged = tuple[Scores, Truth]


@st.composite
def predictions(draw: st.DrawFn) -> Judged:
    """Draw probabilities, often equal ones, and labels of which some tags have none or all."""
    pictures, tags = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = random.integers(0, steps + 1, (pictures, tags)) / steps
    return scores.astype(np.float32), random.random((pictures, tags)) < draw(st.floats(0, 1))


@settings(max_examples=150, deadline=None)
@given(predictions())
def test_average_precision_is_scikit_learns(judged: Judged) -> None:
    scores, truth = judged
    ours = metrics.average_precision(scores, truth)
    assert ours.shape == (truth.shape[1],)
    for tag, value in enumerate(ours):
        if truth[:, tag].any():
            reference = average_precision_score(truth[:, tag], scores[:, tag])
            assert value == pytest.approx(reference, abs=1e-9)
        else:
            assert np.isnan(value)


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_macro_and_micro_average_precision_are_scikit_learns(judged: Judged) -> None:
    scores, truth = judged
    has = truth.any(axis=0)
    macro = micro = 0.0
    if has.any():
        macro = average_precision_score(truth[:, has], scores[:, has], average="macro")
        micro = average_precision_score(truth.ravel(), scores.ravel())
    assert metrics.macro_ap(scores, truth) == pytest.approx(macro, abs=1e-9)
    assert metrics.micro_ap(scores, truth) == pytest.approx(micro, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(predictions(), st.sampled_from([0.2, 0.5, 0.7, 1.0]))
def test_decisions_are_counted_as_scikit_learn_does(judged: Judged, threshold: float) -> None:
    scores, truth = judged
    limit = np.float32(threshold)
    given_tags = scores >= limit
    counts = metrics.count(scores, truth, float(limit))
    for ours, theirs in (
        (counts.f1, f1_score),
        (counts.precision, precision_score),
        (counts.recall, recall_score),
    ):
        each = [theirs(truth[:, t], given_tags[:, t], zero_division=0) for t in range(len(ours))]
        assert ours == pytest.approx(each)
    overall = counts.summed()
    micro = f1_score(truth.ravel(), given_tags.ravel(), zero_division=0)
    assert overall.f1[0] == pytest.approx(micro)
    figures = metrics.figures(scores, truth, float(limit))
    assert figures["micro_f1"] == pytest.approx(micro, abs=1e-6)
    has = truth.any(axis=0)
    macro = np.mean(
        [f1_score(truth[:, t], given_tags[:, t], zero_division=0) for t in np.flatnonzero(has)]
        or [0.0]
    )
    assert figures["macro_f1"] == pytest.approx(macro, abs=1e-6)


def test_tags_without_a_positive_move_no_figure() -> None:
    scores = np.array([[0.9, 0.8], [0.2, 0.7]], dtype=np.float32)
    truth = np.array([[True, False], [False, False]])
    alone = metrics.figures(scores[:, :1], truth[:, :1], 0.5)
    both = metrics.figures(scores, truth, 0.5)
    assert (both["tags"], both["unsupported"], both["images"]) == (1, 1, 2)
    assert both["macro_ap"] == alone["macro_ap"] == 1
    assert both["macro_f1"] == alone["macro_f1"] == 1
    assert both["micro_precision"] == pytest.approx(1 / 3, abs=1e-6)  # wrong is wrong


def test_figures_of_nothing_are_zero() -> None:
    for pictures in (0, 3):
        scores = np.zeros((pictures, 2), dtype=np.float32)
        figures = metrics.figures(scores, np.zeros((pictures, 2), dtype=bool), 0.5)
        assert {figures[name] for name in figures if "_" in name} == {0.0}
        assert (figures["images"], figures["unsupported"]) == (pictures, 2)


def test_a_score_at_the_threshold_is_given() -> None:
    scores = np.array([[0.5, 0.25]], dtype=np.float32)
    counts = metrics.count(scores, np.array([[True, True]]), np.array([0.5, 0.5]))
    assert counts.predicted.tolist() == [1, 0]


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_a_sweep_counts_every_threshold_as_alone(judged: Judged) -> None:
    scores, truth = judged
    grid = np.array([0.0, 0.2, 0.5, 1.0])
    swept = metrics.sweep(scores, truth, grid)
    for number, threshold in enumerate(grid):
        alone = metrics.count(scores, truth, threshold)
        for ours, expected in zip(swept, alone, strict=True):
            assert np.array_equal(ours[number], expected)
