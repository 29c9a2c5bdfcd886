"""Logits as sortable integers of 16 bits: float16 whose bits are reordered.

Logits and not probabilities: near 1, float16 holds a probability in steps of 0.0005, and the most
confident predictions of a model would be tied.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.core.logits import Numbers, logit, sigmoid

QuantizedLogits = npt.NDArray[np.uint16]

LEVELS = 1 << 16
UNKNOWN = 0  # below every quantized logit
_NEGATIVE = 0x8000  # the sign bit of a float16; also the quantized logit 0
_LARGEST = float(np.finfo(np.float16).max)


def quantize(logits: Numbers) -> QuantizedLogits:
    """Return each logit, rounded to float16 or its nearest finite value, as a sortable integer."""
    bits = np.clip(logits, -_LARGEST, _LARGEST).astype(np.float16).view(np.uint16)
    quantized = np.where(bits >= _NEGATIVE, ~bits, bits | _NEGATIVE)
    quantized += quantized == _NEGATIVE - 1  # minus zero is zero
    return quantized


@cache
def logit_table() -> Floats:
    """Return the logit of each level, (LEVELS,), rising; infinite beyond the finite numbers."""
    levels = np.arange(LEVELS, dtype=np.uint16)
    bits = np.where(levels >= _NEGATIVE, levels & ~np.uint16(_NEGATIVE), ~levels)
    values = bits.view(np.float16).astype(np.float64)
    values[: LEVELS // 2][np.isnan(values[: LEVELS // 2])] = -np.inf
    values[LEVELS // 2 :][np.isnan(values[LEVELS // 2 :])] = np.inf
    values.setflags(write=False)
    return values


@cache
def probability_table() -> Floats:
    """Return the probability of each level, (LEVELS,)."""
    values = sigmoid(logit_table())
    values.setflags(write=False)
    return values


@cache
def softplus_table() -> Floats:
    """Return log(1 + exp(logit)) of each level, (LEVELS,): the loss of a negative, in nats."""
    values = np.logaddexp(0, np.clip(logit_table(), -_LARGEST, _LARGEST))
    values.setflags(write=False)
    return values


def quantize_thresholds(thresholds: npt.ArrayLike) -> QuantizedLogits:
    """Return the lowest quantized logit whose probability reaches each threshold."""
    lowest = np.searchsorted(logit_table(), logit(thresholds), side="left")
    return np.maximum(lowest, UNKNOWN + 1).astype(np.uint16)


def halfway(quantized: QuantizedLogits, below: QuantizedLogits) -> Floats:
    """Return the logit halfway between each quantized logit and a lower one.

    below: UNKNOWN stands for the next level, whether or not an image has it
    """
    upper = quantized.astype(np.int64)
    lower = np.where(below == UNKNOWN, np.maximum(upper - 1, 0), below)
    values = np.clip(logit_table(), -_LARGEST, _LARGEST)
    return np.asarray((values[upper] + values[lower]) / 2)
