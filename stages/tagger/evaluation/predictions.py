"""The predictions of a model for parts of the split, on disk, by as many processes as there are."""

from collections import deque
from collections.abc import Iterator, Sequence
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
from tagger.system import progress
from tagger.system.distributed import ProcessGroup
from tagger.system.world import read_world

EVALUATED_SPLITS = ("validation", "test")  # of the split, which no model is trained on


class SplitPredictions(NamedTuple):
    store: PredictionStore
    failures: dict[int, str]  # row and reason of each picture that could not be read


@dataclass(frozen=True)
class SplitPredictor:
    """Predicts parts onto the disk. Each process of the group computes its share."""

    group: ProcessGroup
    folder: Path
    unlabelled: Sequence[Category]  # whose tags are unknown where a picture has none of them
    batch_size: int  # pictures at a time, over all processes
    workers: int  # for each process

    def __call__(
        self,
        name: str,
        part: Split,
        tags: Sequence[Tag],
        runtime: Runtime,
        preprocess: Preprocess,
        columns: Sequence[int] | None = None,
    ) -> SplitPredictions | None:
        """Return the predictions of a part, on the leading process; their file lies in the folder.

        name: of the file
        tags: the columns of the part's labels
        columns: of the model's outputs, that of each tag; None: the model has these tags
        Raises TaggerError where no picture can be read, or the model gives what is no number.
        """
        failures: dict[int, str] = {}
        blocks = self._blocks(part, runtime, preprocess, columns, failures)
        if not self.group.is_main:
            deque(blocks, maxlen=0)
            return None
        unknown = [vocabulary.category_columns(tags, category) for category in self.unlabelled]
        truth = prediction_store.StoreLabels(part.labels, part.groups, unknown)
        kept = prediction_store.write(self.folder / f"{name}.logits", truth, blocks)
        if failures and not len(kept):
            raise TaggerError(
                f"None of {len(part):,} pictures can be read, such as {part.locations[0].path}: "
                f"{failures[0]}. Run prepare again."
            )
        return SplitPredictions(kept, dict(sorted(failures.items())))

    def _blocks(
        self,
        part: Split,
        runtime: Runtime,
        preprocess: Preprocess,
        columns: Sequence[int] | None,
        failures: dict[int, str],
    ) -> Iterator[LogitBlock]:
        order = ResumableBatchSampler(
            len(part), self.batch_size, rank_and_size=self.group.rank_and_size
        )
        batches: Any = loader.build_loader(
            ImageDataset(part, preprocess), order, workers=self.workers
        )
        if self.group.is_main:
            batches = progress.track(batches, "predicting")
        for batch, (found,) in predict(runtime, batches, "logits"):
            mine = found if columns is None else found[:, columns]
            every = self.group.gather_on_main((batch.rows, mine, batch.failures)) or []
            together: dict[int, Any] = {}  # as a last batch may have a picture twice
            for rows, logits, failed in every:
                failures.update(failed)
                together.update(zip(rows, logits, strict=True))
            if together:
                in_order = sorted(together)
                yield in_order, np.stack([together[row] for row in in_order])


def local_predictor(
    folder: Path, unlabelled: Sequence[Category], *, batch_size: int, workers: int
) -> SplitPredictor:
    """Return what predicts in this process alone, for models that do not lie on a GPU."""
    group = ProcessGroup(read_world()._replace(rank=0, size=1), torch.device("cpu"))
    return SplitPredictor(group, folder, unlabelled, batch_size, workers)
