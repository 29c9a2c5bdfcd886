"""Split posts by their ids, by their dates, or by a table, without regard to tags.

A group goes where its leader goes: the post with the shortest id, the first of them in order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tagger.core import manifest, records
from tagger.core.errors import TaggerError, did_you_mean
from tagger.split import methods
from tagger.split.methods import Groups, SplitIndices

_MODULUS = 1000  # of the ids of Danbooru's posts; its mirrors and the WD taggers split by it


def by_hash(
    ids: pa.ChunkedArray, fractions: Sequence[float], *, groups: Groups, seed: int
) -> SplitIndices:
    """Return the split of each post, (posts,), by a hash of its id: other posts do not move it."""
    positions = manifest.hash_ids(ids, seed) / 2.0**64
    return _split_at(positions[_leaders(ids, groups)], fractions)


def by_modulo(ids: pa.ChunkedArray, fractions: Sequence[float], *, groups: Groups) -> SplitIndices:
    """Return the split of each post, (posts,), by ranges of its id modulo 1000."""
    try:
        numbers = pc.cast(ids, pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise TaggerError(
            "split.method modulo needs ids that are numbers, and some ids here are not. "
            "Use hash, which takes any id."
        ) from None
    positions = (numbers[_leaders(ids, groups)] % _MODULUS + 0.5) / _MODULUS
    return _split_at(positions, fractions)


def by_time(
    created_at: pa.ChunkedArray,
    ids: pa.ChunkedArray,
    fractions: Sequence[float],
    *,
    groups: Groups,
) -> SplitIndices:
    """Return the split of each post, (posts,): the newest posts are in the last split.

    A group is as old as its oldest post, so that no group in a split is older than its first day.
    """
    undated = created_at.null_count
    if undated:
        raise TaggerError(
            f"split.method time needs the dates of posts, and {undated:,} of {len(ids):,} have "
            "none. Use hash, or a source that gives created_at."
        )
    group_of = methods.number_groups(groups, len(ids))
    oldest_first = _sorted(pa.table({"key": created_at, "id": ids}))
    first = np.full(group_of.max() + 1, len(ids))
    np.minimum.at(first, group_of[oldest_first], np.arange(len(ids)))
    return methods.fill_in_order(np.argsort(first), group_of, fractions)


def from_table(
    path: Path, id_column: str, split_column: str, ids: pa.ChunkedArray, names: Sequence[str]
) -> SplitIndices:
    """Return the split of each post, (posts,), as a table names it.

    Raises TaggerError for a post that the table lacks or has twice, and for a split not in `names`.
    """
    split_of: dict[str, int] = {}
    for place, row in records.read_rows(path):
        for key, column in (("id_column", id_column), ("split_column", split_column)):
            if column not in row:
                raise TaggerError(
                    f"split.table: {place} has no {column!r}.{did_you_mean(column, row)} "
                    f"split.{key} must be one of {', '.join(row)}."
                )
        post, split = _text(row[id_column]), str(row[split_column])
        if split not in names:
            hint = did_you_mean(split, names)
            raise TaggerError(
                f"{place}: unknown split {split!r}.{hint} Splits: {', '.join(names)}."
            )
        if post in split_of:
            raise TaggerError(f"{place} has the post {post!r} a second time. Remove one row.")
        split_of[post] = names.index(split)
    splits = np.array([split_of.get(post, -1) for post in ids.to_pylist()], dtype=np.int8)
    missing = np.flatnonzero(splits < 0)
    if len(missing):
        raise TaggerError(
            f"{path} lacks {len(missing):,} of {len(ids):,} posts, {ids[missing[0]].as_py()!r} "
            "first. Add them, or exclude them in prepare."
        )
    return splits


def _text(value: object) -> str:
    """Return an id as text; a column of floats must not add `.0` to whole numbers."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _split_at(positions: npt.NDArray[np.float64], fractions: Sequence[float]) -> SplitIndices:
    """Return the split of each post from its position, 0 to 1."""
    edges = np.cumsum(fractions)[:-1]
    return np.searchsorted(edges, positions, side="right").astype(np.int8)


def _leaders(ids: pa.ChunkedArray, groups: Groups) -> Groups:
    """Return the row of the leader of each post's group, (posts,)."""
    leaders = np.arange(len(ids))
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    grouped = np.flatnonzero(sizes[group_of] > 1)
    grouped_ids = ids.take(pa.array(grouped))
    keys = pa.table({"key": pc.utf8_length(grouped_ids), "id": grouped_ids})
    ranked = grouped[_sorted(keys)]
    lead = np.empty(len(sizes), dtype=np.int64)
    lead[group_of[ranked[::-1]]] = ranked[::-1]  # the last one written has the first rank
    leaders[grouped] = lead[group_of[grouped]]
    return leaders


def _sorted(table: pa.Table) -> Groups:
    order = pc.sort_indices(table, [("key", "ascending"), ("id", "ascending")])
    return np.asarray(order.to_numpy(), dtype=np.int64)
