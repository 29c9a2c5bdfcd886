"""The predictions of a model for whole splits, on disk, computed by all processes together."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Category, Tag
from tagger.evaluation import prediction_store
from tagger.evaluation.prediction_store import LogitBlock, PredictionStore
from tagger.images import loader
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models.predict import predict
from tagger.models.runtimes import Runtime
from tagger.system import distributed, progress, scratch
from tagger.system.distributed import ProcessGroup
from tagger.system.world import read_world

EVALUATED_SPLITS = ("validation", "test")  # no model is trained on them


class SplitPredictions(NamedTuple):
    store: PredictionStore
    failures: dict[int, str]  # row and reason of each unreadable image


@dataclass(frozen=True)
class SplitPredictor:
    """Writes predictions to disk. Each process of the group computes its part of the images."""

    group: ProcessGroup
    folder: Path
    unlabelled: Sequence[Category]  # their tags are unknown if an image has none of them
    batch_size: int  # images, over all processes
    workers: int  # for each process

    def __call__(
        self,
        name: str,
        split: Split,
        tags: Sequence[Tag],
        runtime: Runtime,
        preprocess: Preprocess,
        columns: Sequence[int] | None = None,
    ) -> SplitPredictions | None:
        """Return the predictions of a split on the main process, None on the others.

        name: of the file
        tags: the columns of the split's labels
        columns: of the model's outputs, one per tag; None: the model has these tags
        Raises TaggerError if no image can be read, or if a logit is non-finite.
        """
        failures: dict[int, str] = {}
        blocks = self._blocks(split, runtime, preprocess, columns, failures)
        if not self.group.is_main:
            deque(blocks, maxlen=0)
            return None
        unknown = [vocabulary.category_columns(tags, category) for category in self.unlabelled]
        labels = prediction_store.StoreLabels(split.labels, split.groups, unknown)
        store = prediction_store.write(self.folder / f"{name}.logits", labels, blocks)
        if failures and not len(store):
            raise TaggerError(
                f"None of {len(split):,} images can be read, such as {split.locations[0].path}: "
                f"{failures[0]}. Run prepare again."
            )
        return SplitPredictions(store, dict(sorted(failures.items())))

    def _blocks(
        self,
        split: Split,
        runtime: Runtime,
        preprocess: Preprocess,
        columns: Sequence[int] | None,
        failures: dict[int, str],
    ) -> Iterator[LogitBlock]:
        """Yield the logits of each batch, of all processes, on the main process."""
        sampler = ResumableBatchSampler(
            len(split), self.batch_size, rank_and_size=self.group.rank_and_size
        )
        dataset = ImageDataset(split, preprocess)
        batches: Any = loader.build_loader(dataset, sampler, workers=self.workers)
        if self.group.is_main:
            batches = progress.track(batches, "predicting")
        for batch, (outputs,) in predict(runtime, batches, "logits"):
            logits = outputs if columns is None else outputs[:, columns]
            gathered = self.group.gather_on_main((batch.rows, logits, batch.failures)) or []
            by_row: dict[int, Any] = {}  # a last batch may contain an image twice
            for rows, rank_logits, rank_failures in gathered:
                failures.update(rank_failures)
                by_row.update(zip(rows, rank_logits, strict=True))
            if by_row:
                in_order = sorted(by_row)
                yield in_order, np.stack([by_row[row] for row in in_order])


@contextmanager
def open_predictor(
    unlabelled: Sequence[Category], *, batch_size: int, workers: int
) -> Iterator[SplitPredictor]:
    """Open a predictor of all processes; its files are removed at the end."""
    with (
        distributed.process_group() as group,
        scratch.temporary_folder("evaluate") if group.is_main else nullcontext(Path()) as folder,
    ):
        yield SplitPredictor(group, folder, unlabelled, batch_size, workers)


def local_predictor(
    folder: Path, unlabelled: Sequence[Category], *, batch_size: int, workers: int
) -> SplitPredictor:
    """Return a predictor for this process alone, for models that are not on a GPU."""
    group = ProcessGroup(read_world()._replace(rank=0, size=1), torch.device("cpu"))
    return SplitPredictor(group, folder, unlabelled, batch_size, workers)
