"""Run a model over a part of the split."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tagger.core.arrays import Scores, Truth
from tagger.core.errors import TaggerError
from tagger.images import loader
from tagger.images.dataset import ReadFailure
from tagger.images.loader import Batch
from tagger.images.preprocess import Preprocess
from tagger.models import backbone
from tagger.system import distributed

Array = npt.NDArray[np.float32]
Compute: TypeAlias = Callable[[Batch], Array]  # what is made of a batch, (pictures, outputs)

_log = logging.getLogger(__name__)


class Predictions(NamedTuple):
    scores: Scores  # (pictures, tags), probabilities
    truth: Truth  # (pictures, tags)
    known: Truth  # (pictures, tags), whether the truth is: what is unknown counts as not true
    rows: list[int]  # of the part, one per picture
    failures: list[ReadFailure]  # of each picture that could not be read


def predict_batches(
    model: nn.Module, batches: Iterable[Batch], preprocess: Preprocess, tags: int
) -> Predictions:
    """Return the model's probabilities for every readable picture of some batches.

    Raises TaggerError where the device has no room.
    """
    scores = [np.empty((0, tags), np.float32)]
    targets = [np.empty((0, tags), np.int8)]
    rows: list[int] = []
    failures: list[ReadFailure] = []
    compute = by_torch(model, preprocess)
    for batch in batches:
        failures += batch.failures
        scores.append(torch.from_numpy(compute(batch)).sigmoid().numpy())
        targets.append(batch.targets.numpy())
        rows += batch.rows
    told = np.concatenate(targets)
    return Predictions(np.concatenate(scores), told > 0, told >= 0, rows, failures)


def by_torch(
    model: nn.Module, preprocess: Preprocess, outputs: Callable[[Tensor], Tensor] | None = None
) -> Compute:
    """Return what computes a model's logits where it lies, in eval mode, in float32.

    outputs: what to compute in place of the logits, from normalised pixels
    """
    return _OnTorch(model, preprocess, outputs or model)


@dataclass
class _OnTorch:
    """Computes batches, in smaller pieces from the first on for which the device has no room."""

    model: nn.Module
    preprocess: Preprocess
    outputs: Callable[[Tensor], Tensor]
    most: int | None = None  # pictures at a time

    def __call__(self, batch: Batch) -> Array:
        """Return what is made of each picture, (pictures, outputs).

        Of a batch without pictures a blank is computed and left out: where processes hold parts
        of the model, each waits for all others at every block.
        Raises TaggerError where not even one picture fits.
        """
        pixels = batch.pixels if batch.rows else self._blank()
        was_training = self.model.training
        self.model.eval()
        try:
            return self._in_pieces(batch._replace(pixels=pixels))[: len(batch.rows)]
        finally:
            self.model.train(was_training)

    def _blank(self) -> Tensor:
        side = self.preprocess.size
        return torch.zeros((1, side, side, 3), dtype=torch.uint8)

    def _in_pieces(self, batch: Batch) -> Array:
        found: list[Array] = []
        start, pictures = 0, len(batch.pixels)
        while start < pictures:
            end = min(pictures, start + (self.most or pictures))
            some = batch.pixels[start:end], batch.targets[start:end]
            made = self._piece(batch._replace(pixels=some[0], targets=some[1]))
            if made is None:
                self._halve(end - start)
                continue
            found.append(made)
            start = end
        return np.concatenate(found)

    def _piece(self, batch: Batch) -> Array | None:
        """Return what is made of some pictures, or None where they do not fit."""
        device = next(self.model.parameters()).device
        try:
            with backbone.inference_mode():
                inputs, _ = loader.to_device(batch, device, self.preprocess)
                found: Any = self.outputs(inputs)
                return np.asarray(found.float().cpu())
        except torch.OutOfMemoryError:
            return None

    def _halve(self, pictures: int) -> None:
        if distributed.is_sharded(self.model):
            raise TaggerError(
                f"The memory of the device does not suffice to judge {pictures} pictures at a "
                "time. Lower train.micro_batch."
            )
        if pictures == 1:
            raise TaggerError(
                "The memory of the device does not suffice to judge one picture. Lower the "
                "image_size, or give the device to this process alone."
            )
        self.most = (pictures + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.warning(
            f"Memory does not suffice: judging {self.most} pictures at a time from now on."
        )
