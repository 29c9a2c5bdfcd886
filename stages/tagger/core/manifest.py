"""The manifest: all usable images, the tags on each, and the split.

`posts.parquet` has a row per usable image, `tags.parquet` a row per tag. The tags of a post are
row numbers of `tags.parquet`; `select_columns` turns them into columns of a vocabulary. Memory
grows with the labels, four bytes each, never with posts x tags.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.core.vocabulary import Tag

POSTS_SCHEMA = pa.schema(
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
Integers = npt.NDArray[np.integer[Any]]
SPLITS = ("train", "validation", "test")

_ROWS = 100_000  # of a row group
BLOCK_POSTS = 1_000_000
_STORED: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
# Byte streams store tag numbers faster and smaller than a dictionary.
_POSTS_STORED = _STORED | {
    "use_dictionary": ["file", "shard"],
    "column_encoding": {"tags.list.element": "BYTE_STREAM_SPLIT"},
}


@dataclass(frozen=True)
class Posts:
    """posts.parquet, with the tags as a matrix."""

    table: pa.Table  # all columns but the tags
    labels: csr_array  # boolean (posts, rows of tags.parquet)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> pa.ChunkedArray:
        return self.table["id"]

    @property
    def groups(self) -> npt.NDArray[np.int64]:  # (posts,)
        return np.asarray(self.table["group"].to_numpy())


def write_posts(posts: pa.Table, path: Path) -> None:
    """Write the columns of POSTS_SCHEMA."""
    with (
        files.atomic_write(path) as partial,
        pq.ParquetWriter(partial, POSTS_SCHEMA, **_POSTS_STORED) as writer,
    ):
        for batch in posts.select(POSTS_SCHEMA.names).to_batches(max_chunksize=_ROWS):
            writer.write_batch(batch.cast(POSTS_SCHEMA), row_group_size=_ROWS)


def write_tags(tags: Sequence[Tag], path: Path) -> None:
    rows = [tag._asdict() for tag in tags]
    _write_table(pa.Table.from_pylist(rows, schema=TAGS_SCHEMA), path)


def write_split(ids: pa.ChunkedArray, splits: npt.NDArray[np.int8], path: Path) -> None:
    """Write the split of each post: `splits` holds indices of SPLITS, (posts,)."""
    names = pa.DictionaryArray.from_arrays(pa.array(splits), pa.array(SPLITS))
    _write_table(pa.table({"id": ids, "split": names.cast(pa.string())}), path)


def _write_table(table: pa.Table, path: Path) -> None:
    with files.atomic_write(path) as partial:
        pq.write_table(table, partial, **_STORED)


def locations(posts: pa.Table) -> Iterator[Location]:
    """Yield the location of each image, from the columns file, shard, offset and size."""
    columns = (posts[name].to_pylist() for name in ("file", "shard", "offset", "size"))
    for file, shard, offset, size in zip(*columns, strict=True):
        yield Location(shard or file, offset, size)


class Locations(Sequence[Location]):
    """The locations of images, built from the columns when needed, without an object for each."""

    def __init__(self, posts: pa.Table) -> None:
        self._posts = posts.select(["file", "shard", "offset", "size"]).combine_chunks()

    def __len__(self) -> int:
        return len(self._posts)

    @overload
    def __getitem__(self, key: int) -> Location: ...
    @overload
    def __getitem__(self, key: slice) -> "Locations": ...
    def __getitem__(self, key: int | slice) -> "Location | Locations":
        if isinstance(key, slice):
            return Locations(self._posts.take(np.arange(len(self))[key]))
        return next(locations(self._posts.slice(range(len(self))[key], 1)))


def read_posts(path: Path, tag_count: int) -> Posts:
    """Return the posts, with labels that refer to the `tag_count` rows of tags.parquet."""
    table = pq.read_table(files.require(path)).combine_chunks()
    labels = labels_from_lists(table["tags"].combine_chunks(), tag_count)
    if labels.indices.max(initial=-1) >= tag_count or labels.indices.min(initial=0) < 0:
        raise TaggerError(
            f"{path} has tags beyond the {tag_count:,} of tags.parquet. Run `dvc repro`."
        )
    return Posts(table.drop_columns("tags"), labels)


def labels_from_lists(lists: pa.Array, tag_count: int) -> csr_array:
    """Return labels, boolean (posts, tags), from a list of tag numbers for each post."""
    starts, numbers = flatten_lists(lists)
    true = np.ones(len(numbers), dtype=np.bool_)
    return csr_array((true, numbers, starts), shape=(len(lists), tag_count))


def flatten_lists(lists: pa.Array) -> tuple[Integers, npt.NDArray[np.int32]]:
    """Return the start of each list, (lists + 1,), and the values of all lists."""
    return starts_from_lengths(pc.list_value_length(lists).to_numpy()), lists.flatten().to_numpy()


def starts_from_lengths(lengths: npt.NDArray[Any]) -> Integers:
    """Return the starts of consecutive lists of these lengths, and the end of the last one.

    In 32 bits if those suffice: from starts of 64 bits, SciPy makes columns of 64 bits.
    """
    fits = int(lengths.sum(dtype=np.int64)) <= np.iinfo(np.int32).max
    starts: Integers = np.zeros(len(lengths) + 1, np.int32 if fits else np.int64)
    np.cumsum(lengths, dtype=starts.dtype, out=starts[1:])
    return starts


def label_blocks(labels: csr_array) -> Iterator[tuple[slice, Integers, Integers]]:
    """Yield blocks of posts: the slice, and row in the block and column of each label."""
    for start in range(0, labels.shape[0], BLOCK_POSTS):
        block = slice(start, start + BLOCK_POSTS)
        starts = labels.indptr[start : start + BLOCK_POSTS + 1]
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        yield block, rows, labels.indices[starts[0] : starts[-1]]


def read_tags(path: Path) -> list[Tag]:
    columns = pq.read_table(files.require(path)).to_pydict()
    return [Tag(*row) for row in zip(*(columns[name] for name in Tag._fields), strict=True)]


def read_split(path: Path, ids: pa.ChunkedArray) -> npt.NDArray[np.int8]:
    """Return the split of each post, (posts,), as indices of SPLITS.

    Raises TaggerError if the file holds other posts.
    """
    table = pq.read_table(files.require(path))
    splits = pc.index_in(table["split"], value_set=pa.array(SPLITS))
    if not table["id"].equals(ids) or splits.null_count:
        raise TaggerError(f"{path} splits other posts than these. Run `dvc repro`.")
    return np.asarray(splits.to_numpy(), dtype=np.int8)


def select_columns(
    labels: csr_array, seen_tags: Sequence[Tag], vocabulary: Sequence[Tag]
) -> csr_array:
    """Return labels by column of a vocabulary, boolean (posts, vocabulary).

    labels: boolean (posts, seen_tags), by row of tags.parquet
    Raises TaggerError if a tag of the vocabulary is not among the seen tags.
    """
    row_of = {tag.name: row for row, tag in enumerate(seen_tags)}
    missing = [tag.name for tag in vocabulary if tag.name not in row_of]
    if missing:
        raise TaggerError(f"No post has the tag {missing[0]!r}. Make the vocabulary again.")
    column_of = np.full(len(seen_tags), -1, dtype=np.int32)
    column_of[[row_of[tag.name] for tag in vocabulary]] = np.arange(len(vocabulary))
    columns = column_of[labels.indices]
    is_learnt = columns >= 0
    starts = starts_from_lengths(is_learnt)[labels.indptr]
    true = np.ones(int(starts[-1]), dtype=np.bool_)
    shape = labels.shape[0], len(vocabulary)
    selected = csr_array((true, columns[is_learnt], starts), shape=shape)
    selected.sort_indices()
    return selected


def hash_ids(ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    """Return a number for each id, (ids,), evenly spread over all of 64 bits."""
    import pandas as pd  # slow to import, and few stages need it

    key = f"{seed:016d}"[-16:]
    objects = (
        np.asarray(chunk.to_numpy(zero_copy_only=False), dtype=np.object_) for chunk in ids.chunks
    )
    chunks = [pd.util.hash_array(chunk, hash_key=key) for chunk in objects]
    return np.concatenate([np.empty(0, np.uint64), *chunks])
