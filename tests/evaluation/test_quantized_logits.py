"""Quantized logits have the order of logits, ties included, and thresholds mean the same."""

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
def test_quantized_logits_have_the_order_of_half_precision(logits: Logits) -> None:
    halves = logits.astype(np.float16)
    quantized = quantized_logits.quantize(logits)
    assert np.array_equal(np.sign(np.subtract.outer(halves, halves)), _order(quantized))
    assert np.array_equal(quantized_logits.logit_table()[quantized], halves)


def _order(quantized: quantized_logits.QuantizedLogits) -> npt.NDArray[np.int64]:
    whole = quantized.astype(np.int64)
    return np.sign(np.subtract.outer(whole, whole))


def test_minus_zero_is_zero_and_large_logits_are_clipped() -> None:
    zeros = quantized_logits.quantize(np.array([-0.0, 0.0, -1e-12, 1e-12], np.float32))
    assert len(set(zeros.tolist())) == 1
    assert quantized_logits.logit_table()[
        quantized_logits.quantize(np.array([1e30, -1e30]))
    ].tolist() == [
        65504,
        -65504,
    ]


def test_no_logit_is_quantized_to_unknown() -> None:
    assert (
        quantized_logits.quantize(np.array([-np.inf, -1e30, np.inf])) > quantized_logits.UNKNOWN
    ).all()


@given(st.floats(0, 1), arrays(np.float32, 20, elements=FINITE))
def test_a_quantized_threshold_selects_probabilities_from_it_on(
    threshold: float, logits: Logits
) -> None:
    quantized = quantized_logits.quantize(logits)
    selected = quantized >= quantized_logits.quantize_thresholds(threshold)
    expected = quantized_logits.logit_table()[quantized] >= logit(threshold)
    assert np.array_equal(selected, expected)


def test_a_score_at_the_threshold_is_selected() -> None:
    quantized = quantized_logits.quantize(np.array([0.0, -1e-3]))
    assert (quantized >= quantized_logits.quantize_thresholds(0.5)).tolist() == [True, False]


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
    probabilities = np.array([0, 1e-44, 0.25, 1 - 2.0**-24, 1], np.float32)
    logits = finite_logit(probabilities)
    assert np.isfinite(logits).all()
    assert (np.diff(logits) >= 0).all()
    assert logits[-1] > logits[-2]
    assert sigmoid(logits[2]) == pytest.approx(0.25)
