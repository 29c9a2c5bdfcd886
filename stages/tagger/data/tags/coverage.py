"""Coverage of a vocabulary: the labels, posts and categories that it keeps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.sparse import csr_array

from tagger.core import manifest
from tagger.core.vocabulary import CATEGORIES, Tag, sort_tags
from tagger.data.tags.select import KEPT, Selection, count_outcomes

PER_POST_COLUMNS = ("tags", "posts")
BY_SIZE_COLUMNS = ("tags", "label_coverage")

_POINTS = 200  # of the coverage curve


@dataclass(frozen=True)
class Coverage:
    posts_by_tag_count: npt.NDArray[np.int64]  # posts with 0, 1, 2... kept tags
    posts_by_category: dict[str, int]  # posts with a kept tag of the category


def measure_coverage(selection: Selection, seen_tags: Sequence[Tag], labels: csr_array) -> Coverage:
    """Count posts by their kept tags.

    labels: boolean (posts, seen_tags), by row of tags.parquet
    """
    codes = list(CATEGORIES)
    kind_of = {tag.name: 1 + codes.index(tag.category) for tag in selection.kept}
    kind_of_row = np.array([kind_of.get(tag.name, 0) for tag in seen_tags])  # 0: dropped
    kinds = 1 + len(codes)
    by_tag_count = np.zeros(1, np.int64)
    by_kind = np.zeros(kinds, np.int64)
    for block, posts, rows in manifest.label_blocks(labels):
        cells = posts * kinds + kind_of_row[rows]
        length = len(range(*block.indices(labels.shape[0])))
        counts = np.bincount(cells, minlength=length * kinds).reshape(length, kinds)
        kept = np.bincount(counts[:, 1:].sum(axis=1))
        by_tag_count = np.pad(by_tag_count, (0, max(0, len(kept) - len(by_tag_count))))
        by_tag_count[: len(kept)] += kept
        by_kind += (counts > 0).sum(axis=0)
    by_category = {CATEGORIES[code]: int(by_kind[1 + i]) for i, code in enumerate(codes)}
    return Coverage(by_tag_count, {name: count for name, count in by_category.items() if count})


def summarize(selection: Selection, coverage: Coverage) -> dict[str, Any]:
    """Return the report of `vocabulary`."""
    posts = int(coverage.posts_by_tag_count.sum())
    outcomes = count_outcomes(selection)
    return {
        "seen": len(selection.kept) + len(selection.dropped),
        "kept": len(selection.kept),
        "dropped": dict(Counter(reason for _, reason in selection.dropped).most_common()),
        "label_coverage": round(label_coverage(selection), 6),
        "posts_without_tag": int(coverage.posts_by_tag_count[0]),
        "categories": {
            name: {
                "seen": sum(tags for category, _, tags, _ in outcomes if category == name),
                "kept": kept,
                "post_coverage": round(coverage.posts_by_category.get(name, 0) / max(posts, 1), 6),
            }
            for name, outcome, kept, _ in outcomes
            if outcome == KEPT
        },
        "without_post": selection.unseen_names,
        "globs_without_tag": selection.unmatched_globs,
    }


def label_coverage(selection: Selection) -> float:
    """Return the fraction of all labels that the vocabulary keeps, 0 to 1."""
    kept = sum(tag.count for tag in selection.kept)
    return kept / (kept + sum(tag.count for tag, _ in selection.dropped))


def coverage_by_size(tags: Sequence[Tag]) -> list[tuple[int, float]]:
    """Return rows under BY_SIZE_COLUMNS: labels covered by the most frequent tags."""
    counts = np.array(sorted((tag.count for tag in tags), reverse=True))
    fractions = np.cumsum(counts) / max(counts.sum(), 1)
    sizes = np.unique(np.geomspace(1, len(counts), _POINTS).astype(int))
    return [(size, round(float(fractions[size - 1]), 6)) for size in sizes.tolist()]


def plot(selection: Selection, coverage: Coverage) -> Figure:
    """Return plots of the kept tags of each category, the labels covered, and tags per post."""
    figure = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    outcomes, frequency, covered, per_post = figure.subplots(1, 4)
    _plot_outcomes(outcomes, selection)
    _plot_frequency(frequency, selection)
    _plot_label_coverage(covered, selection)
    counts = coverage.posts_by_tag_count
    per_post.stairs(counts, np.arange(len(counts) + 1) - 0.5, fill=True)
    per_post.set(title="Tags left per post", xlabel="tags", ylabel="posts")
    return figure


def _plot_outcomes(axes: Axes, selection: Selection) -> None:
    rows = count_outcomes(selection)
    names = [name for name in CATEGORIES.values() if any(row[0] == name for row in rows)]
    left = dict.fromkeys(names, 0)
    for outcome in dict.fromkeys(row[1] for row in rows):
        tags = {name: count for name, row_outcome, count, _ in rows if row_outcome == outcome}
        widths = [tags.get(name, 0) for name in names]
        axes.barh(names, widths, left=list(left.values()), label=outcome)
        left = {name: left[name] + tags.get(name, 0) for name in names}
    axes.set(title="Tags kept and dropped", xlabel="tags")
    axes.invert_yaxis()
    axes.legend()


def _plot_frequency(axes: Axes, selection: Selection) -> None:
    tags = sort_tags([*selection.kept, *(tag for tag, _ in selection.dropped)])
    kept_names = {tag.name for tag in selection.kept}
    ranked = sorted(tags, key=lambda tag: -tag.count)
    counts = np.array([tag.count for tag in ranked])
    ranks = np.arange(1, len(ranked) + 1)
    is_kept = np.array([tag.name in kept_names for tag in ranked])
    for mask, label, color in ((~is_kept, "dropped", "silver"), (is_kept, "kept", "C0")):
        axes.scatter(ranks[mask], counts[mask], s=8, color=color, label=label)
    axes.set(title="Posts per tag", xlabel="rank", ylabel="posts", xscale="log", yscale="log")
    axes.legend()


def _plot_label_coverage(axes: Axes, selection: Selection) -> None:
    tags = [*selection.kept, *(tag for tag, _ in selection.dropped)]
    rows = np.array(coverage_by_size(tags))
    axes.semilogx(rows[:, 0], rows[:, 1])
    kept = [len(selection.kept)], [label_coverage(selection)]
    axes.scatter(*kept, color="C1", zorder=3, label="kept")
    axes.set(title="Labels covered", xlabel="tags, the most frequent first", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
