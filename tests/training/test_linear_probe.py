"""A head that learns from embeddings sees what it would see on top of the backbone."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tagger.core.location import Location
from tagger.images import decode, loader
from tagger.images.dataset import SampleKey, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.training import linear_probe
from tagger.training.linear_probe import EmbeddedDataset


@pytest.fixture(scope="module")
def made(model: nn.Module, split: Split, preprocessing: Preprocess) -> EmbeddedDataset:
    return linear_probe.embed(model, split, preprocessing, batch_size=7, workers=0)


def test_the_head_makes_of_an_embedding_what_the_model_makes_of_the_picture(
    model: Any, split: Split, preprocessing: Preprocess, made: EmbeddedDataset
) -> None:
    assert made.embeddings.dtype == np.float32
    assert len(made) == len(split) == len(made.embeddings)
    with torch.inference_mode():
        for row, place in enumerate(split.locations):
            pixels = torch.from_numpy(preprocessing(decode.open_rgb(place)))[None]
            logits = model.get_classifier()(torch.from_numpy(made.embeddings[row]))
            torch.testing.assert_close(logits, model(pixels)[0], rtol=1e-4, atol=1e-4)


def test_a_model_in_training_mode_gives_the_same_embeddings_and_keeps_its_statistics(
    model: nn.Module, split: Split, preprocessing: Preprocess, made: EmbeddedDataset
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = linear_probe.embed(model.train(), split, preprocessing, batch_size=7, workers=0)
    assert np.array_equal(again.embeddings, made.embeddings)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_loader_gives_embeddings_in_its_order_with_their_tags(
    split: Split, preprocessing: Preprocess, made: EmbeddedDataset
) -> None:
    order = ResumableBatchSampler(len(split), 5, seed=1, batch_numbers=range(7))
    cpu = torch.device("cpu")
    for batch, keys in zip(loader.build_loader(made, order, workers=0), order, strict=True):
        rows = [key.row for key in keys]
        inputs, targets = loader.to_device(batch, cpu, preprocessing)
        assert batch.rows == rows
        assert np.array_equal(inputs, made.embeddings[rows])
        assert np.array_equal(targets, split.labels[rows].toarray())
        assert inputs.dtype == targets.dtype == torch.float32


def test_an_unreadable_picture_is_left_out_with_its_tags_and_told(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocess,
    made: EmbeddedDataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = list(split.locations)
    places[3] = places[10] = Location(str(tmp_path / "gone.png"), 0, 8)
    with caplog.at_level(logging.WARNING):
        some = linear_probe.embed(
            model, Split(places, split.labels), preprocessing, batch_size=7, workers=0
        )
    rows = [row for row in range(len(split)) if row not in (3, 10)]
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        f"left out {tmp_path / 'gone.png'}"
    ] * 2
    assert len(some) == len(some.split) == len(rows)
    assert some.split.locations == [split.locations[row] for row in rows]
    assert np.array_equal(some.split.labels.toarray(), split.labels[rows].toarray())
    np.testing.assert_allclose(some.embeddings, made.embeddings[rows], rtol=1e-4, atol=1e-5)
    for new, old in enumerate(rows):
        assert np.array_equal(some[SampleKey(0, new)].tags, made[SampleKey(0, old)].tags)


def test_nothing_readable_is_nothing_embedded(
    model: nn.Module, split: Split, preprocessing: Preprocess, tmp_path: Path
) -> None:
    gone = Split([Location(str(tmp_path / "gone.png"), 0, 8)] * 3, split.labels[:3])
    none = linear_probe.embed(model, gone, preprocessing, batch_size=2, workers=0)
    assert len(none) == len(none.embeddings) == 0
    assert none.split.labels.shape == (0, split.labels.shape[1])
