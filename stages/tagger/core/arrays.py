"""Arrays that many modules hand on, by what they hold."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]  # (images, tags), probabilities
Truth = npt.NDArray[np.bool_]  # (images, tags)
Mask = npt.NDArray[np.bool_]  # (posts,)
