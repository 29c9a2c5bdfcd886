"""The table of posts that the steps of `prepare` pass on, and chunked work on their images."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagger.core.location import Location
from tagger.data import chunked
from tagger.data.chunked import Work
from tagger.images import decode
from tagger.system import progress

# A source gives the columns that it has. Only `id` and the tags are required.
COLUMNS = {
    "id": pa.string(),
    "file": pa.string(),  # path of the image, or name of the member of the shard
    "shard": pa.string(),  # path of a tar, null if the image is a file
    "offset": pa.int64(),  # bytes
    "size": pa.int64(),  # bytes
    "modified": pa.int64(),  # nanoseconds since 1970
    "width": pa.int32(),  # pixels
    "height": pa.int32(),
    "created_at": pa.timestamp("us", tz="UTC"),
    "parent": pa.string(),  # id of another post
    "score": pa.int64(),
    "deleted": pa.bool_(),
    "banned": pa.bool_(),
}
LOCATION_COLUMNS = ["file", "shard", "offset", "size", "modified"]
CHUNK_IMAGES = 2_000


def set_column(table: pa.Table, name: str, column: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return the table with a column replaced, or appended if the name is new."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def set_columns(table: pa.Table, source: pa.Table, names: Iterable[str]) -> pa.Table:
    """Return the table with columns of another table of the same rows."""
    for name in names:
        table = set_column(table, name, source[name])
    return table


def table_from_rows(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    return pa.table([list(column) for column in columns], schema=schema)


def disk_order(posts: pa.Table) -> pa.Array:
    """Return the row numbers in the order in which the images lie in their tars."""
    if posts["shard"].null_count == len(posts):
        return pa.array(np.arange(len(posts)))
    keys = [("shard", "ascending"), ("offset", "ascending")]
    return pc.sort_indices(posts.select(["shard", "offset"]), sort_keys=keys)


def map_images(work: Work, posts: pa.Table, cache: Path | None, description: str) -> pa.Table:
    """Return the rows that a function computes from the image locations, in the order of posts.

    cache: folder for the results of finished chunks, which an interrupted run continues from
    """
    if not len(posts):
        return work([])
    order = disk_order(posts)
    images = posts.select(LOCATION_COLUMNS).take(order)
    results = chunked.map_images(work, chunked.split_rows(images, CHUNK_IMAGES), cache)
    rows = pa.concat_tables(progress.track_rows(results, len(posts), description))
    return rows.take(pc.sort_indices(order))


def hash_images(
    locations: Iterable[Location], function: Callable[[bytes], bytes | None]
) -> list[bytes | None]:
    """Return a hash of the bytes of each image, None if it cannot be read or has no hash."""
    hashes: list[bytes | None] = []
    for location in locations:
        try:
            hashes.append(function(decode.read_bytes(location)))
        except decode.Unreadable:
            hashes.append(None)
    return hashes


def content_or_null(posts: pa.Table) -> pa.ChunkedArray:
    """Return the content hashes of the files that `verify` read whole, null for the others."""
    if "content" in posts.column_names:
        return posts["content"]
    return pa.chunked_array([pa.nulls(len(posts), pa.binary())])
