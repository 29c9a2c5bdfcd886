"""How balanced a split is: sizes, and the fraction of each tag in each split beside the target.

A deviation is the distance of a tag's fraction in a split from the target, 0 to 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tagger.core import manifest
from tagger.core.arrays import Floats, Ints, Mask
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.split.methods import Groups, Labels, SplitIndices

_EDGES = (1, 3, 10, 30, 100, 300, 1_000, 10_000, 100_000, 1_000_000)  # posts, of bands of tags

TAGS = ("tag", "category", "posts", "worst_deviation")  # and the posts in each split
BANDS = ("split", "from_posts", "tags", "mean_deviation", "of_random", "tags_without_post")


@dataclass(frozen=True)
class SplitBalance:
    """The sizes and tags of a split of the posts."""

    sizes: Ints  # (splits,), posts
    targets: Floats  # (splits,), fractions of the posts
    counts: Ints  # (splits, tags), posts of each tag

    @cached_property
    def totals(self) -> Ints:  # (tags,), posts
        return np.asarray(self.counts.sum(axis=0))

    @cached_property
    def deviations(self) -> Floats:
        """(splits, tags), 0 for a tag on no post."""
        fractions = self.counts / np.maximum(self.totals, 1)
        return np.where(self.totals > 0, np.abs(fractions - self.targets[:, None]), 0.0)


def sizes(splits: SplitIndices, count: int) -> Ints:
    """Return how many posts each of so many splits has."""
    return np.bincount(splits, minlength=count)


def measure(splits: SplitIndices, labels: Labels, targets: Sequence[float]) -> SplitBalance:
    """Measure a split of labels, (posts, tags); targets: the fraction of each split."""
    tags = labels.shape[1]
    counts = np.zeros(len(targets) * tags, dtype=np.int64)
    for block, rows, columns in manifest.label_blocks(labels):
        numbers = splits[block][rows].astype(np.int64) * tags + columns
        counts += np.bincount(numbers, minlength=len(counts))
    table = counts.reshape(len(targets), tags)
    return SplitBalance(sizes(splits, len(targets)), np.asarray(targets, float), table)


def report(
    balance: SplitBalance, random: SplitBalance, tags: Sequence[Tag], names: Sequence[str]
) -> dict[str, Any]:
    """Return the content of split.json about each split, beside a random one."""
    used = max(1, int((balance.totals > 0).sum()))
    return {
        name: {
            "posts": int(balance.sizes[split]),
            "fraction": round(float(balance.sizes[split] / balance.sizes.sum()), 6),
            "target": round(float(balance.targets[split]), 6),
            "tags_without_post": int((balance.counts[split] == 0).sum()),
            "mean_deviation": round(float(balance.deviations[split].sum() / used), 6),
            "worst_deviation": round(float(balance.deviations[split].max()), 6),
            "mean_deviation_of_random": round(float(random.deviations[split].sum() / used), 6),
            "tags_without_post_of_random": int((random.counts[split] == 0).sum()),
        }
        for split, name in enumerate(names)
    }


def group_counts(splits: SplitIndices, groups: Groups) -> dict[str, int]:
    """Return how many groups have several posts, and how many are divided between splits."""
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    first = np.full(len(sizes), 127, dtype=np.int8)
    last = np.zeros(len(sizes), dtype=np.int8)
    np.minimum.at(first, group_of, splits)
    np.maximum.at(last, group_of, splits)
    return {"of_several_posts": int((sizes > 1).sum()), "divided": int((first < last).sum())}


def tag_rows(balance: SplitBalance, tags: Sequence[Tag]) -> Iterator[tuple[Any, ...]]:
    """Yield rows under TAGS and the names of the splits."""
    worst = balance.deviations.max(axis=0).round(6).tolist()
    for tag, deviation, counts in zip(tags, worst, balance.counts.T.tolist(), strict=True):
        yield tag.name, CATEGORIES[tag.category], sum(counts), deviation, *counts


def frequency_bands(balance: SplitBalance) -> Iterator[tuple[int, Mask]]:
    """Yield the bands of tags by their posts: the fewest posts of a band, and its tags, (tags,)."""
    for low, high in pairwise((*_EDGES, 1 << 62)):
        inside = (balance.totals >= low) & (balance.totals < high)
        if inside.any():
            yield low, inside


def band_rows(
    balance: SplitBalance, random: SplitBalance, names: Sequence[str]
) -> Iterator[tuple[str, int, int, float, float, int]]:
    """Yield rows under BANDS, for each split and band of tags."""
    for split, name in enumerate(names):
        for low, inside in frequency_bands(balance):
            mean, of_random = (
                round(float(each.deviations[split, inside].mean()), 6) for each in (balance, random)
            )
            missing = int((balance.counts[split, inside] == 0).sum())
            yield name, low, int(inside.sum()), mean, of_random, missing


def plot(balance: SplitBalance, random: SplitBalance, names: Sequence[str]) -> Figure:
    """Plot sizes beside their targets, and each tag's deviation by its posts."""
    figure = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    widths = [0.8] + [1.0] * len(names)
    sizes, *by_split = figure.subplots(1, 1 + len(names), width_ratios=widths)
    sizes.bar(names, balance.sizes / balance.sizes.sum(), label="actual")
    sizes.scatter(names, balance.targets, color="black", marker="_", s=400, label="target")
    sizes.set(title="Fraction of the posts", ylim=(0, 1))
    sizes.legend()
    used = balance.totals > 0
    for split, (axes, name) in enumerate(zip(by_split, names, strict=True)):
        for each, label, color in ((random, "random", "silver"), (balance, "this split", "C0")):
            points = each.totals[used], each.deviations[split, used]
            axes.scatter(*points, s=6, color=color, label=label)
        axes.set(title=f"Tags in {name}", xscale="log", xlabel="posts of the tag", ylim=(0, None))
        axes.grid(alpha=0.3)
    by_split[0].set_ylabel("deviation from the target")
    by_split[-1].legend()
    return figure
