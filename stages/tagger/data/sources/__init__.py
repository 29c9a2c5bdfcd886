"""Sources of posts: a folder, a table, or Danbooru's metadata, one module each.

A source reads posts in batches of some ten thousand as Arrow columns, and locates their images.
No Python object of a post outlives its batch.
"""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagger.core import manifest
from tagger.core.errors import TaggerError, one_line
from tagger.core.vocabulary import RATINGS
from tagger.data import rejected
from tagger.data.posts import COLUMNS
from tagger.data.rejected import Rejection


class PostBatch(NamedTuple):
    """A batch of posts, their tags as written, and the posts that the source rejects."""

    posts: pa.Table  # columns of COLUMNS
    # list<string>, plain or as dictionary, for each post, by category; None: unknown category
    tags: dict[int | None, pa.Array]
    rejected: pa.Table  # rejected.SCHEMA


@dataclass(frozen=True)
class Source:
    notes: list[str] = field(init=False, default_factory=list)  # oddities, for the report
    missing: dict[str, str] = field(init=False, default_factory=dict)  # reason by id, if known

    def read(self, stop: threading.Event | None = None) -> Iterator[PostBatch]:
        raise NotImplementedError

    def locate(self, posts: pa.Table) -> pa.Table:
        """Return the posts with file, shard, offset and size; file is null without an image."""
        return posts


def locate(posts: pa.Table, source: Source) -> tuple[pa.Table, pa.Table]:
    """Return the posts with the location of their image; reject those without an image."""
    posts = source.locate(posts)
    missing = pc.is_null(posts["file"]).to_numpy()
    rows = np.flatnonzero(missing)
    details = np.full(len(posts), None, dtype=object)
    for row, post_id in zip(rows.tolist(), posts["id"].take(rows).to_pylist(), strict=True):
        details[row] = source.missing.get(post_id, "there is no file")
    details_column = pa.array(details, pa.string())
    return rejected.reject(posts, [Rejection("no image", missing, details_column)])


# Danbooru's and other usual names of the columns of a post.
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
    """Return the columns of COLUMNS that a table has.

    Raises TaggerError for a column of the wrong type.
    """
    columns = {}
    for column, name in _NAMES.items():
        if column in table.column_names:
            try:
                values = _cast(_plain(table[column]), COLUMNS[name])
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise TaggerError(f"{path}: column {column!r}: {one_line(error)}.") from None
            if name in ("width", "height"):
                values = pc.if_else(pc.greater(values, 0), values, pa.scalar(None, values.type))
            columns[name] = values
    return pa.table(columns)


def parse_ratings(table: pa.Table) -> pa.Array:
    """Return the rating of each post as a list of one tag, or of none if it is unknown."""
    texts = pc.dictionary_encode(parse_texts(table["rating"])).combine_chunks()
    names = [_RATINGS.get(str(text).strip().lower()) for text in texts.dictionary.to_pylist()]
    ratings = pa.array([*names, None], pa.string())
    indices = pc.fill_null(texts.indices, len(names))
    values = ratings.take(indices)
    lengths = pc.is_valid(values).to_numpy(zero_copy_only=False)
    starts = manifest.starts_from_lengths(lengths)
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values.drop_null())


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_timestamp(kind) and pa.types.is_string(values.type):
        with suppress(pa.ArrowInvalid):  # times that name no zone
            return pc.assume_timezone(pc.cast(values, pa.timestamp("us")), "UTC")
    return pc.cast(values, kind)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values with null for empty texts, as in a CSV, and for non-finite numbers."""
    values = _decoded(values)
    if pa.types.is_string(values.type):
        return pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    return values


def _decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts of any Arrow type as strings, and other values unchanged."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    return values


def parse_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as strings, null if empty."""
    return _plain(_plain(values).cast(pa.string()))


def parse_tags(values: pa.ChunkedArray, separator: str) -> pa.Array:
    """Return tags as list<string>, from lists or from texts with a separator between tags."""
    array = _decoded(values).combine_chunks()
    if pa.types.is_string(array.type):
        array = pc.split_pattern(array, separator)
    return encode_lists(array.cast(pa.list_(pa.string())))


def encode_lists(lists: pa.Array) -> pa.Array:
    """Return lists of texts as a dictionary, which is fast to filter."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    starts = pa.array(manifest.starts_from_lengths(lengths), pa.int32())
    texts = lists.flatten()
    texts = pc.fill_null(texts, "") if texts.null_count else texts
    return pa.ListArray.from_arrays(starts, texts.dictionary_encode())
