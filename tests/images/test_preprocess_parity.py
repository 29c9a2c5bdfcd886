"""Preprocessing gives the same bits in every fitting, loop, loader and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from support.predictions import predict_split
from tagger.core.colours import WHITE
from tagger.core.location import Location
from tagger.data.hub import shards
from tagger.images import decode, loader, preprocess, resize
from tagger.images.dataset import ImageDataset, SampleKey, Split
from tagger.images.decode import Pixels
from tagger.images.loader import Collate, ResumableBatchSampler
from tagger.images.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FITTINGS = ["pad", "crop", "stretch"]
CPU = torch.device("cpu")

shapes = st.tuples(st.integers(1, 120), st.integers(1, 120))  # width, height


def prepared(fitting: str, size: int = 24, name: str = "bicubic") -> Preprocess:
    background = (10, 200, 30) if fitting == "pad" else WHITE
    return Preprocess(size, MEAN, STD, name, background, fitting)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def reference(image: Image.Image, by: Preprocess) -> Pixels:
    """Return a image as a square, as one would do it by hand with Pillow."""
    size = by.size
    if by.fitting == "stretch":
        return resize.resize_with_pillow(np.asarray(image), (size, size), by.interpolation)
    side = max(image.size) if by.fitting == "pad" else min(image.size)
    to_int = round if by.fitting == "pad" else int
    width, height = (max(1, to_int(size * length / side)) for length in image.size)
    small = Image.fromarray(
        resize.resize_with_pillow(np.asarray(image), (width, height), by.interpolation)
    )
    if by.fitting == "pad":
        square = Image.new("RGB", (size, size), by.background)
        square.paste(small, ((size - width) // 2, (size - height) // 2))
        return np.asarray(square)
    left, top = ((length - size) // 2 for length in (width, height))
    return np.asarray(small.crop((left, top, left + size, top + size)))


@settings(max_examples=90)
@given(shapes, st.integers(1, 50), st.sampled_from(FITTINGS))
def test_fitting_equals_a_pillow_reference(shape: tuple[int, int], size: int, fitting: str) -> None:
    by = prepared(fitting, size)
    image = noise(*shape)
    square, expected = by.to_square(image), reference(image, by)
    assert square.shape == (size, size, 3)
    assert np.array_equal(square, expected)


@pytest.mark.parametrize("fitting", FITTINGS)
@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (1, 300), (300, 1), (24, 24), (25, 24)])
def test_only_pad_has_a_border(shape: tuple[int, int], fitting: str) -> None:
    image = Image.new("RGB", shape, "black")
    square = prepared(fitting).to_square(image)
    green = (square == (10, 200, 30)).all(axis=2)
    assert (square[~green] == 0).all()
    border = 1 - max(1, round(24 * min(shape) / max(shape))) / 24
    assert green.mean() == pytest.approx(border if fitting == "pad" else 0)


def test_a_crop_is_the_middle() -> None:
    pixels = np.zeros((24, 72, 3), np.uint8)
    pixels[:, 24:48] = 255
    assert (prepared("crop").to_square(Image.fromarray(pixels)) == 255).all()
    assert (prepared("crop").to_square(Image.fromarray(pixels.transpose(1, 0, 2))) == 255).all()


@pytest.mark.parametrize("fitting", FITTINGS)
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_preprocess_json_has_the_steps_of_imgutils_and_is_read_back(
    tmp_path: Path, fitting: str, name: str
) -> None:
    how: dict[str, object] = {"interpolation": name}
    written: dict[str, list[dict[str, object]]] = {
        "pad": [{"type": "pad_to_size", "size": [24, 24], "background_color": [10, 200, 30]} | how],
        "stretch": [{"type": "resize", "size": [24, 24], "antialias": True} | how],
        "crop": [
            {"type": "resize", "size": 24, "antialias": True} | how,
            {"type": "center_crop", "size": [24, 24]},
        ],
    }
    by = prepared(fitting, name=name)
    by.write(tmp_path / "preprocess.json")
    content = json.loads((tmp_path / "preprocess.json").read_text(encoding="utf-8"))
    rest: list[dict[str, object]] = [
        {"type": "maybe_to_tensor"},
        {"type": "normalize", "mean": list(MEAN), "std": list(STD)},
    ]
    assert content == {"test": written[fitting] + rest, "val": written[fitting] + rest}
    again = preprocess.read(tmp_path / "preprocess.json")
    assert again == by
    assert np.array_equal(again(noise(50, 20)), by(noise(50, 20)))


# imgutils rounds the longer side and the middle down to whole pixels.
@pytest.mark.parametrize("shape", [(94, 37), (61, 24)])
def test_crop_equals_that_of_imgutils(shape: tuple[int, int]) -> None:
    by = prepared("crop")
    width, height = int(24 * shape[0] / shape[1]), 24
    small = resize.resize_with_pillow(np.asarray(noise(*shape)), (width, height), "bicubic")
    left = (width - 24) // 2
    assert np.array_equal(by.to_square(noise(*shape)), small[:, left : left + 24])


@settings(max_examples=60)
@given(shapes, st.sampled_from(FITTINGS), st.sampled_from(["bilinear", "bicubic", "lanczos"]))
def test_compiled_preprocessing_gives_the_same_bits(
    shape: tuple[int, int], fitting: str, name: str
) -> None:
    by = prepared(fitting, name=name)
    image = noise(*shape)
    assert np.array_equal(by.compiled().to_square(image), by.to_square(image))
    assert by.compiled()(image).tobytes() == by(image).tobytes()
    assert by.compiled() == by


def test_normalisation_equals_the_formula_for_every_level() -> None:
    by = prepared("stretch", 16)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    mean, std = np.array([MEAN, STD], np.float32)
    expected = (levels.astype(np.float32) / np.float32(255) - mean) / std
    for preprocessing in (by, by.compiled()):
        inputs = preprocessing.normalise(levels[None])
        assert inputs.dtype == np.float32
        assert inputs.shape == (1, 3, 16, 16)
        assert np.array_equal(inputs[0], expected.transpose(2, 0, 1))


def batch_of(split: Split, by: Preprocess, rows: range) -> loader.Batch:
    images = ImageDataset(split, by)
    return Collate(split.labels.shape[1])([images[SampleKey(0, row)] for row in rows])


@pytest.mark.parametrize("fitting", FITTINGS)
def test_device_input_equals_preprocessing_alone_and_in_a_batch(split: Split, fitting: str) -> None:
    by = prepared(fitting)
    together, targets = loader.to_device(batch_of(split, by, range(9)), CPU, by)
    assert together.shape == (9, 3, 24, 24)
    assert together.dtype == targets.dtype == torch.float32
    for row in range(9):
        single, _ = loader.to_device(batch_of(split, by, range(row, row + 1)), CPU, by)
        alone = by(decode.open_rgb(split.locations[row]))
        assert np.array_equal(together[row].numpy(), alone)
        assert np.array_equal(single[0].numpy(), alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_normalises_to_the_same_bits(split: Split) -> None:
    by = prepared("pad")
    batch = batch_of(split, by, range(9))
    pixels, _ = loader.to_device(batch, torch.device("cuda"), by)
    assert torch.equal(pixels.cpu(), loader.to_device(batch, CPU, by)[0])


def in_a_tar(split: Split, folder: Path) -> Split:
    """Return the same images as members of a tar."""
    members = [
        (f"{row}.png", Path(place.path).read_bytes()) for row, place in enumerate(split.locations)
    ]
    tar = folder / "0000.tar"
    shards.write_tar(tar, members)
    index, _ = shards.open_index(tar)
    where = {
        name: Location(str(tar), offset, size)
        for name, offset, size in zip(
            index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True
        )
    }
    return Split([where[name] for name, _ in members], split.labels)


def test_a_folder_and_a_tar_give_the_same_bits(split: Split, tmp_path: Path) -> None:
    packed = in_a_tar(split, tmp_path)
    assert all(place.offset > 0 for place in packed.locations)
    batch, other = (batch_of(data, prepared("pad"), range(len(split))) for data in (split, packed))
    assert torch.equal(batch.pixels, other.pixels)
    assert torch.equal(batch.targets, other.targets)
    assert batch.rows == other.rows


class RecordingModel(nn.Module):
    """Keeps its inputs."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, tags)
        self.inputs: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.inputs.append(pixels.clone())
        logits: Tensor = self.head(pixels.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("fitting", FITTINGS)
def test_prediction_shows_the_model_the_same_bits(split: Split, fitting: str) -> None:
    by = prepared(fitting)
    model = RecordingModel(split.labels.shape[1])
    predictions = predict_split(model, split, by, batch_size=7, workers=0)
    inputs = torch.cat(model.inputs).numpy()
    assert predictions.rows == list(range(len(split)))
    assert [len(pixels) for pixels in model.inputs] == [7, 7, 7, 3]
    for row, place in enumerate(split.locations):
        assert np.array_equal(inputs[row], by(decode.open_rgb(place)))


def test_batches_of_any_size_hold_the_same_bits(split: Split) -> None:
    by = prepared("pad")
    for size in (1, 5, 24):
        batches = loader.build_loader(
            ImageDataset(split, by), ResumableBatchSampler(len(split), size), workers=0
        )
        together = torch.cat([batch.pixels for batch in batches])
        assert torch.equal(together, batch_of(split, by, range(len(split))).pixels)
