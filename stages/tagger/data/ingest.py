"""Take the posts of a source in: tags put right, unwanted posts left out, each with its reason.

What comes out is one Arrow table with the columns of `sources.COLUMNS` and `tags`, the numbers of
the lexicon as list<int32>. It is held in memory: four bytes a label and about a hundred a post,
so 1.7 GB for eight million posts of 36 tags. Nothing on the way is a Python object per post.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from tagger import params
from tagger.core import manifest
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag, sort_tags
from tagger.data import filters
from tagger.data.filters import Rejection, TagFilter
from tagger.data.rejected import RejectedPosts
from tagger.data.sources import COLUMNS, Source, set_column
from tagger.data.tags.lexicon import Lexicon
from tagger.system import workers

KEPT = [name for name in COLUMNS if name not in ("score", "deleted", "banned")]


def read_posts(
    source: Source, lexicon: Lexicon, p: params.FilterParams, left_out: RejectedPosts
) -> pa.Table:
    """Return the posts of a source that pass the filters, in its order."""
    by_tags = TagFilter(lexicon, p)
    tables = [_conform(pa.table({"id": pa.array([], pa.string()), "tags": _lists([0], [])}))]
    for batch in workers.one_ahead(source.read()):
        left_out.add(batch.rejected)
        if not len(batch.posts):
            continue
        tags = batch.tags
        posts, kept = judge(batch.posts, filters.reject_by_columns(batch.posts, p), left_out)
        if len(posts) < len(kept):
            tags = {category: lists.filter(kept) for category, lists in tags.items()}
        labels = lexicon.labels(tags)
        posts = _conform(posts.append_column("tags", _lists(labels.indptr, labels.indices)))
        verdicts = (*by_tags.rejections(labels), *filters.reject_by_size(posts, p))
        tables.append(judge(posts, verdicts, left_out)[0])
    return pa.concat_tables(tables)


def judge(
    posts: pa.Table, verdicts: Iterable[Rejection], left_out: RejectedPosts
) -> tuple[pa.Table, pa.Array]:
    """Return the posts that no verdict leaves out, and which these are; the first reason counts."""
    kept = np.ones(len(posts), dtype=np.bool_)
    for verdict in verdicts:
        left_out.judge(posts["id"], verdict._replace(rejected=verdict.rejected & kept))
        kept &= ~verdict.rejected
    mask = pa.array(kept)
    return posts if kept.all() else posts.filter(mask), mask


def _conform(posts: pa.Table) -> pa.Table:
    columns = {
        name: posts[name].cast(COLUMNS[name])
        if name in posts.column_names
        else pa.nulls(len(posts), COLUMNS[name])
        for name in KEPT
    }
    return pa.table({**columns, "tags": posts["tags"]})


def _lists(starts: npt.ArrayLike, numbers: npt.ArrayLike) -> pa.Array:
    return pa.ListArray.from_arrays(
        pa.array(np.asarray(starts, np.int32)), pa.array(np.asarray(numbers, np.int32))
    )


def choose(
    posts: pa.Table, lexicon: Lexicon, p: params.FilterParams, left_out: RejectedPosts
) -> pa.Table:
    """Return the posts less those of an id seen before, and what cap and sample leave out."""
    nameless = filters.reject("no id", pc.is_null(posts["id"]).to_numpy(), "the source names none")
    posts, _ = judge(posts, [nameless, repeated(posts)], left_out)
    if p.max_posts_per_tag is not None:
        posts, _ = judge(posts, [beyond_cap(posts, lexicon, p)], left_out)
    if p.sample_size is not None:
        posts, _ = judge(posts, [beyond_sample(posts, p.sample_size, p.seed)], left_out)
    return posts


def require(posts: pa.Table, left_out: RejectedPosts, report: Path) -> pa.Table:
    """Return the posts. Raises TaggerError where there are none, and leaves the reasons."""
    if not len(posts):
        left_out.write(report)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.counts().items())
        raise TaggerError(f"No post is left to use ({reasons or 'there was none'}): see {report}.")
    return posts


def repeated(posts: pa.Table) -> Rejection:
    """Leave out all but the first of posts with the same id."""
    codes = pc.fill_null(posts["id"], "").combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.zeros(len(posts), dtype=np.bool_)
    first[np.unique(codes, return_index=True)[1]] = True
    return Rejection("duplicate id", ~first, posts["id"])


def beyond_cap(posts: pa.Table, lexicon: Lexicon, p: params.FilterParams) -> Rejection:
    """Leave out posts of tags that are on many, until none is on more than the cap."""
    from tagger.data import sampling

    cap = p.max_posts_per_tag or len(posts)
    counted = [
        CATEGORIES[lexicon.category(tag)] in p.capped_categories for tag in range(len(lexicon))
    ]
    labels = manifest.labels_from_lists(posts["tags"].combine_chunks(), len(lexicon))
    labels = csr_array(labels[:, np.flatnonzero(counted)])
    out = sampling.over_cap(labels, sampling.random_order(posts["id"], p.seed), cap)
    return filters.reject("cap", out, f"a tag of it is on {cap:,} posts")


def beyond_sample(posts: pa.Table, size: int, seed: int) -> Rejection:
    """Leave out all but `size` posts, drawn by id."""
    from tagger.data import sampling

    out = np.zeros(len(posts), dtype=np.bool_)
    out[sampling.random_order(posts["id"], seed)[size:]] = True
    return filters.reject("sample", out, f"not one of {size:,} drawn")


def count_labels(posts: pa.Table, tags: int) -> npt.NDArray[np.int64]:
    """Return how many posts each tag of the lexicon is on, (tags,)."""
    counts = np.zeros(tags, dtype=np.int64)
    for chunk in posts["tags"].chunks:
        counts += np.bincount(chunk.flatten().to_numpy(), minlength=tags)
    return counts


def used_tags(lexicon: Lexicon, counts: npt.NDArray[np.int64]) -> list[Tag]:
    """Return the tags that are on a post, in the vocabulary's order; ids not known are below 0."""
    known = lexicon.rules.known_tags
    tags = sort_tags(
        Tag(known.get(name, (0, -1))[1], name, lexicon.category(number), int(counts[number]))
        for number, name in enumerate(lexicon.names)
        if counts[number]
    )
    return [
        tag._replace(tag_id=-1 - row) if tag.tag_id < 0 else tag for row, tag in enumerate(tags)
    ]


def renumber(posts: pa.Table, lexicon: Lexicon, tags: list[Tag]) -> pa.Table:
    """Return the posts with the rows of `tags` in place of the numbers of the lexicon."""
    row_of = {tag.name: row for row, tag in enumerate(tags)}
    rows = np.array([row_of.get(name, -1) for name in lexicon.names], dtype=np.int32)
    chunks = []
    for chunk in posts["tags"].chunks:
        starts, numbers = manifest.flatten_lists(chunk)
        chunks.append(_lists(starts, rows[numbers]))
    column = pa.chunked_array(chunks, pa.list_(pa.int32()))
    return set_column(posts, "tags", column)
