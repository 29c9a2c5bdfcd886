"""The prediction loop: smaller batches if memory is short, float32, the model left as it was."""

import logging
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
from tagger.models.predict import predict
from tagger.models.torch_runtime import TorchRuntime
from tagger.system import distributed

SIZE = 32


class SmallMemory(nn.Module):
    """A model with memory for so many images."""

    def __init__(self, tags: int, room: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, tags)
        self.room = room
        self.batch_sizes: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.batch_sizes.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("no room")
        logits: Tensor = self.head(pixels.mean(dim=(2, 3)))
        return logits


@pytest.fixture
def model(split: Split) -> SmallMemory:
    torch.manual_seed(0)
    return SmallMemory(split.labels.shape[1], 1000)


def blank(images: int) -> Batch:
    pixels = torch.zeros((images, SIZE, SIZE, 3), dtype=torch.uint8)
    return Batch(list(range(images)), pixels, torch.zeros(images, 0, dtype=torch.int8), [])


@pytest.mark.parametrize(
    ("room", "batch_sizes", "halved"),
    [(11, [11, 11, 2], []), (3, [11, 6, 3, 3, 3, 2, 3], [6, 3])],
)
def test_out_of_memory_halves_batches_and_changes_no_prediction(
    model: SmallMemory,
    split: Split,
    preprocessing: Preprocess,
    caplog: pytest.LogCaptureFixture,
    room: int,
    batch_sizes: list[int],
    halved: list[int],
) -> None:
    expected = predict_split(model, split, preprocessing, batch_size=11)
    model.room, model.batch_sizes = room, []
    with caplog.at_level(logging.WARNING):
        predictions = predict_split(model.train(), split, preprocessing, batch_size=11)
    assert model.training
    assert model.batch_sizes[: len(batch_sizes)] == batch_sizes
    assert predictions.rows == expected.rows
    np.testing.assert_allclose(predictions.scores, expected.scores, rtol=1e-6)
    assert [record.message for record in caplog.records] == [
        f"Out of memory: {size} images at a time from now on." for size in halved
    ]


def test_out_of_memory_with_one_image_is_one_line_and_leaves_the_model_in_its_mode(
    model: SmallMemory, split: Split, preprocessing: Preprocess
) -> None:
    model.room = 0
    with pytest.raises(TaggerError, match=r"\AThe memory of the device does not suffice .*\Z"):
        predict_split(model.train(), split, preprocessing, batch_size=4)
    assert model.batch_sizes == [4, 2, 1]
    assert model.training


def test_out_of_memory_of_a_sharded_model_halves_nothing(
    model: SmallMemory, split: Split, preprocessing: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.room = 3
    monkeypatch.setattr(distributed, "is_sharded", lambda model: True)
    with pytest.raises(TaggerError, match=r"\A.* 4 images .* Lower train\.micro_batch\.\Z"):
        predict_split(model, split, preprocessing, batch_size=4)
    assert model.batch_sizes == [4]


def test_a_batch_without_images_is_computed_and_gives_no_outputs(
    model: SmallMemory, preprocessing: Preprocess
) -> None:
    empty = blank(0)._replace(pixels=torch.empty((0, 1, 1, 3), dtype=torch.uint8))
    ((batch, (logits,)),) = predict(TorchRuntime(model, preprocessing), [empty], "logits")
    assert batch is empty
    assert logits.shape == (0, model.head.out_features)
    assert model.batch_sizes == [1]


def torch_settings() -> dict[str, Any]:
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
def test_outputs_are_computed_in_float32_and_settings_of_torch_restored(
    preprocessing: Preprocess, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    seen: list[dict[str, Any]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(torch_settings())
            return pixels.mean(dim=(2, 3)) + self.bias

    monkeypatch.setattr(cudnn, "deterministic", deterministic)
    torch.set_float32_matmul_precision("high")  # as training does
    try:
        before = torch_settings()
        TorchRuntime(Watching(), preprocessing).run(blank(2).squares, "logits")
        assert torch_settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert before["matmuls"] == "high" and before["convolutions in TF32"]
    expected = {"gradients": False, "convolutions in TF32": False, "matmuls": "highest"}
    assert seen == [before | expected]
