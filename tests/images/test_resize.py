"""Compiled loops resize images to the same bits as Pillow, for any image, size and filter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger.images import decode, resize
from tagger.images.dataset import Split
from tagger.images.decode import Pixels

FILTERS = sorted(resize.FILTERS)
Size = tuple[int, int]  # width, height

sides = st.integers(1, 300)
sizes = st.tuples(sides, sides)
filters = st.sampled_from(FILTERS)


def noise(size: Size, seed: int = 0) -> Pixels:
    width, height = size
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def black_and_white(size: Size, seed: int = 0) -> Pixels:
    """Return an image that makes filters overshoot most."""
    return (noise(size, seed) > 127).astype(np.uint8) * 255


def assert_equal(image: Pixels, size: Size, name: str) -> None:
    plain = resize.resize_with_pillow(image, size, name)
    fast = resize.resize_compiled(image, size, name)
    assert plain.shape == fast.shape == (size[1], size[0], 3)
    assert plain.dtype == fast.dtype == np.uint8
    assert np.array_equal(plain, fast)


@settings(max_examples=150)
@given(sizes, sizes, filters, st.integers(0, 99), st.sampled_from([noise, black_and_white]))
def test_compiled_resize_equals_pillow_for_any_sizes(
    before: Size, after: Size, name: str, seed: int, kind: object
) -> None:
    make = noise if kind is noise else black_and_white
    assert_equal(make(before, seed), after, name)


@settings(max_examples=80)
@given(sizes, st.floats(0.01, 4), filters)
def test_compiled_resize_equals_pillow_for_any_scale(before: Size, scale: float, name: str) -> None:
    width, height = (min(600, max(1, round(side * scale))) for side in before)
    assert_equal(noise(before), (width, height), name)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 1), (300, 300)),
        ((300, 300), (1, 1)),
        ((2, 300), (3, 16)),
        ((3, 2000), (1, 448)),
        ((2000, 3), (448, 1)),
        ((30, 900), (30, 300)),
        ((900, 30), (300, 30)),
        ((64, 65), (65, 64)),
        ((63, 129), (448, 448)),
        ((1500, 2100), (320, 448)),
        ((641, 479), (640, 480)),
    ],
)
@pytest.mark.parametrize("kind", [noise, black_and_white])
def test_compiled_resize_equals_pillow_for_extreme_sizes(
    before: Size, after: Size, name: str, kind: object
) -> None:
    make = noise if kind is noise else black_and_white
    assert_equal(make(before), after, name)


@pytest.mark.parametrize("name", FILTERS)
def test_compiled_resize_equals_pillow_for_real_images(split: Split, name: str) -> None:
    for row, place in enumerate(split.locations):
        image = np.asarray(decode.open_rgb(place))
        for size in ((16, 16), (40, 40), (100, 100), (32, 20), (17, 7 + row)):
            assert_equal(image, size, name)


@pytest.mark.parametrize("name", FILTERS)
def test_resize_to_the_same_size_changes_nothing(name: str) -> None:
    image = noise((50, 31))
    for resized in (resize.resize_compiled, resize.resize_with_pillow):
        assert np.array_equal(resized(image, (50, 31), name), image)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_resize_keeps_a_constant_colour(name: str, level: int) -> None:
    image = np.full((200, 90, 3), (level, 255 - level, 7), np.uint8)
    for size in ((13, 20), (200, 300)):
        pixels = resize.resize_compiled(image, size, name)
        assert (pixels == (level, 255 - level, 7)).all()


@pytest.mark.parametrize("name", FILTERS)
def test_what_others_read_with_one_call_of_pillow_is_the_same(split: Split, name: str) -> None:
    for place in split.locations:
        image = decode.open_rgb(place)
        for size in ((40, 40), (100, 100), (32, 20), (20, 32)):
            once = np.asarray(image.resize(size, resize.FILTERS[name])).astype(int)
            assert np.array_equal(resize.resize_compiled(np.asarray(image), size, name), once)


def test_resize_filters_differ() -> None:
    image = noise((60, 60))
    results = {resize.resize_compiled(image, (25, 25), name).tobytes() for name in FILTERS}
    assert len(results) == 3


def test_resize_does_not_change_its_input() -> None:
    image = noise((60, 40))
    before = image.copy()
    resize.resize_compiled(image, (25, 70), "bicubic")
    assert np.array_equal(image, before)
