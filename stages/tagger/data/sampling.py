"""Random selection of posts: at most so many of each tag, and a sample of fixed size."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_array

from tagger import params
from tagger.core import manifest
from tagger.core.arrays import Mask
from tagger.core.vocabulary import CATEGORIES
from tagger.data import rejected
from tagger.data.rejected import Rejection
from tagger.data.tags.lexicon import Lexicon
from tagger.system.jit import compiled_if_long


def cap_posts_per_tag(
    posts: pa.Table, lexicon: Lexicon, p: params.FilterParams
) -> tuple[pa.Table, pa.Table]:
    """Reject posts until no tag of the capped categories is on more than the maximum."""
    cap = p.max_posts_per_tag
    if cap is None:
        return posts, rejected.SCHEMA.empty_table()
    capped = [
        CATEGORIES[lexicon.category(tag)] in p.capped_categories for tag in range(len(lexicon))
    ]
    labels = manifest.labels_from_lists(posts["tags"].combine_chunks(), len(lexicon))
    labels = csr_array(labels[:, np.flatnonzero(capped)])
    mask = over_cap(labels, random_order(posts["id"], p.seed), cap)
    detail = f"a tag of it is on {cap:,} posts"
    return rejected.reject(posts, [Rejection.with_detail("cap", mask, detail)])


def draw_sample(posts: pa.Table, p: params.FilterParams) -> tuple[pa.Table, pa.Table]:
    """Reject all posts but a random sample of `sample_size`.

    The sample depends on the ids alone: one more post replaces at most one other.
    """
    if p.sample_size is None:
        return posts, rejected.SCHEMA.empty_table()
    mask = np.zeros(len(posts), dtype=np.bool_)
    mask[random_order(posts["id"], p.seed)[p.sample_size :]] = True
    detail = f"not one of {p.sample_size:,} drawn"
    return rejected.reject(posts, [Rejection.with_detail("sample", mask, detail)])


def random_order(ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.int64]:
    """Return the row numbers in a random order. Two ids keep their order among any others."""
    return np.argsort(manifest.hash_ids(ids, seed), kind="stable")


def over_cap(labels: csr_array, order: npt.NDArray[np.int64], cap: int) -> Mask:
    """Return which posts to reject, (posts,), so that no tag is on more than `cap` posts.

    labels: (posts, tags), capped tags only
    order: (posts,), the first posts of a tag are kept
    """
    mask = np.zeros(labels.shape[0], dtype=np.bool_)
    counts = np.zeros(labels.shape[1], np.int64)
    mark = compiled_if_long(_mark_over_cap, 10 * len(order))
    mark(order, labels.indptr, labels.indices, counts, cap, mask)
    return mask


def _mark_over_cap(
    order: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int32],
    tags: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
    cap: int,
    mask: Mask,
) -> None:
    for post in order:
        tags_of_post = tags[starts[post] : starts[post + 1]]
        mask[post] = (counts[tags_of_post] >= cap).any()
        if not mask[post]:
            counts[tags_of_post] += 1
