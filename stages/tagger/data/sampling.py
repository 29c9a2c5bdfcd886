"""Draw posts, by their ids: a sample, or so many of each tag."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_array

from tagger.core.arrays import Mask
from tagger.system.jit import fast


def random_order(ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.int64]:
    """Return the posts in an order drawn by id: other posts do not change who comes first."""
    return np.argsort(hash_ids(ids, seed), kind="stable")


def hash_ids(ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    """Return a number for each id, (ids,), evenly spread over all of 64 bits."""
    key = f"{seed:016d}"[-16:]
    chunks = [pd.util.hash_array(_objects(chunk), hash_key=key) for chunk in ids.chunks]
    return np.concatenate([np.empty(0, np.uint64), *chunks])


def _objects(ids: pa.Array) -> npt.NDArray[np.object_]:
    return np.asarray(ids.to_numpy(zero_copy_only=False), dtype=np.object_)


def over_cap(labels: csr_array, order: npt.NDArray[np.int64], cap: int) -> Mask:
    """Return the posts to leave out, (posts,), so that no tag is on more than `cap` posts.

    labels: (posts, tags), of the tags that are to be capped alone
    """
    out = np.zeros(labels.shape[0], dtype=np.bool_)
    counts = np.zeros(labels.shape[1], np.int64)
    cap_all = fast(_cap, 10 * len(order))
    cap_all(order, labels.indptr, labels.indices, counts, cap, out)
    return out


def _cap(
    order: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int32],
    tags: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
    cap: int,
    out: Mask,
) -> None:
    for post in order:
        own = tags[starts[post] : starts[post + 1]]
        out[post] = (counts[own] >= cap).any()
        if not out[post]:
            counts[own] += 1
