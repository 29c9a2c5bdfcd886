"""Predictions on disk are those of the model, of every readable image, once each."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.sparse import csr_array
from scipy.special import logit
from torch import nn

from support.predictions import predict_split
from support.trainings import SINGLE_PROCESS
from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Category, Tag
from tagger.evaluation import predictions, quantized_logits
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.predictions import SplitPredictions, SplitPredictor
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.models.torch_runtime import TorchRuntime
from tagger.system.world import available_cores

Run = Callable[..., SplitPredictions]


@pytest.fixture
def run(tags: list[Tag], model: nn.Module, preprocessing: Preprocess, tmp_path: Path) -> Run:
    """Predict a split; return the store."""

    def run(
        part: Split,
        batch_size: int = 5,
        workers: int = 0,
        unlabelled: tuple[Category, ...] = (),
        network: nn.Module = model,
    ) -> SplitPredictions:
        predictor = SplitPredictor(
            SINGLE_PROCESS, tmp_path / "kept", unlabelled, batch_size, workers
        )
        runtime = TorchRuntime(network, preprocessing)
        split_predictions = predictor("test", part, tags, runtime, preprocessing)
        assert split_predictions is not None
        return split_predictions

    return run


@pytest.fixture(scope="module")
def expected(model: nn.Module, split: Split, preprocessing: Preprocess) -> npt.NDArray[np.float64]:
    """The logits of the model, (images, tags)."""
    scores = predict_split(model, split, preprocessing, batch_size=7, workers=0).scores
    return np.asarray(logit(scores.astype(np.float64)))


def kept(store: PredictionStore) -> npt.NDArray[np.uint16]:
    """Return the codes on disk, (images, tags)."""
    return store.read_tags(0, store.tag_count).T


def near(logits: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> bool:
    """Whether logits are the same up to what float16 holds of them."""
    return np.allclose(logits, expected, rtol=2.0**-10, atol=1e-5)


def with_unreadable(part: Split, folder: Path, *rows: int) -> Split:
    """Return the part with files in place of some images that are none."""
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    places = list(part.locations)
    for row in rows:
        places[row] = places[row]._replace(path=str(broken))
    return replace(part, locations=places)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 2), (24, 0), (100, 1)])
def test_rows_and_logits_are_those_of_the_model(
    run: Run, split: Split, expected: npt.NDArray[np.float64], batch_size: int, workers: int
) -> None:
    store, failures = run(split, batch_size, workers)
    assert store.rows.tolist() == list(range(len(split)))
    assert failures == {}
    assert near(quantized_logits.logit_table()[kept(store)], expected)
    assert np.array_equal(store.labels.toarray(), split.labels.toarray())


def test_unreadable_pictures_are_told_and_the_others_keep_their_rows(
    run: Run, split: Split, tmp_path: Path, expected: npt.NDArray[np.float64]
) -> None:
    lost = [0, 5, 6, 7, 8, 9, 23]  # one batch of them whole
    store, failures = run(with_unreadable(split, tmp_path, *lost))
    left = sorted(set(range(len(split))) - set(lost))
    assert list(failures) == lost
    assert {reason.count("\n") for reason in failures.values()} == {0}
    assert store.rows.tolist() == left
    assert near(quantized_logits.logit_table()[kept(store)], expected[left])
    assert np.array_equal(store.labels.toarray(), split.labels.toarray()[left])


def test_tags_of_a_category_are_unknown_where_a_picture_has_none_of_them(
    run: Run, split: Split, tags: list[Tag]
) -> None:
    labels = split.labels.toarray()
    without = np.array([1, 4, 20])
    names: tuple[Category, ...] = ("rating", "copyright")
    for name in names:
        labels[np.ix_(without, vocabulary.category_columns(tags, name))] = False
    bare = replace(split, labels=csr_array(labels))
    store, _ = run(bare, unlabelled=names)
    unknown = kept(store) == quantized_logits.UNKNOWN
    expected = np.zeros_like(unknown)
    for name in names:
        inside = vocabulary.category_columns(tags, name)
        assert len(inside)
        lacking = np.flatnonzero(~labels[:, inside].any(axis=1))
        assert set(without.tolist()) <= set(lacking.tolist())
        expected[np.ix_(lacking, inside)] = True
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(unknown, expected)
    assert not (kept(run(bare)[0]) == quantized_logits.UNKNOWN).any()


def test_groups_are_those_of_the_pictures_that_are_left(
    run: Run, split: Split, tmp_path: Path
) -> None:
    grouped = replace(split, groups=np.arange(len(split)) // 4 * 10)
    store, _ = run(with_unreadable(grouped, tmp_path, 0, 1, 2, 3, 9))
    expected = [row // 4 - 1 for row in range(len(split)) if row not in (0, 1, 2, 3, 9)]
    assert store.groups.tolist() == expected


def test_one_picture_is_enough(run: Run, split: Split, tmp_path: Path) -> None:
    store, failures = run(with_unreadable(split, tmp_path, *range(1, len(split))))
    assert (len(store), len(failures)) == (1, len(split) - 1)
    assert kept(store).shape == (1, split.labels.shape[1])


def test_none_that_can_be_read_is_told(run: Run, split: Split, tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=f"None of {len(split)} images can be read"):
        run(with_unreadable(split, tmp_path, *range(len(split))))


def test_a_model_without_numbers_leaves_nothing_on_disk(
    run: Run, split: Split, model: nn.Module, tmp_path: Path
) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.whole(pixels)
            return logits.index_fill(1, torch.tensor([3]), torch.nan)

    with pytest.raises(
        TaggerError,
        match=r"\AThe model predicts the non-finite logit nan for image 0 and tag 3\. [^\n]*\Z",
    ):
        run(split, network=Broken())
    assert list((tmp_path / "kept").iterdir()) == []


def test_alone_is_alone_among_others_too(
    tags: list[Tag],
    model: nn.Module,
    split: Split,
    preprocessing: Preprocess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    predictor = predictions.local_predictor(tmp_path / "kept", (), batch_size=5, workers=0)
    runtime = TorchRuntime(model, preprocessing)
    split_predictions = predictor("test", split, tags, runtime, preprocessing)
    assert split_predictions is not None and len(split_predictions.store) == len(split)
    assert predictor.group.world.cores == max(1, available_cores() // 2)  # the other has its share
