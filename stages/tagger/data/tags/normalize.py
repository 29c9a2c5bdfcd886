"""Normalize the tags of posts: without repetitions, with implied tags, and renamed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.system.jit import compiled_if_long

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

DROPPED = -1


class NormalizedTags(NamedTuple):
    starts: Int32Array  # (posts + 1,), of the tags of each post
    tags: Int32Array  # (labels,)
    repeated: int  # labels dropped as repetitions
    implied: Int64Array  # (tags,), labels that each tag gained by implication
    renamed: Int64Array  # (tags,), labels that each tag lost to another tag


def normalize_tags(
    columns: Sequence[tuple[Int64Array, Int32Array]],
    implied_starts: Int64Array,
    implied: Int32Array,
    final_tags: Int32Array,
) -> NormalizedTags:
    """Return the tags of each post.

    columns: for each source column, the starts of the labels of each post, (posts + 1,), and the
        labels, tags or DROPPED
    implied_starts, implied: the tags that each tag implies, (tags + 1,) and flat
    final_tags: (tags,), the tag that each tag is renamed to, or DROPPED
    """
    lengths = np.array([len(labels) for _, labels in columns])
    offsets = np.cumsum(lengths) - lengths
    starts = np.stack([starts for starts, _ in columns]) + offsets[:, None]
    labels = np.concatenate([labels for _, labels in columns])
    kept = labels[labels != DROPPED]
    capacity = len(kept) + int(np.diff(implied_starts)[kept].sum())
    ends, tags = np.zeros(starts.shape[1], np.int32), np.empty(capacity, np.int32)
    tag_count = len(final_tags)
    gained, lost = np.zeros(tag_count, np.int64), np.zeros(tag_count, np.int64)
    last = np.full(tag_count, -1, np.int32)
    has_renames = bool((final_tags != np.arange(tag_count)).any())
    repeated = compiled_if_long(_normalize, capacity)(
        *(starts, labels, implied_starts, implied, final_tags, has_renames),
        *(last, gained, lost, ends, tags),
    )
    return NormalizedTags(ends, tags[: ends[-1]].copy(), int(repeated), gained, lost)


def _normalize(
    starts: Int64Array,  # (columns, posts + 1)
    labels: Int32Array,
    implied_starts: Int64Array,
    implied: Int32Array,
    final_tags: Int32Array,
    has_renames: bool,
    last: Int32Array,  # (tags,), 2 x the last post with the tag, + 1 after renames
    gained: Int64Array,
    lost: Int64Array,
    ends: Int32Array,
    tags: Int32Array,
) -> int:
    size = 0
    repeated = 0
    for post in range(starts.shape[1] - 1):
        first = size
        for column in range(starts.shape[0]):
            for position in range(starts[column, post], starts[column, post + 1]):
                tag = labels[position]
                if tag == DROPPED:
                    continue
                if last[tag] == 2 * post:
                    repeated += 1
                    continue
                last[tag] = 2 * post
                tags[size] = tag
                size += 1
        end = size
        for implying in range(first, end):
            for position in range(
                implied_starts[tags[implying]], implied_starts[tags[implying] + 1]
            ):
                tag = implied[position]
                if last[tag] != 2 * post:
                    last[tag] = 2 * post
                    gained[tag] += 1
                    tags[size] = tag
                    size += 1
        if has_renames:
            end = size
            size = first
            for position in range(first, end):
                tag = final_tags[tags[position]]
                if tag != tags[position]:
                    lost[tags[position]] += 1
                if tag != DROPPED and last[tag] != 2 * post + 1:
                    last[tag] = 2 * post + 1
                    tags[size] = tag
                    size += 1
        ends[post + 1] = size
    return repeated
