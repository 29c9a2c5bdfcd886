"""Go through predictions by some tags of all pictures at a time, in several threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.sparse import csc_array

from tagger.evaluation import quantized_logits
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits
from tagger.system import world

T = TypeVar("T")

_BLOCK = 32 << 20  # bytes of scores that a thread holds
_THREADS = 8  # at most: more would wait for the disk


@dataclass(frozen=True)
class TagBlock:
    """Some neighbouring tags of all pictures."""

    tags: slice
    scores: QuantizedLogits  # (tags, pictures)
    starts: Ints  # (tags + 1,), of the rows of each
    rows: Ints  # (positives,), pictures that have it

    def __getitem__(self, place: int) -> tuple[QuantizedLogits, Ints]:
        """Return the scores of one of the tags, and the pictures known to have it."""
        rows = self.rows[self.starts[place] : self.starts[place + 1]]
        scores = self.scores[place]
        return scores, rows[scores[rows] != quantized_logits.UNKNOWN]


def map_tag_blocks(scored: PredictionStore, function: Callable[[TagBlock], T]) -> Iterator[T]:
    """Yield what a function returns of each block of tags, in their order.

    The function runs in several threads, and may change the scores it is given.
    """
    truth = csc_array(scored.labels)
    threads = min(world.available_cores(), _THREADS)
    width = max(1, min(_BLOCK // (2 * max(1, len(scored))), -(-scored.tag_count // threads)))

    def one(start: int) -> T:
        return function(_read(scored, truth, start, min(start + width, scored.tag_count)))

    starts = range(0, scored.tag_count, width)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        for start in starts:
            waiting.append(pool.submit(one, start))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(scored: PredictionStore, truth: csc_array, start: int, end: int) -> TagBlock:
    first, last = truth.indptr[start], truth.indptr[end]
    return TagBlock(
        slice(start, end),
        scored.read_tags(start, end),
        np.asarray(truth.indptr[start : end + 1] - first, np.int64),
        np.asarray(truth.indices[first:last], np.int64),
    )
