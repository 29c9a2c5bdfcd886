"""A linear probe: a frozen backbone sees each image once, and the head trains on its embeddings."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from tagger.images import loader
from tagger.images.dataset import ImageDataset, Sample, SampleKey, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models.predict import predict
from tagger.models.torch_runtime import TorchRuntime
from tagger.system import progress

_log = logging.getLogger(__name__)


class EmbeddedDataset:
    """The readable images of a split as embeddings, (images, features) float32."""

    def __init__(self, split: Split, embeddings: npt.NDArray[np.float32]) -> None:
        self.split = split
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> Sample:
        return Sample(key.row, self.embeddings[key.row], self.split.tag_columns(key.row), [])


def embed(
    model: nn.Module, split: Split, preprocess: Preprocess, *, batch_size: int, workers: int
) -> EmbeddedDataset:
    """Return the input of the head for each image. Unreadable images are logged and skipped."""
    runtime = TorchRuntime(model, preprocess)
    sampler = ResumableBatchSampler(len(split), batch_size)
    batches: Any = loader.build_loader(ImageDataset(split, preprocess), sampler, workers=workers)
    embeddings, rows = [np.empty((0, 1), np.float32)], []
    tracked = progress.track(batches, "embedding")
    for batch, (outputs,) in predict(runtime, tracked, "embeddings"):
        for row, reason in batch.failures:
            _log.warning(f"skipped {split.locations[row].path}: {reason}")
        embeddings.append(outputs)
        rows += batch.rows
    readable = Split([split.locations[row] for row in rows], split.labels[rows])
    return EmbeddedDataset(readable, np.concatenate(embeddings[1:] or embeddings))
