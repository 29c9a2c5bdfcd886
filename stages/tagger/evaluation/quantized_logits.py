"""Logits as whole numbers of 16 bits and the same order: float16, made sortable.

Logits and not probabilities: next to 1, float16 holds a probability in steps of 0.0005, and what a
model is surest of would be tied.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.logits import Numbers, logit, sigmoid

QuantizedLogits = npt.NDArray[np.uint16]

LEVELS = 1 << 16
UNKNOWN = 0  # lower than the code of any number
_NEGATIVE = 0x8000  # the sign of a float16; also the code of 0
_LARGEST = float(np.finfo(np.float16).max)


def quantize(logits: Numbers) -> QuantizedLogits:
    """Return the code of each logit, rounded to float16, or its nearest finite value."""
    bits = np.clip(logits, -_LARGEST, _LARGEST).astype(np.float16).view(np.uint16)
    codes = np.where(bits >= _NEGATIVE, ~bits, bits | _NEGATIVE)
    codes += codes == _NEGATIVE - 1  # minus zero is zero
    return codes


@cache
def logit_table() -> Floats:
    """Return the logit that each code stands for, rising; infinite beyond those of numbers."""
    numbers = np.arange(LEVELS, dtype=np.uint16)
    bits = np.where(numbers >= _NEGATIVE, numbers & ~np.uint16(_NEGATIVE), ~numbers)
    values = bits.view(np.float16).astype(np.float64)
    values[: LEVELS // 2][np.isnan(values[: LEVELS // 2])] = -np.inf
    values[LEVELS // 2 :][np.isnan(values[LEVELS // 2 :])] = np.inf
    values.setflags(write=False)
    return values


@cache
def probability_table() -> Floats:
    """Return the probability that each code stands for."""
    values = sigmoid(logit_table())
    values.setflags(write=False)
    return values


@cache
def softplus_table() -> Floats:
    """Return log(1 + exp(logit)) of each code: the loss, in nats, where the tag is not there."""
    values = np.logaddexp(0, np.clip(logit_table(), -_LARGEST, _LARGEST))
    values.setflags(write=False)
    return values


def quantize_thresholds(thresholds: npt.ArrayLike) -> QuantizedLogits:
    """Return the lowest code of the probabilities from a threshold on."""
    lowest = np.searchsorted(logit_table(), logit(thresholds), side="left")
    return np.maximum(lowest, UNKNOWN + 1).astype(np.uint16)


def halfway(quantized: QuantizedLogits, below: QuantizedLogits) -> Floats:
    """Return the logit halfway from each code to a lower one.

    below: UNKNOWN stands for the next code, whether or not any picture has it
    """
    upper = quantized.astype(np.int64)
    lower = np.where(below == UNKNOWN, np.maximum(upper - 1, 0), below)
    values = np.clip(logit_table(), -_LARGEST, _LARGEST)
    return np.asarray((values[upper] + values[lower]) / 2)
