"""Where posts come from: one module each for folders, tables and Danbooru's metadata.

A source reads its posts in batches of Arrow columns, some ten thousand posts each, and says where
the picture of each lies. Nothing of a post is a Python object for longer than it takes to read it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tagger.core import manifest
from tagger.core.errors import TaggerError, one_line
from tagger.core.vocabulary import RATINGS

# What a post may have. A source gives the columns it knows; `id` and tags are all it must.
COLUMNS = {
    "id": pa.string(),
    "file": pa.string(),  # a file of its own, or the name of a member of the shard
    "shard": pa.string(),  # a tar, null for a file of its own
    "offset": pa.int64(),  # bytes
    "size": pa.int64(),  # bytes
    "modified": pa.int64(),  # nanoseconds since 1970
    "width": pa.int32(),  # pixels
    "height": pa.int32(),
    "created_at": pa.timestamp("us", tz="UTC"),
    "parent": pa.string(),  # the id of another post
    "score": pa.int64(),
    "deleted": pa.bool_(),
    "banned": pa.bool_(),
}
REJECTED = pa.schema({"id": pa.string(), "reason": pa.string(), "detail": pa.string()})


class PostBatch(NamedTuple):
    """Some posts, the tags of each as they are written, and what was left out on the way."""

    posts: pa.Table  # columns of COLUMNS
    # list<string>, plain or as dictionary, for each post, by category; None: unknown
    tags: dict[int | None, pa.Array]
    rejected: pa.Table  # REJECTED


@dataclass(frozen=True)
class Source:
    """What posts are read from."""

    notes: list[str] = field(init=False, default_factory=list)  # what was odd, for the report
    missing: dict[str, str] = field(init=False, default_factory=dict)  # why a post has no picture

    def read(self) -> Iterator[PostBatch]:
        raise NotImplementedError

    def locate(self, posts: pa.Table) -> pa.Table:
        """Return the posts with file, shard, offset and size; file is null where there is none."""
        return posts


# Danbooru's names of what a post may have, and others in use.
_NAMES = {
    "id": "id",
    "created_at": "created_at",
    "parent_id": "parent",
    "score": "score",
    "image_width": "width",
    "image_height": "height",
    "width": "width",
    "height": "height",
    "is_deleted": "deleted",
    "is_banned": "banned",
}
KNOWN_COLUMNS = (*_NAMES, "rating")
_RATINGS = {name[0]: name for name in RATINGS} | {name: name for name in RATINGS}


def parse_posts(table: pa.Table, path: Path) -> pa.Table:
    """Return what a table knows of its posts, as columns of COLUMNS.

    Raises TaggerError for a column of another type.
    """
    columns = {}
    for theirs, ours in _NAMES.items():
        if theirs in table.column_names:
            try:
                values = _cast(_plain(table[theirs]), COLUMNS[ours])
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise TaggerError(f"{path}: column {theirs!r}: {one_line(error)}.") from None
            if ours in ("width", "height"):
                values = pc.if_else(pc.greater(values, 0), values, pa.scalar(None, values.type))
            columns[ours] = values
    return pa.table(columns)


def parse_ratings(table: pa.Table) -> pa.Array:
    """Return the rating of each post as a list of one tag, or of none where it is not known."""
    texts = pc.dictionary_encode(parse_texts(table["rating"])).combine_chunks()
    names = [_RATINGS.get(str(text).strip().lower()) for text in texts.dictionary.to_pylist()]
    ratings = pa.array([*names, None], pa.string())
    indices = pc.fill_null(texts.indices, len(names))
    known = pc.is_valid(ratings.take(indices))
    starts = manifest.starts_from_lengths(known.to_numpy(zero_copy_only=False))
    values = ratings.take(indices).drop_null()
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_timestamp(kind) and pa.types.is_string(values.type):
        with suppress(pa.ArrowInvalid):  # times that name no zone
            return pc.assume_timezone(pc.cast(values, pa.timestamp("us")), "UTC")
    return pc.cast(values, kind)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values with nulls for empty texts, as a CSV means them, and for what is no number."""
    values = _decoded(values)
    if pa.types.is_string(values.type):
        return pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    return values


def _decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts of any kind as strings, and other values as they are."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    return values


def parse_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as texts, null where they are empty."""
    return _plain(_plain(values).cast(pa.string()))


def parse_tags(values: pa.ChunkedArray, separator: str) -> pa.Array:
    """Return tags as list<string>, from lists, or from texts with a separator between the tags."""
    array = _decoded(values).combine_chunks()
    if pa.types.is_string(array.type):
        array = pc.split_pattern(array, separator)
    return encode_lists(array.cast(pa.list_(pa.string())))


def encode_lists(lists: pa.Array) -> pa.Array:
    """Return lists of texts with each text held once: so they are filtered in no time."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    starts = pa.array(manifest.starts_from_lengths(lengths), pa.int32())
    texts = lists.flatten()
    texts = pc.fill_null(texts, "") if texts.null_count else texts
    return pa.ListArray.from_arrays(starts, texts.dictionary_encode())


def set_column(table: pa.Table, name: str, column: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Return a table with a column in the place of the one of that name, or behind the others."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def table_from_rows(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Return rows, of which there is one at least, as a table."""
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)
