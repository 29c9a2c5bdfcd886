"""Plots as SVG elements of a page, in the colours of its theme and in its typeface."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from tagger.evaluation.report.plots import INK, LIGHT

_FOR_A_PAGE = (
    *((colour, f"var(--{name})") for name, colour in LIGHT.items()),
    (INK, "currentColor"),
    ("xlink:href", "href"),
    (r"font: (\w+) [^;]*", r"font-size: \1"),
    (r" font-family: [^;]*;", ""),
    (r"(\.\d\d)\d+", r"\1"),  # of 72 to an inch
    (r"\n *", " "),
)


def to_svg(
    figure: Figure, name: str, label: str, titles: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return a plot as an SVG element; `plots.COLOURS` are variables of the page, such as `--meta`.

    name: unique on the page; label: a description for screen readers
    titles: the tooltip of each point of a line, by the gid of the line
    """
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    head, _, body = file.getvalue().partition("<svg ")[2].partition("</defs>")  # drops <style>
    for pattern, replacement in _FOR_A_PAGE:
        body = re.sub(pattern, replacement, body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", body)
    for gid, texts in (titles or {}).items():
        body = _with_titles(body, f"{name}-{gid}", texts)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    return f'<svg {box} role="img" aria-label="{escape(label)}">{body}'


def _with_titles(svg: str, gid: str, texts: Sequence[str]) -> str:
    """Give each point of a line a title, which browsers show as a tooltip."""
    before, group, after = svg.partition(f'<g id="{gid}">')
    titles = iter(texts)

    def with_title(use: re.Match[str]) -> str:
        return f"{use[1]}><title>{escape(next(titles))}</title></use>"

    return before + group + re.sub(r"(<use [^>]*)/>", with_title, after, count=len(texts))
