"""Read the posts of a source: normalize their tags and apply the filters.

The result is one Arrow table with the columns of `posts.COLUMNS` and `tags`, the lexicon's numbers
as list<int32>. It stays in memory: four bytes a label and about a hundred a post, so 1.7 GB for
eight million posts with 36 tags each. No post becomes a Python object.
"""

import threading

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tagger import params
from tagger.core import manifest
from tagger.core.vocabulary import Tag, sort_tags
from tagger.data import filters, rejected
from tagger.data.filters import TagFilter
from tagger.data.posts import COLUMNS, set_column
from tagger.data.rejected import Rejection
from tagger.data.sources import PostBatch, Source
from tagger.data.tags.lexicon import Lexicon
from tagger.system.prefetch import prefetch

_COLUMNS = [name for name in COLUMNS if name not in ("score", "deleted", "banned")]


def read_posts(
    source: Source, lexicon: Lexicon, p: params.FilterParams
) -> tuple[pa.Table, pa.Table]:
    """Return the posts of a source that pass the filters, in its order, and the rejected ones."""
    tag_filter = TagFilter(lexicon, p)
    tables = [_with_tags(pa.table({"id": pa.array([], pa.string())}), _lists([0], []))]
    rejected_tables = [rejected.SCHEMA.empty_table()]
    stop = threading.Event()
    for batch in prefetch(source.read(stop), stop=stop):
        rejected_tables.append(batch.rejected.cast(rejected.SCHEMA))
        if len(batch.posts):
            posts, unwanted = _filter_batch(batch, lexicon, p, tag_filter)
            tables.append(posts)
            rejected_tables.append(unwanted)
    return pa.concat_tables(tables), pa.concat_tables(rejected_tables)


def _filter_batch(
    batch: PostBatch, lexicon: Lexicon, p: params.FilterParams, tag_filter: TagFilter
) -> tuple[pa.Table, pa.Table]:
    """Filter by columns first: tags of posts that these filters reject are not counted."""
    numbered = batch.posts.append_column("row", pa.array(np.arange(len(batch.posts))))
    posts, by_columns = rejected.reject(numbered, filters.reject_by_columns(numbered, p))
    tags = batch.tags
    if len(by_columns):
        rows = posts["row"].combine_chunks()
        tags = {category: lists.take(rows) for category, lists in tags.items()}
    labels = lexicon.labels(tags)
    posts = _with_tags(posts, _lists(labels.indptr, labels.indices))
    rejections = (*tag_filter.rejections(labels), *filters.reject_by_size(posts, p))
    posts, by_tags = rejected.reject(posts, rejections)
    return posts, pa.concat_tables([by_columns, by_tags])


def _with_tags(posts: pa.Table, tags: pa.Array) -> pa.Table:
    columns = {
        name: posts[name].cast(COLUMNS[name])
        if name in posts.column_names
        else pa.nulls(len(posts), COLUMNS[name])
        for name in _COLUMNS
    }
    return pa.table({**columns, "tags": tags})


def _lists(starts: npt.ArrayLike, numbers: npt.ArrayLike) -> pa.Array:
    return pa.ListArray.from_arrays(
        pa.array(np.asarray(starts, np.int32)), pa.array(np.asarray(numbers, np.int32))
    )


def drop_duplicate_ids(posts: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Reject posts without an id, and all but the first post of each id."""
    ids = posts["id"]
    codes = pc.fill_null(ids, "").combine_chunks().dictionary_encode().indices.to_numpy()
    duplicate = np.ones(len(posts), dtype=np.bool_)
    duplicate[np.unique(codes, return_index=True)[1]] = False
    no_id = Rejection.with_detail("no id", pc.is_null(ids).to_numpy(), "the source names none")
    return rejected.reject(posts, [no_id, Rejection("duplicate id", duplicate, ids)])


def renumber(posts: pa.Table, lexicon: Lexicon) -> tuple[pa.Table, list[Tag]]:
    """Return the posts with rows of tags.parquet for numbers of the lexicon, and these tags."""
    tags = used_tags(lexicon, count_labels(posts, len(lexicon)))
    row_of = {tag.name: row for row, tag in enumerate(tags)}
    rows = np.array([row_of.get(name, -1) for name in lexicon.names], dtype=np.int32)
    chunks = []
    for chunk in posts["tags"].chunks:
        starts, numbers = manifest.flatten_lists(chunk)
        chunks.append(_lists(starts, rows[numbers]))
    return set_column(posts, "tags", pa.chunked_array(chunks, pa.list_(pa.int32()))), tags


def count_labels(posts: pa.Table, tag_count: int) -> npt.NDArray[np.int64]:
    """Return the number of posts with each tag of the lexicon, (tags,)."""
    counts = np.zeros(tag_count, dtype=np.int64)
    for chunk in posts["tags"].chunks:
        counts += np.bincount(chunk.flatten().to_numpy(), minlength=tag_count)
    return counts


def used_tags(lexicon: Lexicon, counts: npt.NDArray[np.int64]) -> list[Tag]:
    """Return the tags on at least one post, in vocabulary order. A tag without an id gets one < 0.

    counts: posts with each tag of the lexicon, (tags,)
    """
    known_tags = lexicon.rules.known_tags
    tags = sort_tags(
        Tag(known_tags.get(name, (0, -1))[1], name, lexicon.category(number), int(counts[number]))
        for number, name in enumerate(lexicon.names)
        if counts[number]
    )
    return [
        tag._replace(tag_id=-1 - row) if tag.tag_id < 0 else tag for row, tag in enumerate(tags)
    ]
