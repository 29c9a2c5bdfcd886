"""Predictions of a model, or drawn at random, and what keeps them on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy.sparse import csr_array
from torch import nn

from tagger.core.arrays import Ints, Scores, Truth
from tagger.core.vocabulary import Tag
from tagger.evaluation import prediction_store
from tagger.evaluation.prediction_store import PredictionStore
from tagger.images import loader
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models import predict
from tagger.models.predict import Predictions
from tagger.models.torch_runtime import TorchRuntime

Numbers = npt.NDArray[np.float64]


class RandomPredictions(NamedTuple):
    logits: Scores  # (pictures, tags), numbers that half precision holds
    truth: Truth  # (pictures, tags)


def predict_split(
    model: nn.Module, part: Split, preprocess: Preprocess, *, batch_size: int, workers: int = 0
) -> Predictions:
    """Return the model's probabilities for every readable picture of a part, in its order."""
    pictures = ImageDataset(part, preprocess)
    batches = loader.build_loader(
        pictures, ResumableBatchSampler(len(part), batch_size), workers=workers
    )
    return predict.predict_labelled(TorchRuntime(model, preprocess), batches, part.labels.shape[1])


def random_predictions(
    pictures: int, tags: int, seed: int = 0, *, density: float = 0.3, steps: int = 0
) -> RandomPredictions:
    """Draw logits, higher where the tag is there; `steps` of them distinct, unless it is 0."""
    random = np.random.default_rng(seed)
    truth = random.random((pictures, tags)) < density
    logits = random.normal(-1, 1.5, (pictures, tags)) + 1.5 * truth
    if steps:
        logits = np.round(logits * steps / 10) * 10 / steps
    return RandomPredictions(logits.astype(np.float16).astype(np.float32), truth)


@st.composite
def small_predictions(pick: st.DrawFn) -> RandomPredictions:
    """Predictions of few pictures, often tied, where some tags are on none or on all."""
    pictures, tags = pick(st.integers(1, 30)), pick(st.integers(1, 6))
    density = pick(st.sampled_from([0.0, 0.05, 0.4, 0.95, 1.0]))
    steps = pick(st.sampled_from([0, 1, 5]))
    seed = pick(st.integers(0, 2**32 - 1))
    return random_predictions(pictures, tags, seed, density=density, steps=steps)


def make_tags(count: int, categories: Sequence[int] = (0, 4)) -> list[Tag]:
    """Tags in as many runs as there are categories, each less frequent than the one before."""
    run = -(-count // len(categories))
    return [Tag(n, f"tag_{n}", categories[n // run], 1000 - n) for n in range(count)]


def write_store(
    predictions: RandomPredictions,
    folder: Path,
    groups: Ints | None = None,
    unlabelled: Sequence[Ints] = (),
    tile_size: int | None = None,
) -> PredictionStore:
    """Write predictions as a model's, some images at a time."""

    def blocks() -> Iterator[prediction_store.LogitBlock]:
        for start in range(0, len(predictions.logits), 50):
            block = predictions.logits[start : start + 50]
            yield range(start, start + len(block)), block

    truth = prediction_store.StoreLabels(csr_array(predictions.truth), groups, unlabelled)
    return prediction_store.write(folder / "test.logits", truth, blocks(), tile_size)


class TemporaryStore:
    """Predictions on disk, in a folder that is gone afterwards."""

    def __init__(
        self,
        predictions: RandomPredictions,
        groups: Ints | None = None,
        unlabelled: Sequence[Ints] = (),
        tile_size: int | None = None,
    ) -> None:
        self._folder = TemporaryDirectory()
        folder = Path(self._folder.name)
        self._store = write_store(predictions, folder, groups, unlabelled, tile_size)

    def __enter__(self) -> PredictionStore:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
