"""The posts that are left out, each with its reason: nothing is lost on the way."""

from collections import Counter
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tagger.core import files
from tagger.data.filters import Rejection
from tagger.data.sources import REJECTED


class RejectedPosts:
    """Rows of id, reason and detail. Memory grows with what is left out, not with the rest."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def add(self, rows: pa.Table) -> None:
        """Add rows under the columns of REJECTED."""
        if len(rows):
            self._tables.append(rows.select(REJECTED.names).cast(REJECTED))

    def judge(self, ids: pa.ChunkedArray, verdict: Rejection) -> None:
        """Add the posts that a filter leaves out."""
        out = pa.array(verdict.rejected)
        ids, details = pc.filter(ids, out), pc.filter(verdict.details, out)
        reasons = pa.repeat(pa.scalar(verdict.reason), len(ids))
        self.add(pa.table({"id": ids, "reason": reasons, "detail": details}))

    def table(self) -> pa.Table:
        return pa.concat_tables([REJECTED.empty_table(), *self._tables])

    def counts(self) -> dict[str, int]:
        """Return how many posts each reason left out, the most frequent first."""
        counts = Counter[str]()
        for table in self._tables:
            found = pc.value_counts(table["reason"])
            counts.update(dict(zip(*map(pa.Array.to_pylist, found.flatten()), strict=True)))
        return dict(counts.most_common())

    def write(self, path: Path) -> None:
        batches = (batch.columns for batch in self.table().to_batches())
        rows = (zip(*map(pa.Array.to_pylist, columns), strict=True) for columns in batches)
        files.write_csv(path, REJECTED.names, chain.from_iterable(rows))
