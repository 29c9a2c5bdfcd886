"""What a data set looks like: numbers, curves and sheets of what was taken and what was not."""

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
from tagger.core.manifest import Location
from tagger.core.vocabulary import RATING, RATINGS, Tag, count_categories
from tagger.data.rejected import RejectedPosts
from tagger.data.tags.lexicon import Lexicon
from tagger.images import decode

CHANGES = ("rule", "before", "after", "labels")
FREQUENCY = ("rank", "posts")
PER_POST = ("tags", "posts")
SIDES = ("shorter_side", "posts")
ASPECTS = ("aspect", "posts")

_STEP = 32  # pixels, of the histogram of sides
_ASPECTS = np.geomspace(1 / 4, 4, 41)  # edges of that of aspects
_POINTS = 200  # of the curve of frequencies
_SHOWN = 24  # pictures on a sheet

CsvRows = list[tuple[Any, ...]]


def summarize(
    found: pa.Table,
    tags: Sequence[Tag],
    lexicon: Lexicon,
    left_out: RejectedPosts,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return what the report of `prepare` says. Labels are pairs of a post and a tag."""
    sizes = np.unique(found["group"].to_numpy(), return_counts=True)[1]
    changed: dict[str, int] = {}
    for (rule, _, _), labels in sorted(lexicon.changes.items()):
        changed[rule] = changed.get(rule, 0) + labels
    return {
        "posts": len(found),
        "tags": len(tags),
        "labels": sum(tag.count for tag in tags),
        "categories": count_categories(tags),
        "rejected": left_out.counts(),
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
    """Return a row under CHANGES for each rule that changed a label, the strongest first."""
    counted = lexicon.changes.items()
    rows = [(*change, labels) for change, labels in counted if labels]
    return sorted(rows, key=lambda row: (row[0], -row[3], *row[:3]))


def tag_frequency(tags: Sequence[Tag]) -> CsvRows:
    """Return rows under FREQUENCY: on how many posts the tag of each rank is."""
    counts = sorted((tag.count for tag in tags), reverse=True)
    ranks = np.unique(np.geomspace(1, max(1, len(counts)), _POINTS).astype(int))
    return [(rank, counts[rank - 1]) for rank in ranks.tolist() if counts]


def tags_per_post(found: pa.Table) -> CsvRows:
    """Return rows under PER_POST: how many posts have so many tags."""
    counts = np.bincount(pc.list_value_length(found["tags"]).to_numpy())
    return list(enumerate(counts.tolist()))


def count_sides(found: pa.Table) -> CsvRows:
    """Return rows under SIDES: how many posts have a shorter side from so many pixels on."""
    shorter = np.minimum(*_known_sizes(found))
    counts = np.bincount((shorter // _STEP).astype(int))
    return [(step * _STEP, count) for step, count in enumerate(counts.tolist())]


def count_aspects(found: pa.Table) -> CsvRows:
    """Return rows under ASPECTS: how many posts have a width over height from so much on."""
    width, height = _known_sizes(found)
    ratios = np.clip(width / np.maximum(height, 1), _ASPECTS[0], _ASPECTS[-1])
    counts, _ = np.histogram(ratios, _ASPECTS)
    return list(zip(_ASPECTS[:-1].round(4).tolist(), counts.tolist(), strict=True))


def _known_sizes(found: pa.Table) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    known = found.filter(pc.and_(pc.is_valid(found["width"]), pc.is_valid(found["height"])))
    return known["width"].to_numpy().astype(float), known["height"].to_numpy().astype(float)


def plot(found: pa.Table, tags: Sequence[Tag]) -> Figure:
    """Return a drawing of the curves above, and of the ratings."""
    drawing = Figure(figsize=(11, 6.5), dpi=100, layout="constrained")
    axes = drawing.subplots(2, 3).ravel()
    _frequency(axes[0], tags)
    counts, shorter = tags_per_post(found), count_sides(found)
    _histogram(axes[1], counts, np.arange(len(counts) + 1) - 0.5, "Tags per post", "tags")
    _histogram(axes[2], shorter, np.arange(len(shorter) + 1) * _STEP, "Shorter side", "pixels")
    _histogram(axes[3], count_aspects(found), np.log2(_ASPECTS), "Aspect ratio", "width to height")
    axes[3].set_xticks([-2, -1, 0, 1, 2], ["1:4", "1:2", "1:1", "2:1", "4:1"])
    _sizes(axes[4], found)
    _ratings(axes[5], tags)
    return drawing


def _frequency(axes: Axes, tags: Sequence[Tag]) -> None:
    rows = np.array(tag_frequency(tags), dtype=float).reshape(-1, 2)
    axes.loglog(rows[:, 0], rows[:, 1], marker="." if len(rows) < 3 else "")
    axes.set(title="Posts per tag", xlabel="rank of the tag", ylabel="posts")
    axes.grid(alpha=0.3)


def _histogram(axes: Axes, rows: CsvRows, edges: npt.NDArray[Any], title: str, label: str) -> None:
    """Draw the count of each row between two of the edges."""
    counts = [count for _, count in rows]
    axes.set(title=title, xlabel=label, ylabel="posts")
    if not any(counts):
        _unknown(axes)
        return
    axes.stairs(counts, edges, fill=True)
    axes.locator_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _sizes(axes: Axes, found: pa.Table) -> None:
    width, height = _known_sizes(found)
    axes.set(title="Sizes", xlabel="width, pixels", ylabel="height, pixels")
    if not len(width):
        _unknown(axes)
        return
    limits = (0.0, float(max(np.percentile(width, 99.5), np.percentile(height, 99.5), 1)) * 1.1)
    axes.hist2d(width, height, bins=40, range=(limits, limits), cmin=1)


def _ratings(axes: Axes, tags: Sequence[Tag]) -> None:
    rated = {tag.name: tag.count for tag in tags if tag.category == RATING}
    axes.set(title="Ratings", xlabel="posts")
    if not rated:
        _unknown(axes)
        return
    axes.barh(RATINGS, [rated.get(name, 0) for name in RATINGS])
    axes.invert_yaxis()
    axes.locator_params("x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _unknown(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)


def accepted_images(
    found: pa.Table, tags: Sequence[Tag]
) -> Iterator[tuple[Image.Image | None, str]]:
    """Yield some of the posts, evenly spread, each with its id and tags."""
    rows = np.unique(np.linspace(0, len(found) - 1, _SHOWN).astype(int))
    some = found.take(pa.array(rows))
    for place, post in zip(manifest.locations(some), some.to_pylist(), strict=True):
        names = ", ".join(tags[tag].name for tag in post["tags"])
        yield decode.open_rgb_or_none(place), f"{post['id']}: {names}"


def rejected_images(
    left_out: pa.Table, folders: Sequence[Path]
) -> Iterator[tuple[Image.Image | None, str]]:
    """Yield some of the posts left out, of each reason in turn, each with its id and reason."""
    found = left_out["reason"]
    by_reason = [
        pc.indices_nonzero(pc.equal(found, reason))[:_SHOWN].to_pylist()
        for reason in pc.unique(found).to_pylist()
    ]
    turns = zip_longest(*by_reason)
    rows = [row for turn in turns for row in turn if row is not None]
    for post in left_out.take(pa.array(rows[:_SHOWN], pa.int64())).to_pylist():
        yield _found(post["id"], folders), f"{post['id']}: {post['reason']}. {post['detail'] or ''}"


def _found(name: str | None, folders: Sequence[Path]) -> Image.Image | None:
    """Return the picture of an id of sources.folder: within the first folder, or a whole path."""
    paths = [str(folder / (name or "")) for folder in folders[:1]]
    paths += [name for folder in folders[1:] if name and name.startswith(f"{folder}/")]
    path = next(filter(os.path.isfile, paths), None)  # which is false for names too long, too
    place = Location(path, 0, Path(path).stat().st_size) if path else None
    return decode.open_rgb_or_none(place) if place else None
