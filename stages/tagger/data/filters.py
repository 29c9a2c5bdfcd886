"""Which posts are wanted: by what is known of a post, by its tags, and by how many there are.

Every filter gives a reason for each post that it leaves out, and the value that decided.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from tagger import params
from tagger.core.arrays import Mask
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import RATING, matches_glob, normalize_name
from tagger.data.tags.lexicon import Lexicon

PostCounts = npt.NDArray[np.int64]  # (posts,)


class Rejection(NamedTuple):
    """Posts that a filter leaves out."""

    reason: str
    rejected: Mask
    details: pa.Array  # string for each post, whether left out or not


def reject_by_columns(posts: pa.Table, p: params.FilterParams) -> Iterator[Rejection]:
    """Yield what the filters on score, date, id, deleted and banned posts say.

    Raises TaggerError for a filter on what the source does not know.
    """
    if p.min_score is not None or p.max_score is not None:
        yield _outside(posts, "score", "score", p.min_score, p.max_score)
    if p.after is not None or p.before is not None:
        first = p.after and _midnight(p.after)
        last = p.before and _midnight(p.before) - timedelta(microseconds=1)
        yield _outside(posts, "created_at", "date", first, last)
    if p.min_id is not None or p.max_id is not None:
        yield _outside(posts, "id", "id", p.min_id, p.max_id, pa.int64())
    for name, kept in (("deleted", p.keep_deleted), ("banned", p.keep_banned)):
        if not kept:
            out = pc.fill_null(_known(posts, name, f"which of its posts are {name}"), False)
            yield reject(name, out.to_numpy(), "")


def reject_by_size(posts: pa.Table, p: params.FilterParams) -> Iterator[Rejection]:
    """Yield what the filters on width and height say; a size that is not known passes."""
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
        longer = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1)
        yield Rejection("aspect", longer > p.max_aspect_ratio, size)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _known(posts: pa.Table, column: str, what: str) -> pa.ChunkedArray:
    if column not in posts.column_names:
        raise TaggerError(f"prepare.filters: this source does not say {what}.")
    return posts[column]


def _outside(
    posts: pa.Table, column: str, reason: str, low: Any, high: Any, kind: pa.DataType | None = None
) -> Rejection:
    """Judge a column by its bounds, both inclusive; what has no value is outside."""
    values = _known(posts, column, f"the {reason} of its posts")
    try:
        values = values if kind is None else pc.cast(values, kind)
    except pa.ArrowInvalid:
        raise TaggerError(f"prepare.filters: {reason}s of this source are no numbers.") from None
    inside = pc.is_valid(values)
    if low is not None:
        inside = pc.and_kleene(inside, pc.greater_equal(values, pa.scalar(low, values.type)))
    if high is not None:
        inside = pc.and_kleene(inside, pc.less_equal(values, pa.scalar(high, values.type)))
    out = pc.invert(pc.fill_null(inside, False)).to_numpy()
    return Rejection(reason, out, pc.fill_null(pc.cast(values, pa.string()), "none"))


class TagFilter:
    """The filters on the tags of a post, after aliases and implications."""

    def __init__(self, lexicon: Lexicon, p: params.FilterParams) -> None:
        self.lexicon = lexicon
        self.p = p
        self._chosen: dict[str, list[bool]] = {}  # by question, for each tag of the lexicon

    def rejections(self, labels: csr_array) -> Iterator[Rejection]:
        """Yield what the filters say of a batch, boolean (posts, tags)."""
        yield reject("no tags", np.diff(labels.indptr) == 0, "none is left")
        if self.p.ratings is not None:
            wanted = set(self.p.ratings)
            rated = self._count(labels, "rating", lambda n: self._rating(n) in wanted)
            yield reject("rating", rated == 0, f"not {', '.join(self.p.ratings)}")
        for pattern in self.p.required_tags:
            yield reject("required tag", self._matching(labels, pattern) == 0, pattern)
        for pattern in self.p.excluded_tags:
            yield reject("excluded tag", self._matching(labels, pattern) > 0, pattern)
        if self.p.min_tags:
            general = self._count(labels, "general", lambda n: self.lexicon.category(n) == 0)
            counts = pc.cast(pa.array(general), pa.string())
            details = pc.binary_join_element_wise(counts, "general tags", " ")
            yield Rejection("few tags", general < self.p.min_tags, details)

    def _rating(self, number: int) -> str | None:
        return self.lexicon.names[number] if self.lexicon.category(number) == RATING else None

    def _matching(self, labels: csr_array, pattern: str) -> PostCounts:
        """Return how many tags of each post match a glob, or are just that text."""
        text = normalize_name(pattern)
        names = self.lexicon.names
        return self._count(labels, f"glob {text}", lambda n: matches_glob(names[n], text))

    def _count(self, labels: csr_array, question: str, test: Callable[[int], bool]) -> PostCounts:
        """Return on how many tags of each post the test holds; it is asked once per tag."""
        chosen = self._chosen.setdefault(question, [])
        chosen.extend(test(number) for number in range(len(chosen), len(self.lexicon)))
        sums = np.zeros(labels.nnz + 1, dtype=np.int32)
        np.cumsum(np.array(chosen, dtype=np.bool_)[labels.indices], dtype=np.int32, out=sums[1:])
        return np.asarray(sums[labels.indptr[1:]] - sums[labels.indptr[:-1]], dtype=np.int64)


def reject(reason: str, out: Mask, detail: str) -> Rejection:
    return Rejection(reason, out, pa.repeat(pa.scalar(detail), len(out)))
