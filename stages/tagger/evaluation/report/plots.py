"""Plots of an evaluation, from the rows of its tables: for MLflow and for the report."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tagger.core.arrays import Floats
from tagger.evaluation.report import tables
from tagger.evaluation.report.tables import Rows

PlotStyle: TypeAlias = dict[str, Any]  # arguments of matplotlib

# Of lines, and of categories (close to Danbooru's own): on light and on dark.
COLOURS = {
    "first": ("#00707b", "#4fc9d3"),
    "second": ("#b4520c", "#f2a35e"),
    "third": ("#68707a", "#9aa4af"),
    "rating": ("#59636e", "#a7b1bd"),
    "general": ("#0b69c9", "#5cb0ff"),
    "character": ("#0b7c2d", "#4fca66"),
    "copyright": ("#991fae", "#d69dff"),
    "artist": ("#bf1b27", "#ff8f8f"),
    "meta": ("#9f5800", "#efba5d"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
_MARKERS = dict(zip(LIGHT, "...sov^DP", strict=True))
INK = "#1f2329"
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"font.size": 10, "axes.linewidth": 0.6, "axes.grid": True, "grid.alpha": 0.13},
    **{"axes.axisbelow": True, "figure.dpi": 160, "figure.figsize": (5, 3.6)},
    **{"figure.constrained_layout.use": True, "savefig.dpi": "figure"},
}
_MAX_POINTS = 3000  # tags

_styled = partial(mpl.rc_context, _STYLE)


@_styled()
def precision_recall(rows: Rows, at: tuple[float, float] | None = None) -> Figure:
    """Plot rows under PR_HEADER, and lines of equal F1.

    at: recall and precision at the thresholds in use
    """
    figure, axes = _unit("recall", "precision")
    if not len(rows):
        return _no_data(figure, axes, "no image has a tag")
    _lines_of_equal_f1(axes)
    recall, precision = _columns(rows)
    axes.plot(recall, precision, color=LIGHT["first"], linewidth=2, label="one threshold for all")
    if at is not None:
        look: PlotStyle = {"marker": "D", "markersize": 6, "linestyle": ""}
        axes.plot(*at, **look, color=LIGHT["second"], label="the thresholds in use")
    _legend(axes)
    return figure


def _lines_of_equal_f1(axes: Axes) -> None:
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(f1 / (2 - f1), 1, 60)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=INK, alpha=0.25, linewidth=0.6)
        axes.text(f1 - 0.01, f1 - 0.01, f"F1 {f1}", fontsize=8, ha="right", va="top")


@_styled()
def f1_by_threshold(rows: Rows) -> Figure:
    """Plot rows under F1_HEADER, with a dot at the best of each F1."""
    figure, axes = _unit("one threshold for all tags", "")
    table = np.array(rows, np.float64).reshape(-1, len(tables.F1_HEADER))
    if not table[:, 1:].any():
        return _no_data(figure, axes, "no predicted tag is true")
    threshold, micro, macro, precision, recall = table.T
    thin: PlotStyle = {"color": LIGHT["third"], "linewidth": 1.2}
    for values, colour, label in ((micro, "first", "micro F1"), (macro, "second", "macro F1")):
        best = [int(np.argmax(values))]
        axes.plot(
            *(threshold, values, "-o"),
            color=LIGHT[colour],
            markevery=best,
            markersize=6,
            label=label,
        )
    axes.plot(threshold, precision, "--", **thin, label="precision")
    axes.plot(threshold, recall, ":", **thin, label="recall")
    _legend(axes)
    return figure


@_styled()
def f1_by_frequency(rows: Rows) -> Figure:
    """Plot the F1 of each tag, rows under TAG_HEADER, by its posts in training, and the median."""
    figure, axes = _unit("posts with the tag in training", "F1")
    by_name = plotted_rows(rows)
    if not by_name:
        return _no_data(figure, axes, "no image has a tag")
    for name, category_rows in by_name.items():
        look: PlotStyle = {
            "marker": _MARKERS[name],
            "markersize": 4,
            "markeredgewidth": 0,
            "alpha": 0.75,
        }
        axes.plot(
            *_counts_and_f1(category_rows),
            **look,
            linestyle="",
            color=LIGHT[name],
            label=name,
            gid=name,
        )
    counts, scores = _counts_and_f1([row for row in rows if row[_SUPPORT]])
    edges = np.geomspace(counts.min(), counts.max() * 1.001, 9)
    number = np.digitize(counts, edges)
    medians = [
        (np.median(counts[inside]), np.median(scores[inside]))
        for inside in (number == each for each in range(1, 10))
        if inside.sum() >= 5
    ]
    if len(medians) > 1:
        axes.plot(*zip(*medians, strict=True), color=INK, linewidth=1.2, label="median")
    axes.set(xscale="log", xlim=(counts.min() / 1.25, counts.max() * 1.25))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    _legend(axes)
    return figure


_CATEGORY, _COUNT, _SUPPORT, _F1 = map(
    tables.TAG_HEADER.index, ("category", "count", "support", "f1")
)


def plotted_rows(rows: Rows) -> dict[str, list[Sequence[Any]]]:
    """Return the rows under TAG_HEADER to plot, by category: not all if there are many tags."""
    supported = [row for row in rows if row[_SUPPORT]]
    places = np.linspace(0, len(supported) - 1, min(len(supported), _MAX_POINTS)).astype(int)
    by_category: dict[str, list[Sequence[Any]]] = {}
    for place in places.tolist():
        row = supported[place]
        by_category.setdefault(row[_CATEGORY], []).append(row)
    return by_category


def _counts_and_f1(rows: Rows) -> tuple[Floats, Floats]:
    counts = np.array([max(1, row[_COUNT]) for row in rows], np.float64)
    return counts, np.array([row[_F1] for row in rows], np.float64)


@_styled()
def reliability(rows: Rows) -> Figure:
    """Plot rows under RELIABILITY_HEADER: fractions above, numbers of pairs below."""
    figure = Figure()
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _make_unit(axes, "", "fraction that is true")
    below.set(xlabel="confidence", ylabel="pairs", yscale="log")
    below.yaxis.set_major_formatter("{x:,.0f}")
    if not len(rows):
        below.set_axis_off()
        return _no_data(figure, axes, "no image was evaluated")
    confidence, true, pairs = _columns(rows)
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=0.8, label="perfectly calibrated")
    axes.plot(confidence, true, "-o", color=LIGHT["first"], markersize=4, label="this model")
    below.vlines(confidence, 0.5, pairs, color=LIGHT["first"], linewidth=6)
    below.set(ylim=(0.5, pairs.max() * 2))
    _legend(axes)
    return figure


@_styled()
def by_category(metrics: Mapping[str, Any]) -> Figure:
    """Plot macro AP and F1 of each category, with intervals; metrics: of a split."""
    figure, axes = _unit("", "")
    categories = metrics.get("categories", {})
    if not categories:
        return _no_data(figure, axes, "there are no tags")
    for place, (name, tree) in enumerate(categories.items()):
        for shift, metric, alpha in ((-0.2, "macro_ap", 0.65), (0.2, "macro_f1", 0.3)):
            look: PlotStyle = {"height": 0.36, "color": LIGHT[name], "alpha": alpha}
            axes.barh(place + shift, tree[metric], **look)
            ends = tree.get("intervals", {}).get(metric)
            if ends:
                axes.plot(ends, [place + shift] * 2, "-|", color=INK, linewidth=1, markersize=5)
    axes.set_yticks(range(len(categories)), list(categories))
    axes.set_ylim(len(categories) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    shades = [Patch(color=LIGHT["third"], alpha=alpha) for alpha in (0.65, 0.3)]
    interval = axes.plot([], [], "-|", color=INK, linewidth=1, markersize=5)
    _legend(axes, [*shades, *interval], ["macro AP", "macro F1", "95 % interval"])
    return figure


def _unit(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure()
    axes = figure.add_subplot()
    _make_unit(axes, x, y)
    return figure, axes


def _make_unit(axes: Axes, x: str, y: str) -> None:
    """Make both axes go from 0 to 1, with room for points on the edge."""
    axes.set(xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _columns(rows: Rows) -> Iterator[Floats]:
    return iter(np.array(rows, np.float64).T)


def _legend(axes: Axes, *entries: Sequence[Any]) -> None:
    axes.legend(
        *entries,
        **{"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "ncols": 4, "fontsize": 9},
        **{"handlelength": 1.6, "columnspacing": 1.2, "handletextpad": 0.5},
    )


def _no_data(figure: Figure, axes: Axes, reason: str) -> Figure:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes)
    return figure
