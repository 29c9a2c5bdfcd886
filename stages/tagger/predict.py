"""Run a model over a part of the split."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tagger import dataset
from tagger.dataset import Part
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
    """Return the model's probabilities for every readable picture of a part, in its order.

    The model runs in eval mode where it lies, and is left in the mode it was in.
    """
    device = next(model.parameters()).device
    order = dataset.Order(len(part), batch_size)
    batches = dataset.loader(dataset.Pictures(part, preprocess), order, workers=workers)
    scores, truth = [], []
    rows: list[int] = []
    failures: list[tuple[int, str]] = []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            failures += batch.failures
            if batch.rows:
                pixels, _ = dataset.to_device(batch, device, preprocess)
                logits = model(pixels)
                scores.append(logits.float().sigmoid().cpu().numpy())
                truth.append(batch.targets.numpy() > 0)
                rows += batch.rows
    model.train(was_training)
    tags = part.labels.shape[1]
    return Predictions(
        np.concatenate(scores) if scores else np.empty((0, tags), np.float32),
        np.concatenate(truth) if truth else np.empty((0, tags), np.bool_),
        rows,
        failures,
    )
