"""What the model sees is decided by seed, epoch and row alone, and bad pictures are told."""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagger import dataset, images, posts, vocabulary
from tagger.augment import Augmentation
from tagger.dataset import Collate, Key, Order, Part, Pictures
from tagger.images import Place
from tagger.preprocess import Preprocess
from tagger.vocabulary import Tag

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def broken(part: Part, tmp_path: Path) -> Part:
    """Return eight of the pictures, the third of them unreadable, the sixth missing."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    places = list(part.places[:8])
    places[2] = Place(str(tmp_path / "bad.png"), 0, 8)
    places[5] = Place(str(tmp_path / "none.png"), 0, 8)
    return Part(places, part.labels[:8])


def changed(augment: Augmentation, image: Image.Image, epoch: int, row: int) -> Image.Image:
    pixels, _ = augment(np.asarray(image), PREPROCESS, Key(epoch, row))
    return Image.fromarray(pixels)


@given(st.integers(1, 200), st.integers(0, 2**32), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    order = Order(length, 7, seed)
    order.epoch = epoch
    batches = list(order)
    keys = list(chain.from_iterable(batches))
    assert {key.epoch for key in keys} == {epoch}
    assert sorted(key.row for key in keys) == list(range(length))
    assert list(order) == batches
    assert len(order) == len(batches)
    assert all(len(batch) == 7 for batch in batches[:-1])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        order = Order(50, 50, seed)
        order.epoch = epoch
        orders.append(tuple(key.row for key in next(iter(order))))
    assert len(set(orders)) == 4


def test_without_a_seed_the_order_is_that_of_the_rows() -> None:
    assert list(Order(3, 2)) == [[Key(0, 0), Key(0, 1)], [Key(0, 2)]]


def test_batches_are_the_same_with_and_without_workers(part: Part) -> None:
    pictures = Pictures(part, PREPROCESS, Augmentation(3, 0.5, 0.5))
    seen = []
    for workers in (0, 2):
        order = Order(len(part), 7, seed=3)
        loader = dataset.loader(pictures, order, workers=workers)
        for order.epoch in (1, 2):
            seen.append([(batch.rows, batch.pixels, batch.targets) for batch in loader])
    for alone, shared in ((seen[0], seen[2]), (seen[1], seen[3])):
        assert [rows for rows, _, _ in alone] == [rows for rows, _, _ in shared]
        for (_, pixels, targets), (_, pixels_2, targets_2) in zip(alone, shared, strict=True):
            assert torch.equal(pixels, pixels_2)
            assert torch.equal(targets, targets_2)
    assert [rows for rows, _, _ in seen[0]] != [rows for rows, _, _ in seen[1]]


@pytest.mark.parametrize(
    ("size", "whole", "batches"), [(7, False, 4), (7, True, 3), (100, True, 1), (24, True, 1)]
)
def test_only_a_last_batch_that_is_not_full_is_left_out(
    part: Part, size: int, whole: bool, batches: int
) -> None:
    pictures = Pictures(part, PREPROCESS)
    loader = dataset.loader(pictures, Order(24, size, whole=whole), workers=0)
    assert len(list(loader)) == len(loader) == batches


def test_labels_match_the_sidecars(part: Part, tags: list[Tag]) -> None:
    loader = dataset.loader(Pictures(part, PREPROCESS), Order(len(part), 5, 1), workers=0)
    names = {tag.name for tag in tags}
    for batch in loader:
        for row, targets in zip(batch.rows, batch.targets, strict=True):
            sidecar = Path(part.places[row].path).with_suffix(".txt").read_text(encoding="utf-8")
            wanted = names & set(sidecar.strip().split(", "))
            assert {tags[i].name for i in torch.nonzero(targets).flatten()} == wanted
            assert wanted


def test_pixels_are_those_of_the_picture_preprocessed(part: Part) -> None:
    sample = Pictures(part, PREPROCESS)[Key(0, 4)]
    assert sample.row == 4
    assert sample.pixels is not None
    assert np.array_equal(sample.pixels, PREPROCESS.fit(images.open_rgb(part.places[4])))
    batch = Collate(part.labels.shape[1])([sample])
    pixels, targets = dataset.to_device(batch, torch.device("cpu"), PREPROCESS)
    assert np.array_equal(pixels[0], PREPROCESS(images.open_rgb(part.places[4])))
    assert np.array_equal(targets, part.labels[[4]].toarray())


def test_an_unreadable_picture_is_replaced_by_the_next_with_its_own_tags(
    part: Part, tmp_path: Path
) -> None:
    some = broken(part, tmp_path)
    loader = dataset.loader(Pictures(some, PREPROCESS, replacing=True), Order(8, 4), workers=0)
    batches = list(loader)
    assert [batch.rows for batch in batches] == [[0, 1, 3, 3], [4, 6, 6, 7]]
    assert [[row for row, _ in batch.failures] for batch in batches] == [[2], [5]]
    for batch in batches:
        assert np.array_equal(batch.targets, some.labels[batch.rows].toarray())


def test_an_unreadable_picture_is_left_out_and_reported(part: Part, tmp_path: Path) -> None:
    pictures = Pictures(broken(part, tmp_path), PREPROCESS)
    loader = dataset.loader(pictures, Order(8, 3), workers=0)
    batches = list(loader)
    assert [batch.rows for batch in batches] == [[0, 1], [3, 4], [6, 7]]
    assert [batch.pixels.shape[0] for batch in batches] == [2, 2, 2]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [row for row, _ in failures] == [2, 5]
    assert all(reason for _, reason in failures)


def test_a_batch_of_unreadable_pictures_is_empty(part: Part, tmp_path: Path) -> None:
    pictures = Pictures(broken(part, tmp_path), PREPROCESS)
    batch = Collate(part.labels.shape[1])([pictures[Key(0, 2)], pictures[Key(0, 5)]])
    assert (batch.rows, [row for row, _ in batch.failures]) == ([], [2, 5])


def test_a_picture_looks_the_same_for_the_same_seed_epoch_and_row_only(part: Part) -> None:
    image = images.open_rgb(part.places[0])
    looks = {
        (seed, epoch, row): changed(Augmentation(seed, 0.3, 0.5), image, epoch, row).tobytes()
        for seed in (0, 1)
        for epoch in (1, 2)
        for row in (0, 1)
    }
    assert len(set(looks.values())) == len(looks)
    assert changed(Augmentation(1, 0.3, 0.5), image, 2, 1).tobytes() == looks[1, 2, 1]


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 1), st.integers(0, 50))
def test_a_crop_keeps_proportions_and_the_share_of_the_area(
    width: int, height: int, min_crop: float, row: int
) -> None:
    cropped = changed(Augmentation(0, min_crop, 0.5), Image.new("RGB", (width, height)), 0, row)
    share = cropped.width / width
    assert cropped.height == pytest.approx(height * share, abs=1 + height / width)
    assert (cropped.width + 1) * (cropped.height + 1) >= min_crop * width * height
    assert cropped.width <= width
    assert cropped.height <= height


def test_without_crop_and_flip_nothing_is_changed_and_with_flip_all_is_mirrored() -> None:
    image = Image.new("RGB", (9, 5))
    image.putpixel((0, 0), (255, 0, 0))
    for row in range(20):
        assert changed(Augmentation(0), image, 1, row).tobytes() == image.tobytes()
        assert changed(Augmentation(0, flip=1.0), image, 1, row).getpixel((8, 0)) == (255, 0, 0)


def test_crops_do_not_darken_the_border_or_leave_the_picture() -> None:
    white = Image.new("RGB", (37, 23), "white")
    for row in range(50):
        assert changed(Augmentation(0, 0.3, 0.5), white, 0, row).getextrema() == ((255, 255),) * 3


def test_parts_of_the_split_are_read_with_their_own_rows(tmp_path: Path) -> None:
    tags = [Tag(-1, "a", 0, 3), Tag(-2, "b", 0, 2)]
    rows = [
        {"id": str(i), "file": f"{i}.png", "offset": 0, "size": 8, "group": i, "tags": [i % 2]}
        for i in range(4)
    ]
    rows.append({"id": "4", "file": "x", "shard": "a.tar", "offset": 9, "size": 7, "tags": [0]})
    posts.write(pa.Table.from_pylist(rows, schema=posts.SCHEMA), tmp_path / "posts")
    posts.write_tags(tags, tmp_path / "tags")
    vocabulary.write(tags[::-1], tmp_path / "vocabulary.csv")
    parts = np.array([0, 2, 0, 1, 0], dtype=np.int8)
    posts.write_split(pa.chunked_array([[str(i) for i in range(5)]]), parts, tmp_path / "split")
    read, by_name = dataset.read(
        *(tmp_path / name for name in ("posts", "tags", "vocabulary.csv", "split"))
    )
    assert read == tags[::-1]
    assert list(by_name["train"].places) == [
        Place("0.png", 0, 8),
        Place("2.png", 0, 8),
        Place("a.tar", 9, 7),
    ]
    assert by_name["validation"].labels.toarray().tolist() == [[1, 0]]
    assert by_name["test"].labels.toarray().tolist() == [[1, 0]]
    assert by_name["train"].head(2).labels.toarray().tolist() == [[0, 1], [0, 1]]
