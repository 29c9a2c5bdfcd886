"""Codes have the order of logits, ties included, and thresholds mean the same in both."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tagger.core.logits import finite_logit, logit, sigmoid
from tagger.evaluation import quantized_logits

Logits = npt.NDArray[np.float32]

FINITE = st.floats(-80, 80, width=32)


@given(arrays(np.float32, 20, elements=FINITE))
def test_codes_are_ordered_as_half_precision_is(logits: Logits) -> None:
    halves = logits.astype(np.float16)
    coded = quantized_logits.quantize(logits)
    assert np.array_equal(np.sign(np.subtract.outer(halves, halves)), _order(coded))
    assert np.array_equal(quantized_logits.logit_table()[coded], halves)


def _order(coded: quantized_logits.QuantizedLogits) -> npt.NDArray[np.int64]:
    whole = coded.astype(np.int64)
    return np.sign(np.subtract.outer(whole, whole))


def test_minus_zero_is_zero_and_what_half_precision_cannot_hold_is_its_largest() -> None:
    zeros = quantized_logits.quantize(np.array([-0.0, 0.0, -1e-12, 1e-12], np.float32))
    assert len(set(zeros.tolist())) == 1
    assert quantized_logits.logit_table()[
        quantized_logits.quantize(np.array([1e30, -1e30]))
    ].tolist() == [
        65504,
        -65504,
    ]


def test_no_number_has_the_code_of_what_is_unknown() -> None:
    assert (
        quantized_logits.quantize(np.array([-np.inf, -1e30, np.inf])) > quantized_logits.UNKNOWN
    ).all()


@given(st.floats(0, 1), arrays(np.float32, 20, elements=FINITE))
def test_a_threshold_gives_the_probabilities_from_it_on(threshold: float, logits: Logits) -> None:
    coded = quantized_logits.quantize(logits)
    given_ = coded >= quantized_logits.quantize_thresholds(threshold)
    expected = quantized_logits.logit_table()[coded] >= logit(threshold)
    assert np.array_equal(given_, expected)


def test_a_score_at_the_threshold_is_given() -> None:
    coded = quantized_logits.quantize(np.array([0.0, -1e-3]))
    assert (coded >= quantized_logits.quantize_thresholds(0.5)).tolist() == [True, False]


@given(arrays(np.float32, 2, elements=FINITE, unique=True))
def test_halfway_lies_between(logits: Logits) -> None:
    low, high = np.sort(quantized_logits.quantize(logits))
    if low < high:
        (middle,) = quantized_logits.halfway(np.array([high]), np.array([low]))
        assert quantized_logits.logit_table()[low] < middle < quantized_logits.logit_table()[high]
        (under,) = quantized_logits.halfway(
            np.array([high]), np.array([quantized_logits.UNKNOWN], np.uint16)
        )
        assert (
            quantized_logits.logit_table()[high - 1]
            <= under
            <= quantized_logits.logit_table()[high]
        )


def test_probabilities_of_0_and_1_have_logits() -> None:
    shares = np.array([0, 1e-44, 0.25, 1 - 2.0**-24, 1], np.float32)
    logits = finite_logit(shares)
    assert np.isfinite(logits).all()
    assert (np.diff(logits) >= 0).all()
    assert logits[-1] > logits[-2]
    assert sigmoid(logits[2]) == pytest.approx(0.25)
