"""How even a split is: sizes, and the share of each tag in each part beside the one wanted.

A deviation is the distance of a tag's share in a part from the proportion wanted, 0 to 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from tagger.core import manifest
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.split.methods import Groups, Labels, SplitIndices

Floats = npt.NDArray[np.float64]

_EDGES = (1, 3, 10, 30, 100, 300, 1_000, 10_000, 100_000, 1_000_000)  # posts, of bands of tags

TAGS = ("tag", "category", "posts", "worst_deviation")  # and the posts in each part
BANDS = ("part", "from_posts", "tags", "mean_deviation", "of_random", "tags_without_post")


@dataclass(frozen=True)
class SplitBalance:
    """A split measured."""

    sizes: npt.NDArray[np.int64]  # (parts,), posts
    fractions: Floats  # (parts,), proportions
    counts: npt.NDArray[np.int64]  # (parts, tags), posts of each tag

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:  # (tags,), posts
        return np.asarray(self.counts.sum(axis=0))

    @cached_property
    def deviations(self) -> Floats:
        """(parts, tags), 0 for a tag on no post."""
        shares = self.counts / np.maximum(self.totals, 1)
        return np.where(self.totals > 0, np.abs(shares - self.fractions[:, None]), 0.0)


def sizes(parts: SplitIndices, count: int) -> npt.NDArray[np.int64]:
    """Return how many posts are in each of so many parts."""
    return np.bincount(parts, minlength=count)


def measure(parts: SplitIndices, labels: Labels, wanted: Sequence[float]) -> SplitBalance:
    """Measure a split of labels, (posts, tags), into as many parts as proportions are wanted."""
    tags = labels.shape[1]
    counts = np.zeros(len(wanted) * tags, dtype=np.int64)
    for some, rows, columns in manifest.label_blocks(labels):
        numbers = parts[some][rows].astype(np.int64) * tags + columns
        counts += np.bincount(numbers, minlength=len(counts))
    return SplitBalance(
        sizes(parts, len(wanted)), np.asarray(wanted, float), counts.reshape(len(wanted), tags)
    )


def report(
    found: SplitBalance, chance: SplitBalance, tags: Sequence[Tag], names: Sequence[str]
) -> dict[str, Any]:
    """Return the report on the parts: of a split, and of one by chance for comparison."""
    used = max(1, int((found.totals > 0).sum()))
    return {
        name: {
            "posts": int(found.sizes[part]),
            "share": round(float(found.sizes[part] / found.sizes.sum()), 6),
            "wanted": round(float(found.fractions[part]), 6),
            "tags_without_post": int((found.counts[part] == 0).sum()),
            "mean_deviation": round(float(found.deviations[part].sum() / used), 6),
            "worst_deviation": round(float(found.deviations[part].max()), 6),
            "mean_deviation_of_random": round(float(chance.deviations[part].sum() / used), 6),
            "tags_without_post_of_random": int((chance.counts[part] == 0).sum()),
        }
        for part, name in enumerate(names)
    }


def group_counts(parts: SplitIndices, groups: Groups) -> dict[str, int]:
    """Return how many groups there are of several posts, and how many are in several parts."""
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    first = np.full(len(sizes), 127, dtype=np.int8)
    last = np.zeros(len(sizes), dtype=np.int8)
    np.minimum.at(first, group_of, parts)
    np.maximum.at(last, group_of, parts)
    return {"of_several": int((sizes > 1).sum()), "parted": int((first < last).sum())}


def tag_rows(found: SplitBalance, tags: Sequence[Tag]) -> Iterator[tuple[Any, ...]]:
    """Yield rows under TAGS and the names of the parts."""
    worst = found.deviations.max(axis=0).round(6).tolist()
    for tag, deviation, counts in zip(tags, worst, found.counts.T.tolist(), strict=True):
        yield tag.name, CATEGORIES[tag.category], sum(counts), deviation, *counts


def frequency_bands(found: SplitBalance) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield the bands of tags that have any: the fewest posts of one, and which tags, (tags,)."""
    for low, high in pairwise((*_EDGES, 1 << 62)):
        inside = (found.totals >= low) & (found.totals < high)
        if inside.any():
            yield low, inside


def band_rows(
    found: SplitBalance, chance: SplitBalance, names: Sequence[str]
) -> Iterator[tuple[str, int, int, float, float, int]]:
    """Yield rows under BANDS, of each part and band of tags by their number of posts."""
    for part, name in enumerate(names):
        for low, inside in frequency_bands(found):
            mean, by_chance = (b.deviations[part, inside].mean() for b in (found, chance))
            missing = int((found.counts[part, inside] == 0).sum())
            count = int(inside.sum())
            yield name, low, count, round(float(mean), 6), round(float(by_chance), 6), missing


def plot(found: SplitBalance, chance: SplitBalance, names: Sequence[str]) -> Figure:
    """Return a drawing of sizes beside those wanted, and of each tag's deviation by its posts."""
    drawing = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    sizes, *rest = drawing.subplots(1, 1 + len(names), width_ratios=[0.8] + [1.0] * len(names))
    shares = found.sizes / found.sizes.sum()
    sizes.bar(names, shares, label="is")
    sizes.scatter(names, found.fractions, color="black", marker="_", s=400, label="wanted")
    sizes.set(title="Share of the posts", ylim=(0, 1))
    sizes.legend()
    used = found.totals > 0
    for part, (axes, name) in enumerate(zip(rest, names, strict=True)):
        for balance, label, color in ((chance, "at random", "silver"), (found, "split", "C0")):
            axes.scatter(
                balance.totals[used], balance.deviations[part, used], s=6, color=color, label=label
            )
        axes.set(title=f"Tags in {name}", xscale="log", xlabel="posts of the tag", ylim=(0, None))
        axes.grid(alpha=0.3)
    rest[0].set_ylabel("deviation from the share wanted")
    rest[-1].legend()
    return drawing
