"""A model is judged the same way however little memory there is, and is left as it was."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.backends import cudnn

from support.predictions import predict_split
from tagger.core.errors import TaggerError
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.images.preprocess import Preprocess
from tagger.models import backbone, predict, runtimes
from tagger.models.runtimes import Device
from tagger.system import distributed

SIZE = 32


class Cramped(nn.Module):
    """A model that has room for so many pictures."""

    def __init__(self, tags: int, room: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, tags)
        self.room = room
        self.given: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.given.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("no room")
        logits: Tensor = self.head(pixels.mean(dim=(2, 3)))
        return logits


@pytest.fixture
def cramped(split: Split) -> Cramped:
    torch.manual_seed(0)
    return Cramped(split.labels.shape[1], 1000)


def blank(pictures: int) -> Batch:
    pixels = torch.zeros((pictures, SIZE, SIZE, 3), dtype=torch.uint8)
    return Batch(list(range(pictures)), pixels, torch.zeros(pictures, 0, dtype=torch.int8), [])


@pytest.mark.parametrize(("room", "given"), [(11, [11, 11, 2]), (3, [11, 6, 3, 3, 3, 2, 3])])
def test_without_room_pictures_are_judged_fewer_at_a_time(
    cramped: Cramped,
    split: Split,
    preprocessing: Preprocess,
    caplog: pytest.LogCaptureFixture,
    room: int,
    given: list[int],
) -> None:
    whole = predict_split(cramped, split, preprocessing, batch_size=11)
    cramped.room, cramped.given = room, []
    with caplog.at_level(logging.WARNING):
        found = predict_split(cramped.train(), split, preprocessing, batch_size=11)
    assert cramped.training
    assert cramped.given[: len(given)] == given
    assert found.rows == whole.rows
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-6)
    told = [record.message for record in caplog.records]
    assert told == [
        f"Memory does not suffice: judging {most} pictures at a time from now on."
        for most in (6, 3)
        if room < most * 2 - 1
    ]


def test_a_model_without_room_for_one_picture_is_told_in_one_line_and_left_as_it_was(
    cramped: Cramped, split: Split, preprocessing: Preprocess
) -> None:
    cramped.room = 0
    with pytest.raises(TaggerError, match=r"\AThe memory of the device does not suffice .*\Z"):
        predict_split(cramped.train(), split, preprocessing, batch_size=4)
    assert cramped.given == [4, 2, 1]
    assert cramped.training


def test_where_others_wait_in_the_middle_of_the_model_too_many_pictures_are_refused(
    cramped: Cramped, split: Split, preprocessing: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped.room = 3
    monkeypatch.setattr(distributed, "in_parts", lambda model: True)
    with pytest.raises(TaggerError, match=r"\A.* 4 pictures .* Lower train\.micro_batch\.\Z"):
        predict_split(cramped, split, preprocessing, batch_size=4)
    assert cramped.given == [4]


def test_a_batch_without_pictures_is_computed_and_gives_nothing(
    cramped: Cramped, preprocessing: Preprocess
) -> None:
    empty = blank(0)._replace(pixels=torch.empty((0, 1, 1, 3), dtype=torch.uint8))
    found = predict.by_torch(cramped, preprocessing)(empty)
    assert found.shape == (0, cramped.head.out_features)
    assert cramped.given == [1]


def how() -> dict[str, Any]:
    """Return how torch computes at this moment."""
    return {
        "gradients": not torch.is_inference_mode_enabled(),
        "cudnn": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "convolutions in TF32": cudnn.allow_tf32,
        "matmuls": torch.get_float32_matmul_precision(),
    }


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("user", ["evaluate", "infer"])
def test_every_judgement_is_computed_in_whole_float32_and_otherwise_as_before(
    preprocessing: Preprocess, monkeypatch: pytest.MonkeyPatch, user: str, deterministic: bool
) -> None:
    seen: list[dict[str, Any]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(how())
            return pixels.mean(dim=(2, 3)) + self.bias

    monkeypatch.setattr(cudnn, "deterministic", deterministic)
    monkeypatch.setattr(backbone, "load", lambda folder: Watching())
    torch.set_float32_matmul_precision("high")  # as training does
    try:
        before = how()
        batch = blank(2)
        if user == "evaluate":
            predict.by_torch(Watching(), preprocessing)(batch)
        else:
            engine = runtimes.on_torch(Path("none"), preprocessing, Device("cpu"))
            engine(batch.pixels.numpy(), False)
        assert how() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert before["matmuls"] == "high" and before["convolutions in TF32"]
    told = {"gradients": False, "convolutions in TF32": False, "matmuls": "highest"}
    assert seen == [before | told]
