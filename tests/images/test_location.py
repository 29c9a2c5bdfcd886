"""Locations and splits of many posts cost no Python object per post."""

import gc
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tagger.core import manifest, vocabulary
from tagger.core.location import Location
from tagger.core.manifest import Locations
from tagger.core.vocabulary import Tag
from tagger.images import dataset
from tagger.images.dataset import Split

MANY = 100_000
FEW_OBJECTS = MANY // 20


def table(count: int) -> pa.Table:
    """Return posts of which every third lies in a tar."""
    rows = np.arange(count)
    shards = [f"{row % 7}.tar" if row % 3 == 0 else None for row in range(count)]
    return pa.table(
        {
            "id": pa.array(rows).cast(pa.string()),
            "file": [f"folder/{row}.png" for row in range(count)],
            "shard": pa.array(shards, pa.string()),
            "offset": rows * 512,
            "size": rows + 8,
            "width": pa.nulls(count, pa.int32()),
            "height": pa.nulls(count, pa.int32()),
            "created_at": pa.nulls(count, manifest.POSTS_SCHEMA.field("created_at").type),
            "group": rows,
            "tags": pa.array([[row % 2] for row in range(count)], pa.list_(pa.int32())),
        }
    )


def expected(row: int) -> Location:
    file = f"{row % 7}.tar" if row % 3 == 0 else f"folder/{row}.png"
    return Location(file, row * 512, row + 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files that dataset.read_splits reads, of many posts."""
    folder = tmp_path_factory.mktemp("many")
    content, tags = table(MANY), [Tag(-1, "a", 0, MANY // 2), Tag(-2, "b", 0, MANY // 2)]
    paths = [folder / name for name in ("posts", "tags", "vocabulary.csv", "split")]
    manifest.write_posts(content, paths[0])
    manifest.write_tags(tags, paths[1])
    vocabulary.write(tags, paths[2])
    parts = (np.arange(MANY) % 10 == 9).astype(np.int8)  # train and validation
    manifest.write_split(content["id"], parts, paths[3])
    return paths


def test_locations_are_no_python_objects() -> None:
    content = table(MANY)
    before = sys.getallocatedblocks()
    locations = Locations(content)
    half = locations[::2]
    assert sys.getallocatedblocks() - before < FEW_OBJECTS
    assert (len(locations), len(half)) == (MANY, MANY // 2)
    gc.collect()  # else what it frees meanwhile is counted
    before = sys.getallocatedblocks()
    held = list(locations)
    assert sys.getallocatedblocks() - before > MANY  # as a list would have them
    del held


def test_a_split_of_many_posts_holds_few_python_objects(written: list[Path]) -> None:
    _, warm = dataset.read_splits(*written)  # caches are filled
    before = sys.getallocatedblocks()
    _, parts = dataset.read_splits(*written)
    assert sys.getallocatedblocks() - before < FEW_OBJECTS
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 90_000,
        "validation": 10_000,
        "test": 0,
    }
    numbers = np.arange(MANY)
    rows_of = {"train": numbers[numbers % 10 != 9], "validation": numbers[9::10]}
    for name, rows in rows_of.items():
        split: Split = parts[name]
        for place in (0, 1, 777, len(split) - 1):
            assert split.locations[place] == expected(int(rows[place]))
            assert split.tag_columns(place).tolist() == [rows[place] % 2]
    head = parts["train"].head(1000)
    assert isinstance(head.locations, Locations)
    assert len(head) == len(head.locations) == head.labels.shape[0] == 1000
    assert len(pickle.dumps(head.locations)) < len(pickle.dumps(warm["train"].locations)) / 50


def test_locations_are_indexed_like_a_list() -> None:
    locations, plain = Locations(table(50)), [expected(row) for row in range(50)]
    assert list(locations) == plain
    assert [locations[row] for row in range(-50, 50)] == [plain[row] for row in range(-50, 50)]
    for rows in (
        slice(3, 9),
        slice(None, None, -1),
        slice(40, 99),
        slice(9, 3),
        slice(-5, None, 2),
    ):
        assert list(locations[rows]) == plain[rows]
        assert list(locations[rows][1:3]) == plain[rows][1:3]
    assert list(reversed(locations)) == plain[::-1]
    for outside in (50, -51):
        with pytest.raises(IndexError):
            locations[outside]
    assert list(pickle.loads(pickle.dumps(locations))) == plain
    assert list(Locations(table(0))) == []
