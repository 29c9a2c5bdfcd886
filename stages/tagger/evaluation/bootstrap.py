"""Intervals in which figures would fall on other pictures: groups of posts drawn anew, by chance.

Each group is drawn as often as a number of Poisson's law with mean 1 says. What comes out lies
around its own mean, which for tags on few pictures is above the figure (those drawn twice tie with
themselves): it is moved onto the figure before the interval is read off.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats
from tagger.evaluation.counting import ImageCounts, Ints
from tagger.evaluation.jackknife import Jackknife, RareTag

METRICS = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")
OVERALL = "all"
Intervals = dict[str, dict[str, list[float]]]  # from a category, or OVERALL, to measure to ends

_TIMES = 1000  # that groups are drawn
_LEAST = 100
_MEMORY = 1 << 28  # bytes of weights
_AT_ONCE = 4096  # groups
_SHARES = (0.025, 0.975)

Weights = npt.NDArray[np.uint8]  # (groups, times)


def intervals(influence: Jackknife, seed: int) -> Intervals:
    """Return the 95 % interval of each measure, over all tags and in each category."""
    drawn = _drawn(influence, _weights(influence.micro_ap.shape[1], seed))
    return _each(influence, lambda place, name: influence.metrics[place][name], drawn, (0.0, 1.0))


def differences(one: Jackknife, other: Jackknife, seed: int) -> Intervals:
    """Return how much better one model is than another, with the 95 % interval of the difference.

    Both must be of the same pictures and tags, which are drawn alike for both. Each entry holds the
    difference and the ends of its interval.
    """
    if one.categories != other.categories or one.micro_ap.shape != other.micro_ap.shape:
        raise ValueError("the models are judged on different pictures or tags")
    weights = _weights(one.micro_ap.shape[1], seed)
    drawn = _drawn(one, weights) - _drawn(other, weights)

    def difference(place: int, name: str) -> float:
        return float(one.metrics[place][name] - other.metrics[place][name])

    found = _each(one, difference, drawn, (-1.0, 1.0))
    for place, name in enumerate((*one.categories, OVERALL)):
        for measure in METRICS:
            found[name][measure].insert(0, round(difference(place, measure), 6))
    return found


def _weights(groups: int, seed: int) -> Weights:
    """Return how often each group is drawn each time, by Poisson's law."""
    times = max(_LEAST, min(_TIMES, _MEMORY // max(1, groups)))
    random = np.random.default_rng(seed)
    shares = np.cumsum(np.exp(-1) / np.cumprod([1, *range(1, 10)]))
    table = np.searchsorted(shares, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.uint8)
    return table[random.integers(0, 1 << 16, (groups, times), dtype=np.uint16)]


def _drawn(one: Jackknife, weights: Weights) -> Floats:
    """Return the measures of each draw, (measures, categories + 1, times)."""
    sums = _weighed(
        [one.macro_ap, one.macro_f1, one.true_positives, one.decisions, one.micro_ap], weights
    )
    precision, macro_f1, true, decided = (_with_total(values) for values in sums[:-1])
    rare, present = _reweighed(one, weights)
    tags = _with_total(one.frequent[:, None]) + present
    precision += _with_total(one.frequent_ap[:, None]) + rare
    return np.stack(
        [
            precision / np.maximum(1, tags),
            sums[-1],
            macro_f1 / np.maximum(1, _with_total(one.supported[:, None])),
            2 * true / np.maximum(1, decided),
        ]
    )


def _with_total(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([values, values.sum(axis=0, keepdims=True)])


def _weighed(parts: Sequence[Floats], weights: Weights) -> list[Floats]:
    """Return the weighted sums over groups of the rows of each part, (rows, times)."""
    rows = np.concatenate(parts)
    sums = np.zeros((len(rows), weights.shape[1]))
    for start in range(0, len(weights), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        sums += rows[:, some] @ weights[some].astype(np.float64)
    return np.split(sums, np.cumsum([len(part) for part in parts])[:-1])


def _reweighed(one: Jackknife, weights: Weights) -> tuple[Floats, Ints]:
    """Return the sum of AP over rare tags, and of how many, (categories + 1, times) each."""
    precisions = np.zeros((len(one.categories), weights.shape[1]))
    present = np.zeros(precisions.shape, np.int64)

    def precision(rare: RareTag) -> tuple[Floats, npt.NDArray[np.bool_]]:
        true = _cumulated(weights[rare.own])[rare.last + 1]
        false = _cumulated(weights[rare.false])[rare.above] + rare.more[:, None]
        gained = np.diff(true, axis=0, prepend=0)
        shares = gained * true / np.maximum(1, true + false)
        return shares.sum(axis=0) / np.maximum(1, true[-1]), true[-1] > 0

    with ThreadPoolExecutor() as pool:
        for rare, (found, there) in zip(one.rare, pool.map(precision, one.rare), strict=True):
            precisions[rare.category] += found
            present[rare.category] += there
    return _with_total(precisions), _with_total(present)


def _cumulated(weights: Weights) -> ImageCounts:
    """Return the sums of the first 0, 1, 2 ... rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]), np.int32)
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def _each(
    one: Jackknife, figure: Callable[[int, str], float], drawn: Floats, limits: tuple[float, float]
) -> Intervals:
    """Return the ends of each interval, moved by how far the draws' mean is from the figure."""
    ends = np.quantile(drawn, _SHARES, axis=-1) - drawn.mean(axis=-1)
    found: Intervals = {}
    for place, name in enumerate((*one.categories, OVERALL)):
        found[name] = {}
        for row, measure in enumerate(METRICS):
            moved = np.clip(figure(place, measure) + ends[:, row, place], *limits)
            found[name][measure] = [round(float(end), 6) for end in moved]
    return found
