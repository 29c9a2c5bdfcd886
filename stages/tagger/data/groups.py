"""Groups of posts that a split must keep together: parents, duplicates, near-duplicates.

Each kind of relation is a list of pairs of posts. A group is a connected component of all pairs.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tagger import params
from tagger.core import files
from tagger.core.location import Location
from tagger.data.posts import (
    LOCATION_COLUMNS,
    content_or_null,
    hash_images,
    map_images,
    set_column,
)

PostPairs = npt.NDArray[np.int64]  # (pairs, 2), rows of posts; an absent parent has a higher number


def group(posts: pa.Table, p: params.GroupParams, cache: Path | None = None) -> pa.Table:
    """Return the posts with `group`, the row of the first post of the group.

    cache: folder for hashes of images, which an interrupted run continues from
    """
    pairs = []
    if p.parents:
        pairs.append(pair_by_parent(posts["id"], posts["parent"]))
    if p.duplicates:
        pairs.append(pair_by_content(_content_hashes(posts, cache)))
    if p.near is not None:
        from tagger.data import perceptual_hash

        work = partial(perceptual_hash.compute_hashes)
        hashes = map_images(work, posts, cache, "hashing")["hash"]
        pairs += [pair_by_content(hashes), perceptual_hash.pair_similar(hashes, p.near)]
    return set_column(posts, "group", pa.array(number_groups(len(posts), *pairs)))


def number_groups(post_count: int, *pairs: PostPairs) -> npt.NDArray[np.int64]:
    """Return the group of each post, (posts,): the lowest row of a post in it."""
    edges = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    nodes = max(post_count, int(edges.max(initial=-1)) + 1)
    ones = np.ones(len(edges), dtype=np.bool_)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    _, first, member = np.unique(component[:post_count], return_index=True, return_inverse=True)
    return np.asarray(first[member], dtype=np.int64)


def pair_by_parent(ids: pa.ChunkedArray, parents: pa.ChunkedArray) -> PostPairs:
    """Return each post with its parent. Children of one absent parent share a number for it."""
    children = np.flatnonzero(pc.is_valid(parents).to_numpy())
    parents = pc.drop_null(parents)
    if not len(parents):
        return np.empty((0, 2), np.int64)
    present = pc.index_in(parents, value_set=ids.combine_chunks())
    absent = parents.combine_chunks().dictionary_encode().indices.to_numpy() + len(ids)
    rows = pc.fill_null(present, -1).to_numpy()
    return np.stack([children, np.where(rows < 0, absent, rows)], axis=1).astype(np.int64)


def pair_by_content(hashes: pa.ChunkedArray) -> PostPairs:
    """Return pairs that connect all posts with the same hash. Null equals nothing."""
    rows = np.flatnonzero(pc.is_valid(hashes).to_numpy())
    codes = pc.drop_null(hashes).combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    same = np.flatnonzero(np.diff(codes[order]) == 0)
    return rows[np.stack([order[same], order[same + 1]], axis=1)]


def _content_hashes(posts: pa.Table, cache: Path | None) -> pa.ChunkedArray:
    """Return the content hashes of posts that may have duplicates, null for the others."""
    hashes = content_or_null(posts)
    rows = find_equal_sizes(posts["size"], hashes)
    if not len(rows):
        return hashes
    images = posts.select(LOCATION_COLUMNS).take(rows)
    computed = map_images(partial(hash_content), images, cache, "comparing files")
    indices = np.full(len(posts), -1, dtype=np.int64)
    indices[rows] = np.arange(len(rows))
    return pc.coalesce(hashes, computed["content"].take(pa.array(indices, mask=indices < 0)))


def find_equal_sizes(sizes: pa.ChunkedArray, hashes: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the rows of posts without a hash whose file size another post has, too."""
    values = pc.fill_null(sizes, -1).to_numpy()
    _, member, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.flatnonzero((counts[member] > 1) & (values >= 0) & pc.is_null(hashes).to_numpy())


def hash_content(locations: Iterable[Location]) -> pa.Table:
    """Return the SHA-256 of each image as `content`, null if it cannot be read."""
    return pa.table({"content": pa.array(hash_images(locations, files.sha256_digest), pa.binary())})
