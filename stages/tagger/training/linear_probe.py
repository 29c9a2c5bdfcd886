"""Pictures seen once by a frozen backbone: a head learns from what it made of them."""

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
    """The readable pictures of a part as embeddings, (pictures, features) float32."""

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
    """Return what the head sees of each picture; those unreadable are told, and left out."""
    runtime = TorchRuntime(model, preprocess)
    pictures = ImageDataset(split, preprocess)
    batches: Any = loader.build_loader(
        pictures, ResumableBatchSampler(len(split), batch_size), workers=workers
    )
    found, rows = [], []
    tracked = progress.track(batches, "embedding")
    for batch, (embeddings,) in predict(runtime, tracked, "embeddings"):
        for row, reason in batch.failures:
            _log.warning(f"left out {split.locations[row].path}: {reason}")
        found.append(embeddings)
        rows += batch.rows
    readable = Split([split.locations[row] for row in rows], split.labels[rows])
    return EmbeddedDataset(
        readable, np.concatenate(found) if found else np.empty((0, 1), np.float32)
    )
