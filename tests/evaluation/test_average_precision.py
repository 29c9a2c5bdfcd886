"""Average precision is scikit-learn's, ties included; tags without a positive are left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tagger.core.arrays import Scores, Truth
from tagger.evaluation.metrics import dense

Judged = tuple[Scores, Truth]


@st.composite
def predictions(draw: st.DrawFn) -> Judged:
    """Draw probabilities, often equal ones, and labels of which some tags have none or all."""
    pictures, tags = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = random.integers(0, steps + 1, (pictures, tags)) / steps
    return scores.astype(np.float32), random.random((pictures, tags)) < draw(st.floats(0, 1))


@settings(max_examples=150)
@given(predictions())
def test_average_precision_is_scikit_learns(judged: Judged) -> None:
    scores, truth = judged
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
def test_macro_and_micro_average_precision_are_scikit_learns(judged: Judged) -> None:
    scores, truth = judged
    has = truth.any(axis=0)
    macro = micro = 0.0
    if has.any():
        macro = average_precision_score(truth[:, has], scores[:, has], average="macro")
        micro = average_precision_score(truth.ravel(), scores.ravel())
    assert dense.macro_ap(scores, truth) == pytest.approx(macro, abs=1e-9)
    assert dense.micro_ap(scores, truth) == pytest.approx(micro, abs=1e-9)


@settings(max_examples=60)
@given(predictions(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_what_is_unknown_counts_for_nothing(judged: Judged, share: float, seed: int) -> None:
    """Whatever scores and truth say there."""
    scores, truth = judged
    random = np.random.default_rng(seed)
    known = random.random(truth.shape) < share
    others = np.where(known, scores, random.random(scores.shape)).astype(np.float32)
    other_truth = np.where(known, truth, random.random(truth.shape) < 0.5)
    for tag, value in enumerate(dense.tag_average_precision(scores, truth, known)):
        told = known[:, tag]
        (alone,) = dense.tag_average_precision(scores[told][:, [tag]], truth[told][:, [tag]])
        assert value == alone or (np.isnan(value) and np.isnan(alone))
    for figure in (dense.macro_ap, dense.micro_ap, dense.cross_entropy):
        assert figure(scores, truth, known) == figure(others, other_truth, known)
    assert dense.cross_entropy(scores, truth, np.zeros_like(truth)) == 0


@settings(max_examples=60)
@given(predictions())
def test_where_all_is_known_figures_are_the_same_to_the_bit(judged: Judged) -> None:
    everywhere = np.ones(judged[1].shape, np.bool_)
    for figure in (dense.macro_ap, dense.micro_ap, dense.cross_entropy):
        assert figure(*judged, everywhere) == figure(*judged)
