"""Probabilities as logits, and back, in float64."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.special import logit as scipy_logit

from tagger.core.arrays import Floats

Numbers = npt.NDArray[np.floating[Any]]

_LEAST = 1e-45  # probability that float32 tells from 0


def sigmoid(logits: Numbers) -> Floats:
    return np.asarray(expit(np.asarray(logits, np.float64)))


def logit(probabilities: npt.ArrayLike) -> Floats:
    """Return the logits of probabilities, minus infinity of 0 and infinity of 1."""
    return np.asarray(scipy_logit(np.asarray(probabilities, np.float64)))


def finite_logit(probabilities: Numbers) -> Floats:
    """Return the logits of float32 probabilities, of 0 and 1 those of their neighbours."""
    values = np.asarray(probabilities, np.float64)
    return logit(np.clip(values, _LEAST, 1 - 2.0**-25))
