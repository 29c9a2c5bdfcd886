"""Codes have the order of logits, ties included, and thresholds mean the same in both."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagger.scoring import codes

Logits = npt.NDArray[np.float32]

FINITE = st.floats(-80, 80, width=32)


@given(arrays(np.float32, 20, elements=FINITE))
def test_codes_are_ordered_as_half_precision_is(logits: Logits) -> None:
    halves = logits.astype(np.float16)
    coded = codes.of(logits)
    assert np.array_equal(np.sign(np.subtract.outer(halves, halves)), _order(coded))
    assert np.array_equal(codes.logits()[coded], halves)


def _order(coded: codes.Codes) -> npt.NDArray[np.int64]:
    whole = coded.astype(np.int64)
    return np.sign(np.subtract.outer(whole, whole))


def test_minus_zero_is_zero_and_what_half_precision_cannot_hold_is_its_largest() -> None:
    zeros = codes.of(np.array([-0.0, 0.0, -1e-12, 1e-12], np.float32))
    assert len(set(zeros.tolist())) == 1
    assert codes.logits()[codes.of(np.array([1e30, -1e30]))].tolist() == [65504, -65504]


def test_no_number_has_the_code_of_what_is_unknown() -> None:
    assert (codes.of(np.array([-np.inf, -1e30, np.inf])) > codes.UNKNOWN).all()


@given(st.floats(0, 1), arrays(np.float32, 20, elements=FINITE))
def test_a_threshold_gives_the_probabilities_from_it_on(threshold: float, logits: Logits) -> None:
    coded = codes.of(logits)
    given_ = coded >= codes.at_least(threshold)
    expected = codes.logits()[coded] >= codes.logit(threshold)
    assert np.array_equal(given_, expected)


def test_a_score_at_the_threshold_is_given() -> None:
    coded = codes.of(np.array([0.0, -1e-3]))
    assert (coded >= codes.at_least(0.5)).tolist() == [True, False]


@given(arrays(np.float32, 2, elements=FINITE, unique=True))
def test_halfway_lies_between(logits: Logits) -> None:
    low, high = np.sort(codes.of(logits))
    if low < high:
        (middle,) = codes.halfway(np.array([high]), np.array([low]))
        assert codes.logits()[low] < middle < codes.logits()[high]
        (under,) = codes.halfway(np.array([high]), np.array([codes.UNKNOWN], np.uint16))
        assert codes.logits()[high - 1] <= under <= codes.logits()[high]


def test_probabilities_of_0_and_1_have_logits() -> None:
    shares = np.array([0, 1e-44, 0.25, 1 - 2.0**-24, 1], np.float32)
    logits = codes.finite_logit(shares)
    assert np.isfinite(logits).all()
    assert (np.diff(logits) >= 0).all()
    assert logits[-1] > logits[-2]
    assert codes.sigmoid(logits[2]) == pytest.approx(0.25)
