"""The page of an evaluation: one HTML file that needs nothing beside it."""

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
from tagger.evaluation.report import charts, plots, svg

SIDE = 192  # pixels, the longer one of a thumbnail

_TEMPLATE = Path(__file__).with_name("report.html")
_HEADLINES = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")
_QUALITY = 78  # of a thumbnail
_LIKELIEST = 12  # tags of a kind that are shown before the others are asked for
_POINT = charts.TAG_HEADER.index


class GalleryImage(NamedTuple):
    """A picture with what is said of it, each tag with its confidence."""

    image: Image.Image | None  # None where it can no longer be read
    caption: str  # its path or id
    right: Sequence[tuple[str, float]]  # given and true
    wrong: Sequence[tuple[str, float]]  # given, not true
    missed: Sequence[tuple[str, float]]  # true, not given
    note: str = ""  # such as "loss 41.2"


class Gallery(NamedTuple):
    title: str
    explanation: str
    images: Iterable[GalleryImage]  # taken one by one: they need not be in memory together


class ReportTable(NamedTuple):
    title: str
    explanation: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class ReportContent(NamedTuple):
    title: str
    facts: Mapping[str, str]  # what and how was judged; nothing that changes when it is repeated
    metrics: Mapping[str, Any]  # of each part, as evaluate.json has them
    tags: Sequence[Sequence[Any]]  # rows under charts.TAG_HEADER
    pr: Sequence[Sequence[float]]  # rows under charts.PR_HEADER
    f1: Sequence[Sequence[float]]  # rows under charts.F1_HEADER
    reliability: Sequence[Sequence[float]]  # rows under charts.RELIABILITY_HEADER
    tables: Sequence[ReportTable]
    galleries: Iterable[Gallery]


def write(path: Path, content: ReportContent) -> None:
    files.write_text(path, render(content))


def render(content: ReportContent) -> str:
    test = content.metrics.get("test", {})
    drawn = build_plots(content)
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
        parts={name: part for name, part in content.metrics.items() if part.get("tags")},
        test=test,
        headlines=_HEADLINES,
        header=charts.TAG_HEADER,
        categories=list(dict.fromkeys(row[_POINT("category")] for row in content.tags)),
        drawn={name: _svg(name, figure, content) for name, figure in drawn.items()},
        shown=sum(map(len, plots.plotted_rows(content.tags).values())),
        tables=[_formatted(table) for table in content.tables],
        galleries=_galleries(content.galleries),
        colours=plots.COLOURS,
        likeliest=_LIKELIEST,
    )
    return text.encode(errors="backslashreplace").decode()  # paths need not be Unicode


def build_plots(content: ReportContent) -> dict[str, Figure]:
    """Return the plots of the page, by name."""
    test = content.metrics.get("test", {})
    in_use = (test["micro_recall"], test["micro_precision"]) if test.get("tags") else None
    return {
        "precision_recall": plots.precision_recall(content.pr, in_use),
        "f1_by_threshold": plots.f1_by_threshold(content.f1),
        "f1_by_frequency": plots.f1_by_frequency(content.tags),
        "reliability": plots.reliability(content.reliability),
        "by_category": plots.by_category(test),
    }


def _svg(name: str, figure: Figure, content: ReportContent) -> str:
    titles: dict[str, list[str]] = {}
    if name == "f1_by_frequency":
        for category, rows in plots.plotted_rows(content.tags).items():
            titles[category] = [
                f"{row[_POINT('name')]}: F1 {format_number(row[_POINT('f1')])}, "
                f"{format_number(row[_POINT('count')])} posts"
                for row in rows
            ]
    return svg.to_svg(figure, name, f"{name.replace('_', ' ')}, described below", titles)


def format_number(value: Any) -> str:
    """Return a number as people read it: three decimals, or more where these are all 0."""
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
    """Return what the template shows of a table; `numeric` says which columns are of numbers."""
    columns = zip(*table.rows, strict=True) if table.rows else ([] for _ in table.header)
    numeric = [
        any(isinstance(value, Real) for value in column)
        and all(isinstance(value, Real) or value in ("", None) for value in column)
        for column in columns
    ]
    return {**table._asdict(), "numeric": numeric}


def _galleries(galleries: Iterable[Gallery]) -> Iterator[dict[str, Any]]:
    for gallery in galleries:
        pictures = [
            {**shown._asdict(), "picture": _thumbnail(shown.image)} for shown in gallery.images
        ]
        yield {**gallery._asdict(), "pictures": pictures}


def _thumbnail(picture: Image.Image | None) -> dict[str, Any] | None:
    """Return the address of a small copy that holds the copy itself, and its size in pixels."""
    if picture is None:
        return None
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=_QUALITY, method=4)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = small.size
    return {"data": f"data:image/webp;base64,{data}", "width": width, "height": height}
