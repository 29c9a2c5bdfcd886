"""Preprocessing steps of imgutils give the pixels of Pillow and torchvision."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from tagger.core.colours import WHITE
from tagger.core.errors import TaggerError
from tagger.images import preprocess
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models import external_preprocess

Write = Callable[[str, str], Path]
Steps = list[dict[str, Any]]

NORMALIZE = {"type": "normalize", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
TENSOR = {"type": "maybe_to_tensor"}
PAD = {"type": "pad_to_size", "size": [40, 40], "interpolation": "bilinear"}
CROP = {"type": "center_crop", "size": [32, 32]}
FOREIGN: Steps = [
    {"type": "convert_rgb"},
    PAD | {"background_color": "white"},
    {"type": "resize", "size": 32, "interpolation": "bicubic", "antialias": True, "max_size": None},
    CROP,
]
WAYS = {name: getattr(transforms.InterpolationMode, name.upper()) for name in ("bilinear", "box")}

side = st.integers(1, 120)
small = st.integers(1, 48)


@pytest.fixture
def read(write_file: Write) -> Callable[[Steps], Preprocess]:
    """Read stages from a file, with those that end every list."""

    def read(steps: Steps) -> Preprocess:
        content = json.dumps({"test": [*steps, TENSOR, NORMALIZE]})
        return external_preprocess.read(write_file("preprocess.json", content))

    return read


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng([width, height])
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def apply_step(step: Mapping[str, Any], image: Image.Image) -> Pixels:
    """Return what one stage makes of a picture, be it a square or not."""
    return np.asarray(external_preprocess._KINDS[step["type"]](step)(image))


@settings(max_examples=40)
@given(
    st.sampled_from(["pad", "crop", "stretch"]),
    st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    small,
    st.tuples(*[st.integers(0, 255)] * 3),
)
def test_our_own_preprocess_json_is_read_as_ours(
    tmp_path_factory: pytest.TempPathFactory,
    fitting: str,
    interpolation: str,
    size: int,
    background: tuple[int, int, int],
) -> None:
    constants = (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)
    shown = background if fitting == "pad" else WHITE
    prepared = Preprocess(size, *constants, interpolation, shown, fitting)
    path = tmp_path_factory.mktemp("ours") / "preprocess.json"
    prepared.write(path)
    assert external_preprocess.read(path) == preprocess.read(path) == prepared


@settings(max_examples=100)
@given(st.data(), side, side, small)
@pytest.mark.parametrize("way", WAYS)
def test_resize_to_one_length_equals_torchvision(
    way: str, data: st.DataObject, width: int, height: int, size: int
) -> None:
    step = {"type": "resize", "interpolation": way}
    form = data.draw(st.sampled_from([size, [size]]))
    expected = transforms.Resize(size, WAYS[way])(image := noise(width, height))
    assert np.array_equal(apply_step(step | {"size": form}, image), np.asarray(expected))


def test_resize_to_the_present_length_changes_nothing() -> None:
    assert int(27 * (13 / 3)) < 27 * 13 / 3 == 117
    assert apply_step({"type": "resize", "size": 13}, noise(3, 27)).shape == (117, 13, 3)


@settings(max_examples=50)
@given(side, side, small, small)
def test_resize_to_two_lengths_equals_torchvision(
    width: int, height: int, high: int, wide: int
) -> None:
    image = noise(width, height)
    expected = transforms.Resize((high, wide))(image)
    assert np.array_equal(apply_step({"type": "resize", "size": [high, wide]}, image), expected)


@settings(max_examples=200)
@given(side, side, small, small)
def test_center_crop_equals_torchvision(width: int, height: int, high: int, wide: int) -> None:
    """Also of pictures that are smaller, which become black around."""
    image = noise(width, height)
    expected = transforms.CenterCrop((high, wide))(image)
    assert np.array_equal(
        apply_step({"type": "center_crop", "size": [high, wide]}, image), expected
    )


@settings(max_examples=60)
@given(side, side, small)
def test_padding_equals_our_own(width: int, height: int, size: int) -> None:
    image = noise(width, height)
    ours = Preprocess(size, (0, 0, 0), (1, 1, 1), "bilinear", (1, 2, 3))
    step = {"type": "pad_to_size", "size": size, "background_color": [1, 2, 3]}
    assert np.array_equal(apply_step(step, image), ours.to_square(image))


def test_pad_takes_width_and_height_and_colour_names() -> None:
    step = {"type": "pad_to_size", "size": [10, 6], "background_color": "red"}
    framed = apply_step(step, Image.new("RGB", (4, 4)))
    assert framed.shape == (6, 10, 3)
    assert (framed == (255, 0, 0)).all(axis=2)[0].tolist() == [True] * 2 + [False] * 6 + [True] * 2


@pytest.mark.parametrize("shape", [(64, 64), (100, 41), (31, 97), (5, 9), (300, 1)])
def test_steps_in_sequence_equal_pillow_and_torchvision(
    read: Callable[[Steps], Preprocess], shape: tuple[int, int]
) -> None:
    image = noise(*shape)
    scale = 40 / max(shape)
    inside = [max(1, round(length * scale)) for length in shape]
    frame = Image.new("RGB", (40, 40), "white")
    place = (40 - inside[0]) // 2, (40 - inside[1]) // 2
    frame.paste(image.resize(inside, Image.Resampling.BILINEAR), place)
    rest = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(NORMALIZE["mean"], NORMALIZE["std"]),
        ]
    )
    prepared = read(FOREIGN)
    assert prepared.size == 32
    pixels = prepared(np.asarray(image))
    assert pixels == pytest.approx(rest(frame).numpy(), abs=1e-5)
    assert np.array_equal(pixels, prepared.compiled()(image))
    assert np.array_equal(pixels, pickle.loads(pickle.dumps(prepared))(image))


def test_a_crop_of_a_larger_image_is_not_read_as_ours(
    read: Callable[[Steps], Preprocess],
) -> None:
    prepared = read([{"type": "resize", "size": 36, "interpolation": "bicubic"}, CROP])
    expected = transforms.Compose(
        [transforms.Resize(36, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)]
    )
    assert np.array_equal(prepared.to_square(noise(50, 70)), expected(noise(50, 70)))


def test_one_constant_is_for_all_channels(write_file: Write) -> None:
    for mean in (0.25, [0.25]):
        content = {"test": [*FOREIGN, TENSOR, NORMALIZE | {"mean": mean, "std": 1}]}
        prepared = external_preprocess.read(write_file("preprocess.json", json.dumps(content)))
        assert (prepared.mean, prepared.std) == ((0.25,) * 3, (1.0,) * 3)
        expected = prepared.to_square(noise(9, 4)).transpose(2, 0, 1) / 255 - 0.25
        assert prepared(noise(9, 4)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([{"type": "random_crop", "size": 32}], "'random_crop' is none of pad_to_size, resize, "),
        ([{"type": "rescale", "rescale_factor": 1 / 255}, CROP], "'rescale' is none of"),
        ([{"size": 32}], "KeyError('type')"),
        (["resize"], "string indices must be integers"),
        ([{"type": "resize"}], "KeyError('size')"),
        ([{"type": "resize", "size": 32}], "images of 32 x 32, 32 x 46, 46 x 32 pixels, not one"),
        ([{"type": "center_crop", "size": [20, 30]}], "make images of 30 x 20 pixels, not one"),
        ([{"type": "resize", "size": "32"}, CROP], "'str' object cannot be interpreted"),
        ([{"type": "resize", "size": [32, 32, 32]}, CROP], "not enough values"),
        ([{"type": "resize", "size": 0}, CROP], "a side of 0 pixels"),
        ([{"type": "resize", "size": 32, "max_size": 40}, CROP], "resize has a max_size"),
        ([{"type": "resize", "size": 36, "interpolation": "area"}, CROP], "'area' is no interp"),
        ([PAD | {"background_color": "snowhite"}, CROP], "unknown color specifier: 'snowhite'"),
        ([PAD | {"background_color": [1, 2]}, CROP], "not enough values"),
        ([CROP | {"size": []}], "not enough values"),
        ([CROP, NORMALIZE | {"mean": [0.5, 0.5]}], "broadcast"),
        ([CROP, NORMALIZE | {"mean": "half"}], "half"),
    ],
)
def test_unknown_steps_are_one_line(
    read: Callable[[Steps], Preprocess], steps: Steps, reason: str
) -> None:
    with pytest.raises(TaggerError) as raised:
        read(steps)
    (line,) = str(raised.value).splitlines()
    assert "preprocess.json has steps that are not known here: " in line
    assert reason in line


@pytest.mark.parametrize("content", ["[]", "{}", '{"test": 3}', '{"test": null}', "3"])
def test_a_file_without_steps_is_one_line(write_file: Write, content: str) -> None:
    with pytest.raises(TaggerError, match=r"\A[^\n]*preprocess\.json has steps that[^\n]*\Z"):
        external_preprocess.read(write_file("preprocess.json", content))


def test_a_missing_or_broken_file_is_refused(write_file: Write, tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match="is missing"):
        external_preprocess.read(tmp_path / "none.json")
    with pytest.raises(TaggerError, match="must be JSON"):
        external_preprocess.read(write_file("preprocess.json", "{"))
