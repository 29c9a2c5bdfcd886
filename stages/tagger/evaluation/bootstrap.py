"""95 % intervals of metrics: the range in which they would fall on other images.

Groups of images are resampled: each counts as often as a Poisson number with mean 1 says. The
resampled metrics lie around their own mean, which for tags on few images is above the metric
(images drawn twice tie with themselves): they are moved onto the metric before the interval is
read off.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tagger.core.arrays import Floats, Ints
from tagger.evaluation.jackknife import Jackknife, RareTag
from tagger.evaluation.metrics.average_precision import average_precision
from tagger.evaluation.steps import ImageCounts

METRICS = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")
OVERALL = "all"
Intervals = dict[str, dict[str, list[float]]]  # from a category, or OVERALL, to metric to ends

_MAX_RESAMPLES, _MIN_RESAMPLES = 1000, 100
_MEMORY = 1 << 28  # bytes of weights
_CHUNK = 4096  # groups
_QUANTILES = (0.025, 0.975)

ResampleWeights = npt.NDArray[np.uint8]  # (groups, resamples)


def intervals(jackknife: Jackknife, seed: int) -> Intervals:
    """Return the 95 % interval of each metric, over all tags and in each category."""
    resampled = _resampled_metrics(jackknife, draw_weights(jackknife.groups, seed))

    def metric(place: int, name: str) -> float:
        return float(jackknife.metrics[place][name])

    return _intervals(jackknife.categories, metric, resampled, (0.0, 1.0))


def differences(ours: Jackknife, theirs: Jackknife, seed: int) -> Intervals:
    """Return how much better our model is than theirs, with the 95 % interval of the difference.

    Both must be of the same images and tags; both are resampled alike. Each entry holds the
    difference and the ends of its interval.
    """
    if ours.categories != theirs.categories or ours.groups != theirs.groups:
        raise ValueError("the models are evaluated on different images or tags")
    weights = draw_weights(ours.groups, seed)
    resampled = _resampled_metrics(ours, weights) - _resampled_metrics(theirs, weights)

    def difference(place: int, name: str) -> float:
        return float(ours.metrics[place][name] - theirs.metrics[place][name])

    ends = _intervals(ours.categories, difference, resampled, (-1.0, 1.0))
    for place, name in enumerate((*ours.categories, OVERALL)):
        for metric in METRICS:
            ends[name][metric].insert(0, round(difference(place, metric), 6))
    return ends


def draw_weights(groups: int, seed: int) -> ResampleWeights:
    """Return how often each group counts in each resample, by Poisson's law with mean 1."""
    resamples = max(_MIN_RESAMPLES, min(_MAX_RESAMPLES, _MEMORY // max(1, groups)))
    random = np.random.default_rng(seed)
    cumulative = np.cumsum(np.exp(-1) / np.cumprod([1, *range(1, 10)]))
    table = np.searchsorted(cumulative, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.uint8)
    return table[random.integers(0, 1 << 16, (groups, resamples), dtype=np.uint16)]


def _resampled_metrics(jackknife: Jackknife, weights: ResampleWeights) -> Floats:
    """Return METRICS of each resample, (metrics, categories + 1, resamples)."""
    *sums, micro_ap = _weighted_sums(jackknife.contributions, weights)
    macro_ap, macro_f1, true_positives, decisions = map(_with_total, sums)
    rare_ap, rare_tags = _rare_precision(jackknife, weights)
    tags = _with_total(jackknife.frequent_tags[:, None]) + rare_tags
    macro_ap += _with_total(jackknife.frequent_ap[:, None]) + rare_ap
    return np.stack(
        [
            macro_ap / np.maximum(1, tags),
            micro_ap,
            macro_f1 / np.maximum(1, _with_total(jackknife.supported[:, None])),
            2 * true_positives / np.maximum(1, decisions),
        ]
    )


def _with_total(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows of categories with a further row, their sum."""
    return np.concatenate([values, values.sum(axis=0, keepdims=True)])


def _weighted_sums(tables: Sequence[Floats], weights: ResampleWeights) -> list[Floats]:
    """Return the weighted sum over groups of the rows of each table, (rows, resamples)."""
    rows = np.concatenate(tables)
    sums = np.zeros((len(rows), weights.shape[1]))
    for start in range(0, len(weights), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        sums += rows[:, chunk] @ weights[chunk].astype(np.float64)
    return np.split(sums, np.cumsum([len(table) for table in tables])[:-1])


def _rare_precision(jackknife: Jackknife, weights: ResampleWeights) -> tuple[Floats, Ints]:
    """Return the sum of AP over rare tags with a positive in a resample, and their number.

    (categories + 1, resamples) each
    """
    precision = np.zeros((len(jackknife.categories), weights.shape[1]))
    tags = np.zeros(precision.shape, np.int64)

    def resample(tag: RareTag) -> Floats:
        true = _cumulative(weights[tag.positive_groups])[tag.last + 1]
        false = _cumulative(weights[tag.negative_groups])[tag.above] + tag.unweighed[:, None]
        return average_precision(true, true + false)

    with ThreadPoolExecutor() as pool:
        resampled = pool.map(resample, jackknife.rare)
        for tag, tag_precision in zip(jackknife.rare, resampled, strict=True):
            precision[tag.category] += np.nan_to_num(tag_precision)
            tags[tag.category] += ~np.isnan(tag_precision)
    return _with_total(precision), _with_total(tags)


def _cumulative(weights: ResampleWeights) -> ImageCounts:
    """Return the sums of the first 0, 1, 2 ... rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]), np.int32)
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def _intervals(
    categories: Sequence[str],
    metric: Callable[[int, str], float],
    resampled: Floats,
    bounds: tuple[float, float],
) -> Intervals:
    """Return the ends of each interval, moved by how far the resamples' mean is from the metric."""
    ends = np.quantile(resampled, _QUANTILES, axis=-1) - resampled.mean(axis=-1)
    intervals: Intervals = {}
    for place, category in enumerate((*categories, OVERALL)):
        intervals[category] = {}
        for row, name in enumerate(METRICS):
            moved = np.clip(metric(place, name) + ends[:, row, place], *bounds)
            intervals[category][name] = [round(float(end), 6) for end in moved]
    return intervals
