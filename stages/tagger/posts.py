"""The manifest: which pictures there are, and the tags on each.

`posts.parquet` has a row per usable picture, `tags.parquet` one per tag; the tags of a post are
row numbers in the latter. Memory grows with the labels, four bytes each, never posts x tags.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from tagger import files
from tagger.errors import TaggerError
from tagger.images import Place
from tagger.vocabulary import Tag

SCHEMA = pa.schema(
    {
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
)
TAGS_SCHEMA = pa.schema(
    {"tag_id": pa.int64(), "name": pa.string(), "category": pa.int8(), "count": pa.int64()}
)
PARTS = ("train", "validation", "test")

_ROWS = 100_000  # of a row group
_STORED: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
# The numbers of tags are stored by bytes of the same rank, faster and smaller than by dictionary.
_POSTS_STORED = _STORED | {
    "use_dictionary": ["file", "shard"],
    "column_encoding": {"tags.list.element": "BYTE_STREAM_SPLIT"},
}


@dataclass(frozen=True)
class Posts:
    """The columns of posts.parquet that training and judging need, row for row."""

    ids: Sequence[str]
    places: Sequence[Place]
    groups: npt.NDArray[np.int64]  # (posts,)
    labels: csr_array  # (posts, tags) of tags.parquet, 1 where a post has a tag

    def __len__(self) -> int:
        return len(self.ids)


def write(posts: pa.Table, path: Path) -> None:
    """Write the columns of SCHEMA, some ten thousand posts at a time."""
    with (
        files.replacing(path) as partial,
        pq.ParquetWriter(partial, SCHEMA, **_POSTS_STORED) as writer,
    ):
        for batch in posts.select(SCHEMA.names).to_batches(max_chunksize=_ROWS):
            writer.write_batch(batch.cast(SCHEMA), row_group_size=_ROWS)


def write_tags(tags: Sequence[Tag], path: Path) -> None:
    rows = [tag._asdict() for tag in tags]
    _write_table(pa.Table.from_pylist(rows, schema=TAGS_SCHEMA), path)


def write_split(ids: Sequence[str], parts: npt.NDArray[np.int8], path: Path) -> None:
    """Write which part each post belongs to: `parts` holds numbers of PARTS, (posts,)."""
    _write_table(pa.table({"id": ids, "split": [PARTS[part] for part in parts]}), path)


def _write_table(table: pa.Table, path: Path) -> None:
    with files.replacing(path) as partial:
        pq.write_table(table, partial, **_STORED)


def places(posts: pa.Table) -> Iterator[Place]:
    """Yield where each picture lies, by the columns file, shard, offset and size."""
    columns = (posts[name].to_pylist() for name in ("file", "shard", "offset", "size"))
    for file, shard, offset, size in zip(*columns, strict=True):
        yield Place(shard or file, offset, size)


def read(path: Path, tags: int) -> Posts:
    """Return the manifest whose labels point at the `tags` rows of tags.parquet."""
    columns = ["id", "file", "shard", "offset", "size", "group", "tags"]
    table = pq.read_table(files.require(path), columns=columns).combine_chunks()
    lists = table["tags"].combine_chunks()
    indices = lists.flatten().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())])
    ones = np.ones(len(indices), dtype=np.float32)
    return Posts(
        ids=table["id"].to_pylist(),
        places=list(places(table)),
        groups=table["group"].to_numpy(),
        labels=csr_array((ones, indices, offsets), shape=(len(table), tags)),
    )


def read_tags(path: Path) -> list[Tag]:
    columns = pq.read_table(files.require(path)).to_pydict()
    return [Tag(*row) for row in zip(*(columns[name] for name in Tag._fields), strict=True)]


def read_split(path: Path, ids: Sequence[str]) -> npt.NDArray[np.int8]:
    """Return the part of each post, (posts,), numbers of PARTS. Raises TaggerError for others."""
    table = pq.read_table(files.require(path))
    if table["id"].to_pylist() != list(ids):
        raise TaggerError(f"{path} splits other posts than these. Run `dvc repro`.")
    return np.array([PARTS.index(part) for part in table["split"].to_pylist()], dtype=np.int8)


def columns_of(labels: csr_array, seen: Sequence[Tag], wanted: Sequence[Tag]) -> csr_array:
    """Return labels with the columns of a vocabulary, (posts, wanted), in its order."""
    row_of = {tag.name: row for row, tag in enumerate(seen)}
    missing = [tag.name for tag in wanted if tag.name not in row_of]
    if missing:
        raise TaggerError(f"No post has the tag {missing[0]!r}. Make the vocabulary again.")
    return csr_array(labels.tocsc()[:, [row_of[tag.name] for tag in wanted]])
