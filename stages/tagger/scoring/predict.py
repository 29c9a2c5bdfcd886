"""Run a model over a part of the split."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tagger.arrays import Scores, Truth
from tagger.imaging import batching
from tagger.imaging.batching import Batch, Order
from tagger.imaging.dataset import Failure, Part, Pictures
from tagger.imaging.preprocess import Preprocess
from tagger.scoring import codes
from tagger.taggers.exported import Tagger

Array = npt.NDArray[np.float32]
Compute: TypeAlias = Callable[[Batch], Array]  # what is made of a batch, (pictures, outputs)


class Predictions(NamedTuple):
    scores: Scores  # (pictures, tags), probabilities
    truth: Truth  # (pictures, tags)
    rows: list[int]  # of the part, one per picture
    failures: list[Failure]  # of each picture that could not be read


def predict(
    model: nn.Module, part: Part, preprocess: Preprocess, *, batch_size: int, workers: int
) -> Predictions:
    """Return the model's probabilities for every readable picture of a part, in its order."""
    pictures = Pictures(part, preprocess)
    batches = batching.loader(pictures, Order(len(part), batch_size), workers=workers)
    return predict_batches(model, batches, preprocess, part.labels.shape[1])


def predict_batches(
    model: nn.Module, batches: Iterable[Batch], preprocess: Preprocess, tags: int
) -> Predictions:
    """Return the model's probabilities for every readable picture of some batches."""
    scores, truth = [np.empty((0, tags), np.float32)], [np.empty((0, tags), np.bool_)]
    rows: list[int] = []
    failures: list[Failure] = []
    compute = by_torch(model, preprocess)
    for batch in batches:
        failures += batch.failures
        if batch.rows:
            scores.append(torch.from_numpy(compute(batch)).sigmoid().numpy())
            truth.append(batch.targets.numpy() > 0)
            rows += batch.rows
    return Predictions(np.concatenate(scores), np.concatenate(truth), rows, failures)


def by_torch(
    model: nn.Module, preprocess: Preprocess, outputs: Callable[[Tensor], Tensor] | None = None
) -> Compute:
    """Return what computes a model's logits where it lies, in eval mode, in float32.

    outputs: what to compute in place of the logits, from normalised pixels
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def compute(batch: Batch) -> Array:
        was_training = model.training
        model.eval()
        inputs, _ = batching.to_device(batch, device, preprocess)
        found: Any = (outputs or model)(inputs)
        model.train(was_training)
        return np.asarray(found.float().cpu())

    return compute


def by_tagger(tagger: Tagger) -> Compute:
    """Return what computes the logits of a tagger in any layout."""

    def compute(batch: Batch) -> Array:
        found = tagger.engine(batch.pixels.numpy(), False).probabilities
        return codes.finite_logit(found).astype(np.float32)

    return compute
