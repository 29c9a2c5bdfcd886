"""Plots show their rows, say so if there are none, and are reproducible."""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tagger.evaluation.report import plots, svg, tables

PR = [(0.1, 1.0), (0.5, 0.9), (1.0, 0.4)]
F1 = [(0.1, 0.3, 0.2, 0.2, 0.9), (0.5, 0.7, 0.4, 0.7, 0.7), (0.9, 0.5, 0.5, 0.9, 0.3)]
RELIABILITY = [(0.1, 0.15, 9000), (0.5, 0.4, 20), (0.95, 1.0, 300)]
METRICS = {
    "categories": {
        "general": {"macro_ap": 0.7, "macro_f1": 0.6, "intervals": {"macro_ap": [0.65, 0.75]}},
        "artist": {"macro_ap": 0.4, "macro_f1": 0.3},
    }
}

PLOTS: dict[str, tuple[Callable[[Any], Figure], Any, Any]] = {
    "precision_recall": (plots.precision_recall, PR, []),
    "f1_by_threshold": (plots.f1_by_threshold, F1, [(0.5, 0, 0, 0, 0)]),
    "reliability": (plots.reliability, RELIABILITY, []),
    "by_category": (plots.by_category, METRICS, {}),
}


def tag_row(name: str, category: str, count: int, support: int, f1: float) -> tuple[Any, ...]:
    row: dict[str, Any] = dict.fromkeys(tables.TAG_HEADER, 0.5)
    row |= {"name": name, "category": category, "count": count, "support": support, "f1": f1}
    return tuple(row.values())


TAGS = [
    tag_row("smile", "general", 1000, 50, 0.8),
    tag_row('<b>"hat"', "general", 100, 5, 0.5),
    tag_row("miku", "character", 10, 2, 1.0),
    tag_row("none", "general", 0, 0, 0.0),
]
PLOTS["f1_by_frequency"] = (plots.f1_by_frequency, TAGS, [TAGS[-1]])

each = pytest.mark.parametrize("name", PLOTS)


def plot(name: str) -> Figure:
    draw, rows, _ = PLOTS[name]
    return draw(rows)


def line(axes: Axes, label: str) -> Any:
    (curve,) = (line for line in axes.lines if line.get_label() == label)
    return curve.get_xydata()


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


@each
def test_a_plot_is_reproducible(name: str) -> None:
    assert png(plot(name)) == png(plot(name))
    assert svg.to_svg(plot(name), name, "") == svg.to_svg(plot(name), name, "")


@each
def test_a_plot_without_rows_says_so(name: str) -> None:
    draw, _, nothing = PLOTS[name]
    figure = draw(nothing)
    assert re.match("no |there are no ", figure.axes[0].texts[0].get_text())
    assert "<text" in svg.to_svg(figure, name, "")


@each
def test_an_svg_has_the_colours_typeface_and_ids_of_its_page(name: str) -> None:
    text = svg.to_svg(plot(name), name, 'it\'s "so"')
    assert "currentColor" in text
    assert f"var(--{'general' if name in ('by_category', 'f1_by_frequency') else 'first'})" in text
    assert not re.search("#[0-9a-f]{6}|font-family|http|<style|<image|matplotlib.org", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids
    assert all(identifier.startswith(f"{name}-") for identifier in ids)
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]*)", text)) <= set(ids)
    assert 'aria-label="it&#x27;s &quot;so&quot;"' in text


@each
def test_a_plot_can_be_saved_as_png(name: str) -> None:
    picture = Image.open(io.BytesIO(png(plot(name))))
    assert picture.size == (800, 576)
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255)


def test_precision_recall_shows_the_curve_and_the_thresholds_in_use() -> None:
    axes = plots.precision_recall(PR, (0.6, 0.8)).axes[0]
    assert np.allclose(line(axes, "one threshold for all"), PR)
    assert np.allclose(line(axes, "the thresholds in use"), [(0.6, 0.8)])
    for curve in axes.lines[:4]:
        recall, precision = np.asarray(curve.get_xydata()).T
        equal = 2 * recall * precision / (recall + precision)
        assert np.allclose(equal, equal[0])


def test_a_dot_marks_the_best_of_each_f1() -> None:
    axes = plots.f1_by_threshold(F1).axes[0]
    assert np.allclose(line(axes, "micro F1"), [(row[0], row[1]) for row in F1])
    best = {str(line.get_label()): line.get_markevery() for line in axes.lines}
    assert best["micro F1"] == [1]
    assert best["macro F1"] == [2]


def test_each_supported_tag_is_a_mark_with_its_name() -> None:
    figure = plots.f1_by_frequency(TAGS)
    assert np.allclose(line(figure.axes[0], "general"), [(1000, 0.8), (100, 0.5)])
    assert np.allclose(line(figure.axes[0], "character"), [(10, 1.0)])
    titles = {name: [row[0] for row in rows] for name, rows in plots.plotted_rows(TAGS).items()}
    text = svg.to_svg(figure, "f", "", titles)
    marks = re.findall(r'<use href="#f-\w+" [^>]*><title>(.*?)</title></use>', text)
    assert sorted(marks) == ["&lt;b&gt;&quot;hat&quot;", "miku", "smile"]


def test_a_sample_of_very_many_tags_is_plotted() -> None:
    rows = [tag_row(f"tag {n}", "general", 20_000 - n, 9, 0.5) for n in range(20_000)]
    sample = plots.plotted_rows(rows)["general"]
    assert len(sample) == 3000
    assert (sample[0], sample[-1]) == (rows[0], rows[-1])
    (median,) = (line for line in plots.f1_by_frequency(rows).axes[0].lines if not line.get_gid())
    assert set(np.asarray(median.get_ydata())) == {0.5}


def test_reliability_shows_fractions_above_and_pairs_below() -> None:
    above, below = plots.reliability(RELIABILITY).axes
    assert np.allclose(line(above, "this model"), [row[:2] for row in RELIABILITY])
    bars = below.collections[0].get_segments()  # type: ignore[attr-defined]
    assert [bar[1].tolist() for bar in bars] == [[row[0], row[2]] for row in RELIABILITY]


def test_categories_have_bars_and_intervals() -> None:
    axes = plots.by_category(METRICS).axes[0]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == [0.7, 0.6, 0.4, 0.3]
    lines = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    whiskers = [line for line in lines if line]
    assert whiskers == [[0.65, 0.75]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["general", "artist"]
