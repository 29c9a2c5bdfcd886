"""The manifest keeps the columns of its contract, and reads back what it wrote."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

from tagger.core import manifest
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.core.vocabulary import Tag

POSTS = {
    "id": pa.string(),
    "file": pa.string(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "created_at": pa.timestamp("us", tz="UTC"),
    "group": pa.int64(),
    "tags": pa.list_(pa.int32()),
}
TAGS = {"tag_id": pa.int64(), "name": pa.string(), "category": pa.int8(), "count": pa.int64()}


def row(name: str, group: int, tags: list[int]) -> dict[str, object]:
    location = {"file": f"data/{name}", "offset": 0, "size": 8}
    return {"id": name, **location, "group": group, "tags": tags}


def write(rows: list[dict[str, object]], path: Path) -> None:
    manifest.write_posts(pa.Table.from_pylist(rows, schema=manifest.POSTS_SCHEMA), path)


def schema(path: Path) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in pq.read_schema(path)}


def test_files_have_the_columns_of_the_contract(tmp_path: Path) -> None:
    write([row("a", 0, [0])], tmp_path / "posts.parquet")
    manifest.write_tags([Tag(1, "a", 0, 1)], tmp_path / "tags.parquet")
    splits = np.array([2], dtype=np.int8)
    manifest.write_split(pa.chunked_array([["a"]]), splits, tmp_path / "split.parquet")
    assert schema(tmp_path / "posts.parquet") == POSTS
    assert schema(tmp_path / "tags.parquet") == TAGS
    assert schema(tmp_path / "split.parquet") == {"id": pa.string(), "split": pa.string()}
    assert pq.read_table(tmp_path / "split.parquet")["split"].to_pylist() == ["test"]


def test_posts_and_labels_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "posts.parquet"
    write([row("a", 5, [2, 0]), row("b", 5, []), row("c", 9, [1])], path)
    read = manifest.read_posts(path, 4)
    assert read.ids.to_pylist() == ["a", "b", "c"]
    assert list(manifest.locations(read.table)) == [
        Location(f"data/{name}", 0, 8) for name in "abc"
    ]
    assert read.groups.tolist() == [5, 5, 9]
    assert read.labels.toarray().tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_labels_of_many_row_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "posts.parquet"
    rows = [row(str(i), i, [i % 3]) for i in range(10)]
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.POSTS_SCHEMA), path, row_group_size=3)
    assert manifest.read_posts(path, 3).labels.toarray().argmax(axis=1).tolist() == [
        i % 3 for i in range(10)
    ]


@pytest.mark.parametrize("tag", [3, -1])
def test_labels_beyond_tags_parquet_are_an_error(tmp_path: Path, tag: int) -> None:
    write([row("a", 0, [0, tag])], tmp_path / "posts.parquet")
    with pytest.raises(TaggerError, match=r"tags beyond the 3 of tags\.parquet.*dvc repro"):
        manifest.read_posts(tmp_path / "posts.parquet", 3)


def test_selected_columns_follow_the_vocabulary() -> None:
    labels = csr_array(np.array([[1, 0, 1], [0, 1, 0]], dtype=np.float32))
    seen = [Tag(-1, name, 0, 1) for name in ("a", "b", "c")]
    selected = manifest.select_columns(labels, seen, [seen[2], seen[1]])
    assert selected.toarray().tolist() == [[1, 0], [0, 1]]
    with pytest.raises(TaggerError, match="No post has the tag 'd'"):
        manifest.select_columns(labels, seen, [Tag(-1, "d", 0, 1)])


def test_awkward_names_survive_parquet(tmp_path: Path) -> None:
    tags = [Tag(-i, name, 0, i) for i, name in enumerate(["null", "nan", 'a,"b"', "初音"], 1)]
    manifest.write_tags(tags, tmp_path / "tags.parquet")
    assert manifest.read_tags(tmp_path / "tags.parquet") == tags


def test_splits_of_other_posts_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "split.parquet"
    ids = pa.chunked_array([["a"], ["b"]])
    manifest.write_split(ids, np.array([0, 1], dtype=np.int8), path)
    assert manifest.read_split(path, ids).tolist() == [0, 1]
    for others in (["b", "a"], ["a"], ["a", "b", "c"]):
        with pytest.raises(TaggerError, match="splits other posts"):
            manifest.read_split(path, pa.chunked_array([others]))


def test_missing_posts_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"posts\.parquet is missing.*dvc repro"):
        manifest.read_posts(tmp_path / "posts.parquet", 1)
