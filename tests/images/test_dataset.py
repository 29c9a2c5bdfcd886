"""Datasets: samples match the files, and unreadable images are replaced or reported."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tagger.core import manifest, vocabulary
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.images import dataset, decode, loader
from tagger.images.dataset import ImageDataset, SampleKey, Split
from tagger.images.loader import Collate, ResumableBatchSampler
from tagger.images.preprocess import Preprocess

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def broken(split: Split, tmp_path: Path) -> Split:
    """Return eight of the images, the third of them unreadable, the sixth missing."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    locations = list(split.locations[:8])
    locations[2] = Location(str(tmp_path / "bad.png"), 0, 8)
    locations[5] = Location(str(tmp_path / "none.png"), 0, 8)
    return Split(locations, split.labels[:8])


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
            expected = names & set(sidecar.strip().split(", "))
            assert {tags[i].name for i in torch.nonzero(targets).flatten()} == expected
            assert expected


def test_sample_pixels_are_the_preprocessed_image(split: Split) -> None:
    sample = ImageDataset(split, PREPROCESS)[SampleKey(0, 4)]
    assert sample.row == 4
    assert sample.pixels is not None
    assert np.array_equal(sample.pixels, PREPROCESS.to_square(decode.open_rgb(split.locations[4])))
    batch = Collate(split.labels.shape[1])([sample])
    pixels, targets = loader.to_device(batch, torch.device("cpu"), PREPROCESS)
    assert np.array_equal(pixels[0], PREPROCESS(decode.open_rgb(split.locations[4])))
    assert np.array_equal(targets, split.labels[[4]].toarray())


def test_an_unreadable_image_is_replaced_by_the_next_with_its_own_tags(
    split: Split, tmp_path: Path
) -> None:
    damaged = broken(split, tmp_path)
    batches = list(
        loader.build_loader(
            ImageDataset(damaged, PREPROCESS, replace_unreadable=True),
            ResumableBatchSampler(8, 4),
            workers=0,
        )
    )
    assert [batch.rows for batch in batches] == [[0, 1, 3, 3], [4, 6, 6, 7]]
    assert [[row for row, _ in batch.failures] for batch in batches] == [[2], [5]]
    for batch in batches:
        assert np.array_equal(batch.targets, damaged.labels[batch.rows].toarray())


def test_an_unreadable_image_is_skipped_and_reported(split: Split, tmp_path: Path) -> None:
    images = ImageDataset(broken(split, tmp_path), PREPROCESS)
    batches = list(loader.build_loader(images, ResumableBatchSampler(8, 3), workers=0))
    assert [batch.rows for batch in batches] == [[0, 1], [3, 4], [6, 7]]
    assert [batch.pixels.shape[0] for batch in batches] == [2, 2, 2]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [row for row, _ in failures] == [2, 5]
    assert all(reason for _, reason in failures)


def test_a_batch_of_unreadable_images_is_empty(split: Split, tmp_path: Path) -> None:
    images = ImageDataset(broken(split, tmp_path), PREPROCESS)
    batch = Collate(split.labels.shape[1])([images[SampleKey(0, 2)], images[SampleKey(0, 5)]])
    assert (batch.rows, [row for row, _ in batch.failures]) == ([], [2, 5])


@given(st.integers(0, 60), st.integers(1, 80))
def test_evenly_spaced_posts_are_in_order_from_end_to_end(length: int, count: int) -> None:
    labels = csr_array(np.eye(length, 60, dtype=bool))
    split = Split([Location(str(row), 0, 8) for row in range(length)], labels)
    subset = split.evenly_spaced(count)
    rows = [int(place.path) for place in subset.locations]
    assert len(subset) == len(rows) == min(count, length)
    assert rows == sorted(set(rows))
    assert subset.labels.indices.tolist() == rows
    if count > 1 and length:
        assert (rows[0], rows[-1]) == (0, length - 1)
        assert np.ptp(np.diff(rows) if len(rows) > 1 else [1]) <= 1


def test_tag_counts_are_column_sums(split: Split) -> None:
    assert np.array_equal(split.tag_counts(), split.labels.toarray().sum(axis=0))
    absent = Split(split.locations, csr_array((len(split), 7), dtype=bool))
    assert absent.tag_counts().tolist() == [0] * 7


def test_splits_are_read_with_their_own_rows(tmp_path: Path) -> None:
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
