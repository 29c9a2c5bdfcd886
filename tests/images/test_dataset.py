"""What the model sees of a picture is decided by seed, epoch and row, and bad ones are told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_array

from tagger.core import manifest, vocabulary
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.images import dataset, decode, loader
from tagger.images.augment import Augmentation
from tagger.images.dataset import ImageDataset, SampleKey, Split
from tagger.images.loader import Collate, ResumableBatchSampler
from tagger.images.preprocess import Preprocess

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def broken(part: Split, tmp_path: Path) -> Split:
    """Return eight of the pictures, the third of them unreadable, the sixth missing."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    places = list(part.locations[:8])
    places[2] = Location(str(tmp_path / "bad.png"), 0, 8)
    places[5] = Location(str(tmp_path / "none.png"), 0, 8)
    return Split(places, part.labels[:8])


def changed(augment: Augmentation, image: Image.Image, epoch: int, row: int) -> Image.Image:
    pixels, _ = augment(np.asarray(image), PREPROCESS, SampleKey(epoch, row))
    return Image.fromarray(pixels)


def test_labels_match_the_sidecars(split: Split, tags: list[Tag]) -> None:
    batches = loader.build_loader(
        ImageDataset(split, PREPROCESS), ResumableBatchSampler(len(split), 5, 1), workers=0
    )
    names = {tag.name for tag in tags}
    for batch in batches:
        for row, targets in zip(batch.rows, batch.targets, strict=True):
            sidecar = (
                Path(split.locations[row].path).with_suffix(".txt").read_text(encoding="utf-8")
            )
            wanted = names & set(sidecar.strip().split(", "))
            assert {tags[i].name for i in torch.nonzero(targets).flatten()} == wanted
            assert wanted


def test_pixels_are_those_of_the_picture_preprocessed(split: Split) -> None:
    sample = ImageDataset(split, PREPROCESS)[SampleKey(0, 4)]
    assert sample.row == 4
    assert sample.pixels is not None
    assert np.array_equal(sample.pixels, PREPROCESS.to_square(decode.open_rgb(split.locations[4])))
    batch = Collate(split.labels.shape[1])([sample])
    pixels, targets = loader.to_device(batch, torch.device("cpu"), PREPROCESS)
    assert np.array_equal(pixels[0], PREPROCESS(decode.open_rgb(split.locations[4])))
    assert np.array_equal(targets, split.labels[[4]].toarray())


def test_an_unreadable_picture_is_replaced_by_the_next_with_its_own_tags(
    split: Split, tmp_path: Path
) -> None:
    some = broken(split, tmp_path)
    batches = list(
        loader.build_loader(
            ImageDataset(some, PREPROCESS, replace_unreadable=True),
            ResumableBatchSampler(8, 4),
            workers=0,
        )
    )
    assert [batch.rows for batch in batches] == [[0, 1, 3, 3], [4, 6, 6, 7]]
    assert [[row for row, _ in batch.failures] for batch in batches] == [[2], [5]]
    for batch in batches:
        assert np.array_equal(batch.targets, some.labels[batch.rows].toarray())


def test_an_unreadable_picture_is_left_out_and_reported(split: Split, tmp_path: Path) -> None:
    pictures = ImageDataset(broken(split, tmp_path), PREPROCESS)
    batches = list(loader.build_loader(pictures, ResumableBatchSampler(8, 3), workers=0))
    assert [batch.rows for batch in batches] == [[0, 1], [3, 4], [6, 7]]
    assert [batch.pixels.shape[0] for batch in batches] == [2, 2, 2]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [row for row, _ in failures] == [2, 5]
    assert all(reason for _, reason in failures)


def test_a_batch_of_unreadable_pictures_is_empty(split: Split, tmp_path: Path) -> None:
    pictures = ImageDataset(broken(split, tmp_path), PREPROCESS)
    batch = Collate(split.labels.shape[1])([pictures[SampleKey(0, 2)], pictures[SampleKey(0, 5)]])
    assert (batch.rows, [row for row, _ in batch.failures]) == ([], [2, 5])


def test_a_picture_looks_the_same_for_the_same_seed_epoch_and_row_only(split: Split) -> None:
    image = decode.open_rgb(split.locations[0])
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


@given(st.integers(0, 60), st.integers(1, 80))
def test_posts_spread_over_a_part_are_in_order_and_from_end_to_end(length: int, count: int) -> None:
    labels = csr_array(np.eye(length, 60, dtype=bool))
    part = Split([Location(str(row), 0, 8) for row in range(length)], labels)
    some = part.evenly_spaced(count)
    rows = [int(place.path) for place in some.locations]
    assert len(some) == len(rows) == min(count, length)
    assert rows == sorted(set(rows))
    assert some.labels.indices.tolist() == rows
    if count > 1 and length:
        assert (rows[0], rows[-1]) == (0, length - 1)
        assert np.ptp(np.diff(rows) if len(rows) > 1 else [1]) <= 1


def test_counts_are_those_of_the_labels(split: Split) -> None:
    assert np.array_equal(split.tag_counts(), split.labels.toarray().sum(axis=0))
    absent = Split(split.locations, csr_array((len(split), 7), dtype=bool))
    assert absent.tag_counts().tolist() == [0] * 7


def test_parts_of_the_split_are_read_with_their_own_rows(tmp_path: Path) -> None:
    tags = [Tag(-1, "a", 0, 3), Tag(-2, "b", 0, 2)]
    rows = [
        {"id": str(i), "file": f"{i}.png", "offset": 0, "size": 8, "group": i, "tags": [i % 2]}
        for i in range(4)
    ]
    rows.append({"id": "4", "file": "x", "shard": "a.tar", "offset": 9, "size": 7, "tags": [0]})
    manifest.write_posts(
        pa.Table.from_pylist(rows, schema=manifest.POSTS_SCHEMA), tmp_path / "posts"
    )
    manifest.write_tags(tags, tmp_path / "tags")
    vocabulary.write(tags[::-1], tmp_path / "vocabulary.csv")
    parts = np.array([0, 2, 0, 1, 0], dtype=np.int8)
    manifest.write_split(pa.chunked_array([[str(i) for i in range(5)]]), parts, tmp_path / "split")
    read, by_name = dataset.read_splits(
        *(tmp_path / name for name in ("posts", "tags", "vocabulary.csv", "split"))
    )
    assert read == tags[::-1]
    assert list(by_name["train"].locations) == [
        Location("0.png", 0, 8),
        Location("2.png", 0, 8),
        Location("a.tar", 9, 7),
    ]
    assert by_name["validation"].labels.toarray().tolist() == [[1, 0]]
    assert by_name["test"].labels.toarray().tolist() == [[1, 0]]
    assert by_name["train"].head(2).labels.toarray().tolist() == [[0, 1], [0, 1]]
