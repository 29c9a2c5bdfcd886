"""An overview of a data set: a summary, curves, and sheets of accepted and rejected images."""

import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tagger.core import manifest
from tagger.core.location import Location
from tagger.core.vocabulary import RATING, RATINGS, Tag, count_categories
from tagger.data.rejected import count_reasons
from tagger.data.tags.lexicon import Lexicon
from tagger.images import decode

CHANGES = ("rule", "before", "after", "labels")
FREQUENCY = ("rank", "posts")
PER_POST = ("tags", "posts")
SIDES = ("shorter_side", "posts")
ASPECTS = ("aspect", "posts")

_STEP = 32  # pixels; bin of the histogram of sides
_ASPECTS = np.geomspace(1 / 4, 4, 41)  # edges of the histogram of aspects
_POINTS = 200  # of the frequency curve
_SHEET_IMAGES = 24

CsvRows = list[tuple[Any, ...]]


def summarize(
    posts: pa.Table,
    tags: Sequence[Tag],
    lexicon: Lexicon,
    rejected: pa.Table,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the report of `prepare`. A label is a pair of a post and a tag."""
    sizes = np.unique(posts["group"].to_numpy(), return_counts=True)[1]
    changed: dict[str, int] = {}
    for (rule, _, _), labels in sorted(lexicon.changes.items()):
        changed[rule] = changed.get(rule, 0) + labels
    return {
        "posts": len(posts),
        "tags": len(tags),
        "labels": sum(tag.count for tag in tags),
        "categories": count_categories(tags),
        "rejected": count_reasons(rejected),
        "labels_changed": {rule: labels for rule, labels in changed.items() if labels},
        "cycles": list(lexicon.rules.cycles),
        "groups": {
            "of_several": int((sizes > 1).sum()),
            "posts_in_them": int(sizes[sizes > 1].sum()),
            "largest": int(sizes.max(initial=0)),
        },
        "notes": list(notes),
    }


def list_changes(lexicon: Lexicon) -> CsvRows:
    """Return a row under CHANGES for each rule that changed labels, most labels first."""
    rows = [(*change, labels) for change, labels in lexicon.changes.items() if labels]
    return sorted(rows, key=lambda row: (row[0], -row[3], *row[:3]))


def tag_frequency(tags: Sequence[Tag]) -> CsvRows:
    """Return rows under FREQUENCY: the number of posts with the tag of each rank."""
    counts = sorted((tag.count for tag in tags), reverse=True)
    ranks = np.unique(np.geomspace(1, max(1, len(counts)), _POINTS).astype(int))
    return [(rank, counts[rank - 1]) for rank in ranks.tolist() if counts]


def tags_per_post(posts: pa.Table) -> CsvRows:
    """Return rows under PER_POST: the number of posts by their number of tags."""
    counts = np.bincount(pc.list_value_length(posts["tags"]).to_numpy())
    return list(enumerate(counts.tolist()))


def count_sides(posts: pa.Table) -> CsvRows:
    """Return rows under SIDES: a histogram of the shorter side, by the lower edge of each bin."""
    shorter = np.minimum(*_known_sizes(posts))
    counts = np.bincount((shorter // _STEP).astype(int))
    return [(step * _STEP, count) for step, count in enumerate(counts.tolist())]


def count_aspects(posts: pa.Table) -> CsvRows:
    """Return rows under ASPECTS: a histogram of width over height, by the lower edges."""
    width, height = _known_sizes(posts)
    ratios = np.clip(width / np.maximum(height, 1), _ASPECTS[0], _ASPECTS[-1])
    counts, _ = np.histogram(ratios, _ASPECTS)
    return list(zip(_ASPECTS[:-1].round(4).tolist(), counts.tolist(), strict=True))


def _known_sizes(posts: pa.Table) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    sized = posts.filter(pc.and_(pc.is_valid(posts["width"]), pc.is_valid(posts["height"])))
    return sized["width"].to_numpy().astype(float), sized["height"].to_numpy().astype(float)


def plot(posts: pa.Table, tags: Sequence[Tag]) -> Figure:
    """Return plots of the curves above, and of the ratings."""
    figure = Figure(figsize=(11, 6.5), dpi=100, layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    _plot_frequency(axes[0], tags)
    counts, shorter = tags_per_post(posts), count_sides(posts)
    _plot_histogram(axes[1], counts, np.arange(len(counts) + 1) - 0.5, "Tags per post", "tags")
    edges = np.arange(len(shorter) + 1) * _STEP
    _plot_histogram(axes[2], shorter, edges, "Shorter side", "pixels")
    aspects = count_aspects(posts)
    _plot_histogram(axes[3], aspects, np.log2(_ASPECTS), "Aspect ratio", "width to height")
    axes[3].set_xticks([-2, -1, 0, 1, 2], ["1:4", "1:2", "1:1", "2:1", "4:1"])
    _plot_sizes(axes[4], posts)
    _plot_ratings(axes[5], tags)
    return figure


def _plot_frequency(axes: Axes, tags: Sequence[Tag]) -> None:
    rows = np.array(tag_frequency(tags), dtype=float).reshape(-1, 2)
    axes.loglog(rows[:, 0], rows[:, 1], marker="." if len(rows) < 3 else "")
    axes.set(title="Posts per tag", xlabel="rank of the tag", ylabel="posts")
    axes.grid(alpha=0.3)


def _plot_histogram(
    axes: Axes, rows: CsvRows, edges: npt.NDArray[Any], title: str, label: str
) -> None:
    """Draw the count of each row between two of the edges."""
    counts = [count for _, count in rows]
    axes.set(title=title, xlabel=label, ylabel="posts")
    if not any(counts):
        _write_unknown(axes)
        return
    axes.stairs(counts, edges, fill=True)
    axes.locator_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _plot_sizes(axes: Axes, posts: pa.Table) -> None:
    width, height = _known_sizes(posts)
    axes.set(title="Sizes", xlabel="width, pixels", ylabel="height, pixels")
    if not len(width):
        _write_unknown(axes)
        return
    limits = (0.0, float(max(np.percentile(width, 99.5), np.percentile(height, 99.5), 1)) * 1.1)
    axes.hist2d(width, height, bins=40, range=(limits, limits), cmin=1)


def _plot_ratings(axes: Axes, tags: Sequence[Tag]) -> None:
    rated = {tag.name: tag.count for tag in tags if tag.category == RATING}
    axes.set(title="Ratings", xlabel="posts")
    if not rated:
        _write_unknown(axes)
        return
    axes.barh(RATINGS, [rated.get(name, 0) for name in RATINGS])
    axes.invert_yaxis()
    axes.locator_params("x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _write_unknown(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "unknown", ha="center", va="center", transform=axes.transAxes)


def accepted_images(
    posts: pa.Table, tags: Sequence[Tag]
) -> Iterator[tuple[Image.Image | None, str]]:
    """Yield evenly spaced posts: the image, and a caption of id and tags."""
    rows = np.unique(np.linspace(0, len(posts) - 1, _SHEET_IMAGES).astype(int))
    shown = posts.take(pa.array(rows))
    for location, post in zip(manifest.locations(shown), shown.to_pylist(), strict=True):
        names = ", ".join(tags[tag].name for tag in post["tags"])
        yield decode.open_rgb_or_none(location), f"{post['id']}: {names}"


def rejected_images(
    rejected: pa.Table, folders: Sequence[Path]
) -> Iterator[tuple[Image.Image | None, str]]:
    """Yield rejected posts, each reason in turn: the image if it can be read, and a caption."""
    reasons = rejected["reason"]
    by_reason = [
        pc.indices_nonzero(pc.equal(reasons, reason))[:_SHEET_IMAGES].to_pylist()
        for reason in pc.unique(reasons).to_pylist()
    ]
    rows = [row for turn in zip_longest(*by_reason) for row in turn if row is not None]
    for post in rejected.take(pa.array(rows[:_SHEET_IMAGES], pa.int64())).to_pylist():
        caption = f"{post['id']}: {post['reason']}. {post['detail'] or ''}"
        yield _open_by_id(post["id"], folders), caption


def _open_by_id(post_id: str | None, folders: Sequence[Path]) -> Image.Image | None:
    """Return the image of an id of FolderSource: a path in the first folder, or a whole path."""
    paths = [str(folder / (post_id or "")) for folder in folders[:1]]
    paths += [post_id for folder in folders[1:] if post_id and post_id.startswith(f"{folder}/")]
    path = next(filter(os.path.isfile, paths), None)  # isfile is false for overlong names, too
    location = Location(path, 0, Path(path).stat().st_size) if path else None
    return decode.open_rgb_or_none(location) if location else None
