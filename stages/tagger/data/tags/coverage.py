"""What a vocabulary covers: of the labels, of the posts, and of each category."""

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

_POINTS = 200  # of the curve of coverage


@dataclass(frozen=True)
class Coverage:
    """What is left on posts."""

    posts_by_tag_count: npt.NDArray[np.int64]  # posts with none, one, two... of the tags kept
    posts_by_category: dict[str, int]  # posts with a tag of it


def measure_coverage(found: Selection, seen: Sequence[Tag], labels: csr_array) -> Coverage:
    """Measure what is left of labels, (posts, seen tags)."""
    codes = list(CATEGORIES)
    category_of = {tag.name: 1 + codes.index(tag.category) for tag in found.kept}
    columns_category = np.array([category_of.get(tag.name, 0) for tag in seen])  # 0: dropped
    kinds = 1 + len(codes)
    per_post = np.zeros(1, np.int64)
    having = np.zeros(kinds, np.int64)
    for some, rows, columns in manifest.label_blocks(labels):
        cells = rows * kinds + columns_category[columns]
        length = len(range(*some.indices(labels.shape[0])))
        counts = np.bincount(cells, minlength=length * kinds).reshape(length, kinds)
        kept = np.bincount(counts[:, 1:].sum(axis=1))
        per_post = np.pad(per_post, (0, max(0, len(kept) - len(per_post))))
        per_post[: len(kept)] += kept
        having += (counts > 0).sum(axis=0)
    used = {code: int(having[1 + place]) for place, code in enumerate(codes)}
    return Coverage(per_post, {CATEGORIES[code]: count for code, count in used.items() if count})


def summarize(found: Selection, covered: Coverage) -> dict[str, Any]:
    """Return what the report of `vocabulary` says."""
    total = int(covered.posts_by_tag_count.sum())
    return {
        "seen": len(found.kept) + len(found.dropped),
        "kept": len(found.kept),
        "dropped": dict(Counter(reason for _, reason in found.dropped).most_common()),
        "label_coverage": round(label_coverage(found), 6),
        "posts_without_tag": int(covered.posts_by_tag_count[0]),
        "categories": {
            name: {
                "seen": sum(
                    tags for category, _, tags, _ in count_outcomes(found) if category == name
                ),
                "kept": kept,
                "post_coverage": round(covered.posts_by_category.get(name, 0) / max(total, 1), 6),
            }
            for name, reason, kept, _ in count_outcomes(found)
            if reason == KEPT
        },
        "without_post": found.unseen_names,
        "globs_without_tag": found.unmatched_globs,
    }


def label_coverage(found: Selection) -> float:
    """Return the share of all labels that the vocabulary keeps, 0 to 1."""
    kept = sum(tag.count for tag in found.kept)
    return kept / (kept + sum(tag.count for tag, _ in found.dropped))


def coverage_by_size(seen: Sequence[Tag]) -> list[tuple[int, float]]:
    """Return rows under BY_SIZE: the share of labels that the most frequent tags cover."""
    counts = np.array(sorted((tag.count for tag in seen), reverse=True))
    shares = np.cumsum(counts) / max(counts.sum(), 1)
    sizes = np.unique(np.geomspace(1, len(counts), _POINTS).astype(int))
    return [(size, round(float(shares[size - 1]), 6)) for size in sizes.tolist()]


def plot(found: Selection, covered: Coverage) -> Figure:
    """Return a drawing of what was kept of each category, the labels covered, and tags per post."""
    drawing = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    kept, frequency, coverage, per_post = drawing.subplots(1, 4)
    _draw_outcome(kept, found)
    _draw_frequency(frequency, found)
    rows = np.array(coverage_by_size([*found.kept, *(tag for tag, _ in found.dropped)]))
    coverage.semilogx(rows[:, 0], rows[:, 1])
    coverage.scatter([len(found.kept)], [label_coverage(found)], color="C1", zorder=3, label="kept")
    coverage.set(title="Labels covered", xlabel="tags, the most frequent first", ylim=(0, 1.02))
    coverage.grid(alpha=0.3)
    coverage.legend()
    per_post.stairs(
        covered.posts_by_tag_count, np.arange(len(covered.posts_by_tag_count) + 1) - 0.5, fill=True
    )
    per_post.set(title="Tags left per post", xlabel="tags", ylabel="posts")
    return drawing


def _draw_outcome(axes: Axes, found: Selection) -> None:
    rows = count_outcomes(found)
    names = [name for name in CATEGORIES.values() if any(row[0] == name for row in rows)]
    left = dict.fromkeys(names, 0)
    for reason in dict.fromkeys(row[1] for row in rows):
        tags = {name: count for name, why, count, _ in rows if why == reason}
        widths = [tags.get(name, 0) for name in names]
        axes.barh(names, widths, left=list(left.values()), label=reason)
        left = {name: left[name] + tags.get(name, 0) for name in names}
    axes.set(title="Tags kept and dropped", xlabel="tags")
    axes.invert_yaxis()
    axes.legend()


def _draw_frequency(axes: Axes, found: Selection) -> None:
    tags = sort_tags([*found.kept, *(tag for tag, _ in found.dropped)])
    kept = {tag.name for tag in found.kept}
    ranked = sorted(tags, key=lambda tag: -tag.count)
    counts = np.array([tag.count for tag in ranked])
    ranks = np.arange(1, len(ranked) + 1)
    inside = np.array([tag.name in kept for tag in ranked])
    for mask, label, color in ((~inside, "dropped", "silver"), (inside, "kept", "C0")):
        axes.scatter(ranks[mask], counts[mask], s=8, color=color, label=label)
    axes.set(title="Posts per tag", xlabel="rank", ylabel="posts", xscale="log", yscale="log")
    axes.legend()
