"""Settle the tags of posts: each once, with all that it implies, under its last name."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.system.jit import fast

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

DROPPED = -1


class NormalizedTags(NamedTuple):
    starts: Int32Array  # (posts + 1,), of each post's tags
    tags: Int32Array  # (labels,)
    repeated: int  # labels that were written more than once
    implied: Int64Array  # (tags,), labels that each tag got by implication
    renamed: Int64Array  # (tags,), labels that each tag lost to another name


def normalize_tags(
    written: Sequence[tuple[Int64Array, Int32Array]],
    implied_starts: Int64Array,
    implied: Int32Array,
    names: Int32Array,
) -> NormalizedTags:
    """Return the tags of each post.

    written: where the labels of each post start, (posts + 1,), and the labels, some DROPPED, for
        each column that they come from
    implied_starts, implied: all that each tag implies, (tags + 1,) and flat
    names: (tags,), the tag whose name each is given last, or DROPPED
    """
    lengths = np.array([len(labels) for _, labels in written])
    offsets = np.cumsum(lengths) - lengths
    starts = np.stack([starts for starts, _ in written]) + offsets[:, None]
    labels = np.concatenate([labels for _, labels in written])
    kept = labels[labels != DROPPED]
    room = len(kept) + int(np.diff(implied_starts)[kept].sum())
    ends, tags = np.zeros(starts.shape[1], np.int32), np.empty(room, np.int32)
    added, renamed = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    last = np.full(len(names), -1, np.int32)
    any_renamed = bool((names != np.arange(len(names))).any())
    repeated = fast(_settle, room)(
        *(starts, labels, implied_starts, implied, names, any_renamed),
        *(last, added, renamed, ends, tags),
    )
    return NormalizedTags(ends, tags[: ends[-1]].copy(), int(repeated), added, renamed)


def _settle(
    starts: Int64Array,  # (columns, posts + 1)
    labels: Int32Array,
    implied_starts: Int64Array,
    implied: Int32Array,
    names: Int32Array,
    any_renamed: bool,
    last: Int32Array,  # (tags,), twice the post that had a tag last, one more under its last name
    added: Int64Array,
    renamed: Int64Array,
    ends: Int32Array,
    tags: Int32Array,
) -> int:
    size = 0
    repeated = 0
    for post in range(starts.shape[1] - 1):
        first = size
        for column in range(starts.shape[0]):
            for place in range(starts[column, post], starts[column, post + 1]):
                tag = labels[place]
                if tag == DROPPED:
                    continue
                if last[tag] == 2 * post:
                    repeated += 1
                    continue
                last[tag] = 2 * post
                tags[size] = tag
                size += 1
        written = size
        for own in range(first, written):
            for place in range(implied_starts[tags[own]], implied_starts[tags[own] + 1]):
                tag = implied[place]
                if last[tag] != 2 * post:
                    last[tag] = 2 * post
                    added[tag] += 1
                    tags[size] = tag
                    size += 1
        if any_renamed:
            end = size
            size = first
            for place in range(first, end):
                tag = names[tags[place]]
                if tag != tags[place]:
                    renamed[tags[place]] += 1
                if tag != DROPPED and last[tag] != 2 * post + 1:
                    last[tag] = 2 * post + 1
                    tags[size] = tag
                    size += 1
        ends[post + 1] = size
    return repeated
