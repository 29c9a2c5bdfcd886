"""Which posts belong together and must never be parted by a split.

Each kind of kinship is a list of pairs of posts; groups are what is connected by any of them.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tagger.core import files, manifest
from tagger.images import decode

PostPairs = npt.NDArray[np.int64]  # (pairs, 2), numbers of posts, or beyond them of absent parents


def number_groups(length: int, *kinships: PostPairs) -> npt.NDArray[np.int64]:
    """Return the group of each post, (posts,): the smallest number of a post in it."""
    pairs = np.concatenate([np.empty((0, 2), np.int64), *kinships])
    nodes = max(length, int(pairs.max(initial=-1)) + 1)
    ones = np.ones(len(pairs), dtype=np.bool_)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    _, first, member = np.unique(component[:length], return_index=True, return_inverse=True)
    return np.asarray(first[member], dtype=np.int64)


def pair_by_parent(ids: pa.ChunkedArray, parents: pa.ChunkedArray) -> PostPairs:
    """Return each post with its parent; those of the same absent parent meet in a number beyond."""
    children = np.flatnonzero(pc.is_valid(parents).to_numpy())
    parents = pc.drop_null(parents)
    if not len(parents):
        return np.empty((0, 2), np.int64)
    present = pc.index_in(parents, value_set=ids.combine_chunks())
    absent = parents.combine_chunks().dictionary_encode().indices.to_numpy() + len(ids)
    rows = pc.fill_null(present, -1).to_numpy()
    return np.stack([children, np.where(rows < 0, absent, rows)], axis=1).astype(np.int64)


def pair_by_content(content: pa.ChunkedArray) -> PostPairs:
    """Return pairs that connect all posts of the same content; null is like no other."""
    known = np.flatnonzero(pc.is_valid(content).to_numpy())
    codes = pc.drop_null(content).combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    same = np.flatnonzero(np.diff(codes[order]) == 0)
    return known[np.stack([order[same], order[same + 1]], axis=1)]


def find_equal_sizes(sizes: pa.ChunkedArray, content: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the posts whose content must be read: not yet known, of a size that others have."""
    values = pc.fill_null(sizes, -1).to_numpy()
    _, member, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.flatnonzero((counts[member] > 1) & (values >= 0) & pc.is_null(content).to_numpy())


def hash_content(pictures: pa.Table) -> pa.Table:
    """Return the SHA-256 of each picture as `content`, null where it cannot be read."""
    return pa.table({"content": pa.array(hash_images(pictures, files.sha256_digest), pa.binary())})


def hash_images(
    pictures: pa.Table, function: Callable[[bytes], bytes | None]
) -> list[bytes | None]:
    """Return a hash of the bytes of each picture, None where it cannot be read or has none."""
    hashes: list[bytes | None] = []
    for place in manifest.locations(pictures):
        try:
            hashes.append(function(decode.read_bytes(place)))
        except decode.Unreadable:
            hashes.append(None)
    return hashes
