"""How good a model in training is, on the validation part, and what that looks like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from tagger.evaluation.metrics import dense
from tagger.images import contact_sheet, decode
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.models.predict import Predictions, predict_labelled
from tagger.models.torch_runtime import TorchRuntime
from tagger.system.distributed import ProcessGroup

SHOWN = 16  # pictures on the sheet


@dataclass(frozen=True)
class Validator:
    """Judges on the same pictures every time, of which each process takes its share."""

    split: Split
    batches: DataLoader[Any]
    preprocess: Preprocess
    group: ProcessGroup

    def __call__(self, model: nn.Module) -> tuple[dict[str, float], Predictions]:
        """Return the figures, the same on every process, and the predictions, on the leading one.

        The loss is the binary cross-entropy, whatever the training minimises, summed over tags and
        averaged over pictures, in nats: it can be compared between recipes. Tags that are unknown
        on a picture count for nothing.
        """
        mine = predict_labelled(
            TorchRuntime(model, self.preprocess), self.batches, self.split.labels.shape[1]
        )
        every = self.group.gather_on_main(mine)
        figures = {"macro_ap": 0.0, "micro_ap": 0.0, "validation_loss": 0.0}
        if every is not None:
            mine = _merge(every)
            told = mine.scores, mine.truth, mine.known
            figures = {
                "macro_ap": dense.macro_ap(*told),
                "micro_ap": dense.micro_ap(*told),
                "validation_loss": dense.cross_entropy(*told),
            }
        return self.group.broadcast_from_main(figures), mine

    def contact_sheet(self, predictions: Predictions, names: Sequence[str]) -> Image.Image:
        """Return the first pictures with the tags that the model finds likeliest."""
        places = [self.split.locations[row] for row in predictions.rows[:SHOWN]]
        pictures = [decode.open_rgb_or_none(place, self.preprocess.background) for place in places]
        return contact_sheet.prediction_sheet(
            pictures, predictions.scores, predictions.truth, names, columns=4
        )


def _merge(every: list[Predictions]) -> Predictions:
    """Return the predictions of all processes, each picture once, in the order of the part."""
    rows = np.array([row for one in every for row in one.rows], dtype=np.int64)
    _, first = np.unique(rows, return_index=True)
    return Predictions(
        np.concatenate([one.scores for one in every])[first],
        np.concatenate([one.truth for one in every])[first],
        np.concatenate([one.known for one in every])[first],
        rows[first].tolist(),
        sorted({failure for one in every for failure in one.failures}),
    )
