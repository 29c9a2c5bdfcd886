"""Rejected posts, each with its reason.

Every step of `prepare` returns the remaining posts and a table of the rejected ones.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagger.core import files
from tagger.core.arrays import Mask
from tagger.core.errors import TaggerError

SCHEMA = pa.schema({"id": pa.string(), "reason": pa.string(), "detail": pa.string()})


class Rejection(NamedTuple):
    """The posts that one filter rejects."""

    reason: str
    mask: Mask  # true for a rejected post
    details: pa.Array | pa.ChunkedArray  # string for every post

    @classmethod
    def with_detail(cls, reason: str, mask: Mask, detail: str) -> "Rejection":
        """Return a rejection with the same detail for every post."""
        return cls(reason, mask, pa.repeat(pa.scalar(detail), len(mask)))


def reject(posts: pa.Table, rejections: Iterable[Rejection]) -> tuple[pa.Table, pa.Table]:
    """Return the posts that no filter rejects, and a row of SCHEMA for each of the others.

    The first filter that rejects a post gives the reason.
    """
    remaining = np.ones(len(posts), dtype=np.bool_)
    tables = [SCHEMA.empty_table()]
    for rejection in rejections:
        mask = pa.array(rejection.mask & remaining)
        ids = posts["id"].filter(mask)
        reasons = pa.repeat(pa.scalar(rejection.reason), len(ids))
        columns = [ids, reasons, pc.filter(rejection.details, mask)]
        tables.append(pa.table(columns, names=SCHEMA.names).cast(SCHEMA))
        remaining &= ~rejection.mask
    if not remaining.all():
        posts = posts.filter(pa.array(remaining))
    return posts, pa.concat_tables(tables)


def rejections_by_reason(results: pa.Table) -> list[Rejection]:
    """Return a rejection for each distinct reason in the columns `reason` and `detail`."""
    reasons = results["reason"]
    return [
        Rejection(
            reason, pc.fill_null(pc.equal(reasons, reason), False).to_numpy(), results["detail"]
        )
        for reason in sorted(pc.unique(reasons).drop_null().to_pylist())
    ]


def count_reasons(rejected: pa.Table) -> dict[str, int]:
    """Return the number of rejected posts by reason, the most frequent first."""
    counted = pc.value_counts(rejected["reason"]).flatten()
    return dict(Counter(dict(zip(*map(pa.Array.to_pylist, counted), strict=True))).most_common())


def write(rejected: pa.Table, path: Path) -> None:
    batches = (batch.columns for batch in rejected.to_batches())
    rows = (zip(*map(pa.Array.to_pylist, columns), strict=True) for columns in batches)
    files.write_csv(path, SCHEMA.names, chain.from_iterable(rows))


def require_posts(posts: pa.Table, rejected: pa.Table, path: Path) -> None:
    """Raise TaggerError if no post remains, after writing the rejected ones to a path."""
    if not len(posts):
        write(rejected, path)
        counts = (f"{count:,} {reason}" for reason, count in count_reasons(rejected).items())
        reasons = ", ".join(counts) or "the source has none"
        raise TaggerError(f"No posts remain ({reasons}). See {path}.")
