"""The filters on posts: by their columns, by their size, and by their tags.

Each filter gives the reason for the posts that it rejects, and the value that decided.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from tagger import params
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import RATING, matches_glob, normalize_name
from tagger.data.rejected import Rejection
from tagger.data.tags.lexicon import Lexicon

PostCounts = npt.NDArray[np.int64]  # (posts,)


def reject_by_columns(posts: pa.Table, p: params.FilterParams) -> Iterator[Rejection]:
    """Yield the rejections by score, date, id, deleted and banned.

    Raises TaggerError for a filter on a column that the source does not have.
    """
    if p.min_score is not None or p.max_score is not None:
        yield _outside(posts, "score", "score", p.min_score, p.max_score)
    if p.after is not None or p.before is not None:
        first = p.after and _midnight(p.after)
        last = p.before and _midnight(p.before) - timedelta(microseconds=1)
        yield _outside(posts, "created_at", "date", first, last)
    if p.min_id is not None or p.max_id is not None:
        yield _outside(posts, "id", "id", p.min_id, p.max_id, pa.int64())
    for name, keep in (("deleted", p.keep_deleted), ("banned", p.keep_banned)):
        if not keep:
            mask = pc.fill_null(_column(posts, name, f"which of its posts are {name}"), False)
            yield Rejection.with_detail(name, mask.to_numpy(), "")


def reject_by_size(posts: pa.Table, p: params.FilterParams) -> Iterator[Rejection]:
    """Yield the rejections by width and height. An unknown size passes."""
    width, height = (
        pc.fill_null(pc.cast(posts[name], pa.float64()), np.nan).to_numpy()
        for name in ("width", "height")
    )
    size = pc.binary_join_element_wise(
        *(pc.cast(posts[name], pa.string()) for name in ("width", "height")), " x "
    )
    if p.min_side:
        yield Rejection("too small", np.minimum(width, height) < p.min_side, size)
    if p.max_aspect_ratio:
        ratio = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1)
        yield Rejection("aspect", ratio > p.max_aspect_ratio, size)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _column(posts: pa.Table, name: str, meaning: str) -> pa.ChunkedArray:
    if name not in posts.column_names:
        raise TaggerError(f"prepare.filters: this source does not say {meaning}.")
    return posts[name]


def _outside(
    posts: pa.Table, column: str, reason: str, low: Any, high: Any, kind: pa.DataType | None = None
) -> Rejection:
    """Return the posts with a value outside the bounds, both inclusive, or without a value."""
    values = _column(posts, column, f"the {reason} of its posts")
    try:
        values = values if kind is None else pc.cast(values, kind)
    except pa.ArrowInvalid:
        raise TaggerError(f"prepare.filters: {reason}s of this source are not numbers.") from None
    inside = pc.is_valid(values)
    if low is not None:
        inside = pc.and_kleene(inside, pc.greater_equal(values, pa.scalar(low, values.type)))
    if high is not None:
        inside = pc.and_kleene(inside, pc.less_equal(values, pa.scalar(high, values.type)))
    mask = pc.invert(pc.fill_null(inside, False)).to_numpy()
    return Rejection(reason, mask, pc.fill_null(pc.cast(values, pa.string()), "none"))


class TagFilter:
    """The filters on the tags of a post, after aliases and implications."""

    def __init__(self, lexicon: Lexicon, p: params.FilterParams) -> None:
        self.lexicon = lexicon
        self.p = p
        self._results: dict[str, list[bool]] = {}  # by test: its result for each tag of the lexicon

    def rejections(self, labels: csr_array) -> Iterator[Rejection]:
        """Yield the rejections of a batch, boolean (posts, tags)."""
        yield Rejection.with_detail("no tags", np.diff(labels.indptr) == 0, "none is left")
        if self.p.ratings is not None:
            ratings = set(self.p.ratings)
            counts = self._count(labels, "rating", lambda tag: self._rating(tag) in ratings)
            yield Rejection.with_detail("rating", counts == 0, f"not {', '.join(self.p.ratings)}")
        for glob in self.p.required_tags:
            yield Rejection.with_detail("required tag", self._count_glob(labels, glob) == 0, glob)
        for glob in self.p.excluded_tags:
            yield Rejection.with_detail("excluded tag", self._count_glob(labels, glob) > 0, glob)
        if self.p.min_tags:
            general = self._count(labels, "general", lambda tag: self.lexicon.category(tag) == 0)
            counts = pc.cast(pa.array(general), pa.string())
            details = pc.binary_join_element_wise(counts, "general tags", " ")
            yield Rejection("few tags", general < self.p.min_tags, details)

    def _rating(self, tag: int) -> str | None:
        return self.lexicon.names[tag] if self.lexicon.category(tag) == RATING else None

    def _count_glob(self, labels: csr_array, glob: str) -> PostCounts:
        """Return how many tags of each post match a glob, or are equal to it."""
        text = normalize_name(glob)
        names = self.lexicon.names
        return self._count(labels, f"glob {text}", lambda tag: matches_glob(names[tag], text))

    def _count(self, labels: csr_array, name: str, test: Callable[[int], bool]) -> PostCounts:
        """Return how many tags of each post pass a test, which runs once per tag."""
        results = self._results.setdefault(name, [])
        results.extend(test(tag) for tag in range(len(results), len(self.lexicon)))
        sums = np.zeros(labels.nnz + 1, dtype=np.int32)
        np.cumsum(np.array(results, dtype=np.bool_)[labels.indices], dtype=np.int32, out=sums[1:])
        return np.asarray(sums[labels.indptr[1:]] - sums[labels.indptr[:-1]], dtype=np.int64)
