"""Preprocessing: the whole image in a square, as a NumPy reference does it; its file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.images import preprocess
from tagger.images.preprocess import Preprocess

HALF = (0.5, 0.5, 0.5)
IMAGENET = Preprocess(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", (1, 2, 3))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50))
def test_pad_centres_the_whole_image_undistorted(width: int, height: int, size: int) -> None:
    black = Image.new("RGB", (width, height))
    square = np.asarray(Preprocess(size, HALF, HALF).to_square(black))
    assert square.shape == (size, size, 3)
    dark = (square == 0).all(axis=2)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert (square[~dark] == 255).all()
    assert max(len(rows), len(columns)) == size
    scale = size / max(width, height)
    assert len(rows) == pytest.approx(max(1, height * scale), abs=0.5)
    assert len(columns) == pytest.approx(max(1, width * scale), abs=0.5)
    for spots in (rows, columns):
        assert 0 <= (size - 1 - spots[-1]) - spots[0] <= 1


@pytest.mark.parametrize("shape", [(64, 64), (100, 40), (31, 97), (5, 9), (300, 2)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_model_input_equals_a_numpy_reference(shape: tuple[int, int], name: str) -> None:
    image = noise(*shape)
    prepared = Preprocess(32, IMAGENET.mean, IMAGENET.std, name, (1, 2, 3))
    longest = max(shape)
    width, height = (max(1, round(side * 32 / longest)) for side in shape)
    small = image.resize((width, height), Image.Resampling[name.upper()])
    expected = np.full((32, 32, 3), (1, 2, 3), dtype=np.float64)
    top, left = (32 - small.height) // 2, (32 - small.width) // 2
    expected[top : top + small.height, left : left + small.width] = np.asarray(small)
    expected = (expected / 255 - IMAGENET.mean) / IMAGENET.std
    result = prepared(image)
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    assert result == pytest.approx(expected.transpose(2, 0, 1), abs=1e-5)


def test_an_image_of_the_right_size_is_unchanged() -> None:
    image = noise(32, 32)
    assert np.array_equal(np.asarray(IMAGENET.to_square(image)), np.asarray(image))


def test_mean_and_std_come_from_the_backbone() -> None:
    config = {"mean": HALF, "std": [0.1, 0.2, 0.3], "interpolation": "bilinear", "crop_pct": 0.9}
    assert preprocess.from_timm_config(config, 96) == Preprocess(
        96, HALF, (0.1, 0.2, 0.3), "bilinear"
    )
    assert (
        preprocess.from_timm_config(config | {"interpolation": "random"}, 96).interpolation
        == "bicubic"
    )


PAD = {"size": [8, 8], "interpolation": "bicubic", "background_color": [0, 0, 0]}
NORM = {"mean": HALF, "std": HALF}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"test": []},
        {"test": [{}, {}, {}]},
        {"test": [PAD | {"size": 8}, {}, NORM]},
        {"test": [PAD | {"size": []}, {}, NORM]},
        {"test": [PAD, {}, {"mean": 0.5, "std": 0.5}]},
        {"test": [PAD, {}, {"mean": [0.5], "std": [0.5]}]},
        {"test": [PAD | {"interpolation": "nearest"}, {}, NORM]},
        {"test": [PAD | {"background_color": "white"}, {}, NORM]},
    ],
)
def test_another_preprocessing_is_refused(
    write_file: Callable[[str, str], Path], content: object
) -> None:
    path = write_file("preprocess.json", json.dumps(content))
    with pytest.raises(TaggerError, match=r"preprocess\.json is no preprocessing of this project"):
        preprocess.read(path)


def test_a_broken_file_is_refused(write_file: Callable[[str, str], Path], tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match="must be JSON"):
        preprocess.read(write_file("preprocess.json", "{"))
    with pytest.raises(TaggerError, match="is missing"):
        preprocess.read(tmp_path / "none.json")
