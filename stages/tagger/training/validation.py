"""Validation of a model in training: metrics, predictions, and a sheet of images with tags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tagger.evaluation.metrics import dense
from tagger.images import contact_sheet, decode
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.models.predict import Predictions, predict_labelled
from tagger.models.torch_runtime import TorchRuntime
from tagger.system.distributed import ProcessGroup
from tagger.training.schedule import Metrics

SHEET_IMAGES = 16


@dataclass(frozen=True)
class Validation:
    """The outcome of one validation."""

    metrics: Metrics  # they follow from seed and data alone: step, epoch, loss, ...
    throughput: Metrics
    summary: str  # for the log
    predictions: Predictions  # on the validation split
    checkpoints: list[str]  # to write: best, last, epoch-2
    weights: dict[str, Tensor]  # of the validated model; empty if there is no checkpoint to write


class ValidationLogger(Protocol):
    """Logs validations and writes checkpoints."""

    def log_validation(self, validation: Validation) -> None: ...


@dataclass(frozen=True)
class Validator:
    """Validates on the same images each time, of which each process predicts a part."""

    split: Split
    batches: DataLoader[Any]
    preprocess: Preprocess
    group: ProcessGroup

    def __call__(self, model: nn.Module) -> tuple[Metrics, Predictions]:
        """Return the metrics, the same in every process, and in the main process all predictions.

        The loss is the binary cross-entropy whatever `train.loss` is, summed over tags and averaged
        over images, in nats, so that it compares between losses. Unknown labels do not count.
        """
        predictions = predict_labelled(
            TorchRuntime(model, self.preprocess), self.batches, self.split.labels.shape[1]
        )
        gathered = self.group.gather_on_main(predictions)
        metrics = {"macro_ap": 0.0, "micro_ap": 0.0, "validation_loss": 0.0}
        if gathered is not None:
            predictions = _merge(gathered)
            arrays = predictions.scores, predictions.truth, predictions.known
            metrics = {
                "macro_ap": dense.macro_ap(*arrays),
                "micro_ap": dense.micro_ap(*arrays),
                "validation_loss": dense.cross_entropy(*arrays),
            }
        return self.group.broadcast_from_main(metrics), predictions

    def contact_sheet(self, predictions: Predictions, tag_names: Sequence[str]) -> Image.Image:
        """Return the first images with the tags of the highest scores."""
        locations = [self.split.locations[row] for row in predictions.rows[:SHEET_IMAGES]]
        images = [decode.open_rgb_or_none(each, self.preprocess.background) for each in locations]
        return contact_sheet.prediction_sheet(
            images, predictions.scores, predictions.truth, tag_names, columns=4
        )


def _merge(gathered: list[Predictions]) -> Predictions:
    """Return the predictions of all processes, each image once, in the order of the split."""
    rows = np.array([row for part in gathered for row in part.rows], dtype=np.int64)
    _, first = np.unique(rows, return_index=True)
    return Predictions(
        np.concatenate([part.scores for part in gathered])[first],
        np.concatenate([part.truth for part in gathered])[first],
        np.concatenate([part.known for part in gathered])[first],
        rows[first].tolist(),
        sorted({failure for part in gathered for failure in part.failures}),
    )
