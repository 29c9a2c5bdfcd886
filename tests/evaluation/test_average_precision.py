"""Average precision equals scikit-learn's, ties included; tags without a positive do not count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tagger.core.arrays import Scores, Truth
from tagger.evaluation.metrics import dense

ScoredLabels = tuple[Scores, Truth]


@st.composite
def predictions(draw: st.DrawFn) -> ScoredLabels:
    """Draw probabilities, often equal ones, and labels of which some tags have none or all."""
    images, tags = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = random.integers(0, steps + 1, (images, tags)) / steps
    return scores.astype(np.float32), random.random((images, tags)) < draw(st.floats(0, 1))


@settings(max_examples=150)
@given(predictions())
def test_average_precision_equals_scikit_learn(scored: ScoredLabels) -> None:
    scores, truth = scored
    ours = dense.tag_average_precision(scores, truth)
    assert ours.shape == (truth.shape[1],)
    for tag, value in enumerate(ours):
        if truth[:, tag].any():
            reference = average_precision_score(truth[:, tag], scores[:, tag])
            assert value == pytest.approx(reference, abs=1e-9)
        else:
            assert np.isnan(value)


@settings(max_examples=60)
@given(predictions())
def test_macro_and_micro_average_precision_equal_scikit_learn(scored: ScoredLabels) -> None:
    scores, truth = scored
    supported = truth.any(axis=0)
    macro = micro = 0.0
    if supported.any():
        macro = average_precision_score(truth[:, supported], scores[:, supported], average="macro")
        micro = average_precision_score(truth.ravel(), scores.ravel())
    assert dense.macro_ap(scores, truth) == pytest.approx(macro, abs=1e-9)
    assert dense.micro_ap(scores, truth) == pytest.approx(micro, abs=1e-9)


@settings(max_examples=60)
@given(predictions(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_unknown_labels_do_not_change_the_metrics(
    scored: ScoredLabels, fraction: float, seed: int
) -> None:
    """Whatever scores and truth say there."""
    scores, truth = scored
    random = np.random.default_rng(seed)
    known_labels = random.random(truth.shape) < fraction
    others = np.where(known_labels, scores, random.random(scores.shape)).astype(np.float32)
    other_truth = np.where(known_labels, truth, random.random(truth.shape) < 0.5)
    for tag, value in enumerate(dense.tag_average_precision(scores, truth, known_labels)):
        inside = known_labels[:, tag]
        (alone,) = dense.tag_average_precision(scores[inside][:, [tag]], truth[inside][:, [tag]])
        assert value == alone or (np.isnan(value) and np.isnan(alone))
    for metric in (dense.macro_ap, dense.micro_ap, dense.cross_entropy):
        assert metric(scores, truth, known_labels) == metric(others, other_truth, known_labels)
    assert dense.cross_entropy(scores, truth, np.zeros_like(truth)) == 0


@settings(max_examples=60)
@given(predictions())
def test_metrics_are_the_same_if_all_labels_are_known(scored: ScoredLabels) -> None:
    everywhere = np.ones(scored[1].shape, np.bool_)
    for metric in (dense.macro_ap, dense.micro_ap, dense.cross_entropy):
        assert metric(*scored, everywhere) == metric(*scored)
