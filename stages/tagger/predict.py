"""Run a model over a part of the split."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tagger import batching
from tagger.batching import Batch, Order
from tagger.dataset import Part, Pictures
from tagger.metrics import Scores, Truth
from tagger.preprocess import Preprocess


class Predictions(NamedTuple):
    scores: Scores  # (pictures, tags), probabilities
    truth: Truth  # (pictures, tags)
    rows: list[int]  # of the part, one per picture
    failures: list[tuple[int, str]]  # row and reason of each picture that could not be read


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
    """Return the model's probabilities for every readable picture of some batches.

    The model runs in eval mode where it lies, and is left in the mode it was in.
    """
    device = next(model.parameters()).device
    scores, truth = [np.empty((0, tags), np.float32)], [np.empty((0, tags), np.bool_)]
    rows: list[int] = []
    failures: list[tuple[int, str]] = []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            failures += batch.failures
            if batch.rows:
                inputs, _ = batching.to_device(batch, device, preprocess)
                scores.append(model(inputs).float().sigmoid().cpu().numpy())
                truth.append(batch.targets.numpy() > 0)
                rows += batch.rows
    model.train(was_training)
    return Predictions(np.concatenate(scores), np.concatenate(truth), rows, failures)
