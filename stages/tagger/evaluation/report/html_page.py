"""The report of an evaluation: one HTML file that needs nothing beside it."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isnan
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from tagger.core import files
from tagger.evaluation.report import plots, svg, tables
from tagger.evaluation.report.tables import Rows

SIDE = 192  # pixels, the longer one of a thumbnail

_TEMPLATE = Path(__file__).with_name("report.html")
_HEADLINES = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")
_QUALITY = 78  # of a thumbnail
_MOST_CONFIDENT = 12  # tags of a kind that are shown before one unfolds the others
_COLUMN = tables.TAG_HEADER.index


class GalleryImage(NamedTuple):
    """An image with its predictions: names of tags and their confidences."""

    image: Image.Image | None  # None if it can no longer be read
    caption: str  # its path or id
    right: Sequence[tuple[str, float]]  # predicted and true
    wrong: Sequence[tuple[str, float]]  # predicted, not true
    missed: Sequence[tuple[str, float]]  # true, not predicted
    note: str = ""  # such as "loss 41.2"


class Gallery(NamedTuple):
    title: str
    explanation: str
    images: Iterable[GalleryImage]  # read one by one: they need not fit into memory together


class ReportTable(NamedTuple):
    title: str
    explanation: str
    header: Sequence[str]
    rows: Rows


class ReportContent(NamedTuple):
    title: str
    facts: Mapping[str, str]  # about the model; the same whenever the evaluation is repeated
    metrics: Mapping[str, Any]  # of each split, as in evaluate.json
    tags: Rows  # under tables.TAG_HEADER
    pr: Rows  # under tables.PR_HEADER
    f1: Rows  # under tables.F1_HEADER
    reliability: Rows  # under tables.RELIABILITY_HEADER
    tables: Sequence[ReportTable]
    galleries: Iterable[Gallery]


def write(path: Path, content: ReportContent) -> None:
    files.write_text(path, render(content))


def render(content: ReportContent) -> str:
    """Return the report as HTML."""
    test = content.metrics.get("test", {})
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": format_number}
    text = environment.get_template(_TEMPLATE.name).render(
        content=content,
        splits={name: split for name, split in content.metrics.items() if split.get("tags")},
        test=test,
        headlines=_HEADLINES,
        header=tables.TAG_HEADER,
        categories=list(dict.fromkeys(row[_COLUMN("category")] for row in content.tags)),
        plots={name: _svg(name, plot, content) for name, plot in build_plots(content).items()},
        plotted=sum(map(len, plots.plotted_rows(content.tags).values())),
        tables=[_formatted(table) for table in content.tables],
        galleries=_galleries(content.galleries),
        colours=plots.COLOURS,
        most_confident=_MOST_CONFIDENT,
    )
    return text.encode(errors="backslashreplace").decode()  # paths need not be Unicode


def build_plots(content: ReportContent) -> dict[str, Figure]:
    """Return the plots of the report, by name."""
    test = content.metrics.get("test", {})
    operating_point = (test["micro_recall"], test["micro_precision"]) if test.get("tags") else None
    return {
        "precision_recall": plots.precision_recall(content.pr, operating_point),
        "f1_by_threshold": plots.f1_by_threshold(content.f1),
        "f1_by_frequency": plots.f1_by_frequency(content.tags),
        "reliability": plots.reliability(content.reliability),
        "by_category": plots.by_category(test),
    }


def _svg(name: str, plot: Figure, content: ReportContent) -> str:
    titles: dict[str, list[str]] = {}
    if name == "f1_by_frequency":
        for category, rows in plots.plotted_rows(content.tags).items():
            titles[category] = [
                f"{row[_COLUMN('name')]}: F1 {format_number(row[_COLUMN('f1')])}, "
                f"{format_number(row[_COLUMN('count')])} posts"
                for row in rows
            ]
    return svg.to_svg(plot, name, f"{name.replace('_', ' ')}, described below", titles)


def format_number(value: Any) -> str:
    """Return a number for people: three decimals, or more if these are all 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return "" if value is None else str(value)
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(float(value))
    if isnan(size):
        return ""
    if 0 < size < 0.0005:
        return f"{value:.5f}" if size >= 0.00001 else f"{value:.0e}"
    return f"{value:,.3f}" if size < 100 else f"{value:,.1f}"


def _formatted(table: ReportTable) -> dict[str, Any]:
    """Return a table for the template; `numeric` says which columns hold numbers."""
    columns = zip(*table.rows, strict=True) if table.rows else ([] for _ in table.header)
    numeric = [
        any(isinstance(value, Real) for value in column)
        and all(isinstance(value, Real) or value in ("", None) for value in column)
        for column in columns
    ]
    return {**table._asdict(), "numeric": numeric}


def _galleries(galleries: Iterable[Gallery]) -> Iterator[dict[str, Any]]:
    for gallery in galleries:
        images = [{**image._asdict(), "image": _thumbnail(image.image)} for image in gallery.images]
        yield {**gallery._asdict(), "images": images}


def _thumbnail(image: Image.Image | None) -> dict[str, Any] | None:
    """Return a small copy as a data URL, with its size in pixels."""
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=_QUALITY, method=4)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = small.size
    return {"data": f"data:image/webp;base64,{data}", "width": width, "height": height}
