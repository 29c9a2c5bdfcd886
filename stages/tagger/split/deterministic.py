"""Part posts by what is known of each: its id, its date, or a table that names its part.

None of these looks at tags. A group goes where its leader goes: the post of the smallest number, or
of the shortest id that comes first.
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

_MODULUS = 1000  # of the ids of Danbooru's posts, by which its mirrors and the WD taggers part them


def by_hash(
    ids: pa.ChunkedArray, proportions: Sequence[float], *, groups: Groups, seed: int
) -> SplitIndices:
    """Return the part of each post, (posts,), by a hash of its id: other posts do not move it."""
    drawn = manifest.hash_ids(ids, seed) / 2.0**64
    return _share(drawn[_leaders(ids, groups)], proportions)


def by_modulo(
    ids: pa.ChunkedArray, proportions: Sequence[float], *, groups: Groups
) -> SplitIndices:
    """Return the part of each post, (posts,), by ranges of its id modulo 1000, first part first."""
    try:
        numbers = pc.cast(ids, pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise TaggerError(
            "split.method modulo takes ids that are numbers, and not all ids here are. "
            "Use hash, which parts by any id."
        ) from None
    rest = (numbers[_leaders(ids, groups)] % _MODULUS + 0.5) / _MODULUS
    return _share(rest, proportions)


def by_time(
    created_at: pa.ChunkedArray,
    ids: pa.ChunkedArray,
    proportions: Sequence[float],
    *,
    groups: Groups,
) -> SplitIndices:
    """Return the part of each post, (posts,): the newest are in the last part.

    A group is as old as its oldest post, so that nothing in a part is older than its first day.
    """
    unknown = created_at.null_count
    if unknown:
        raise TaggerError(
            f"split.method time takes the dates of posts, and {unknown:,} of {len(ids):,} have "
            "none. Use hash, or a source that gives created_at."
        )
    group_of = methods.number_groups(groups, len(ids))
    oldest_first = _sorted(pa.table({"key": created_at, "id": ids}))
    first = np.full(group_of.max() + 1, len(ids))
    np.minimum.at(first, group_of[oldest_first], np.arange(len(ids)))
    return methods.fill_in_order(np.argsort(first), group_of, proportions)


def from_table(
    path: Path, id_column: str, split_column: str, ids: pa.ChunkedArray, names: Sequence[str]
) -> SplitIndices:
    """Return the part of each post, (posts,), as a table names it.

    Raises TaggerError for a post that the table misses or has twice, and for a part not in `names`.
    """
    part_of: dict[str, int] = {}
    for place, row in records.read_rows(path):
        for key, column in (("id_column", id_column), ("split_column", split_column)):
            if column not in row:
                raise TaggerError(
                    f"split.given: {place} has no {column!r}.{did_you_mean(column, row)} "
                    f"split.{key} must be one of {', '.join(row)}."
                )
        post, part = _text(row[id_column]), str(row[split_column])
        if part not in names:
            hint = did_you_mean(part, names)
            raise TaggerError(
                f"{place} names the part {part!r}.{hint} Parts are {', '.join(names)}."
            )
        if post in part_of:
            raise TaggerError(f"{place} has the post {post!r} a second time. Remove one.")
        part_of[post] = names.index(part)
    parts = np.array([part_of.get(post, -1) for post in ids.to_pylist()], dtype=np.int8)
    missed = np.flatnonzero(parts < 0)
    if len(missed):
        raise TaggerError(
            f"{path} misses {len(missed):,} of {len(ids):,} posts, {ids[missed[0]].as_py()!r} "
            "first. Add them, or leave them out in prepare."
        )
    return parts


def _text(value: object) -> str:
    """Return an id as a text, a whole number without what a column of floats adds to it."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _share(places: npt.NDArray[np.float64], proportions: Sequence[float]) -> SplitIndices:
    """Return the parts of posts from their places, 0 to 1."""
    edges = np.cumsum(proportions)[:-1]
    return np.searchsorted(edges, places, side="right").astype(np.int8)


def _leaders(ids: pa.ChunkedArray, groups: Groups) -> Groups:
    """Return the row of the leader of each post's group, (posts,)."""
    leaders = np.arange(len(ids))
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    several = np.flatnonzero(sizes[group_of] > 1)
    some = ids.take(pa.array(several))
    ranked = several[_sorted(pa.table({"key": pc.utf8_length(some), "id": some}))]
    lead = np.empty(len(sizes), dtype=np.int64)
    lead[group_of[ranked[::-1]]] = ranked[::-1]  # the last one written is the first in rank
    leaders[several] = lead[group_of[several]]
    return leaders


def _sorted(table: pa.Table) -> Groups:
    order = pc.sort_indices(table, [("key", "ascending"), ("id", "ascending")])
    return np.asarray(order.to_numpy(), dtype=np.int64)
