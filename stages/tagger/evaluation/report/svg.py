"""Figures as SVG elements of a page, in the colours of its theme and in its typeface."""

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
    """Return a figure as an SVG element; `plots.COLOURS` are variables of the page, `--general`.

    name: unlike that of any other figure of the page; label: what it shows, for who cannot see it
    titles: what to say of each point of a line, by the gid of the line
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn = file.getvalue().partition("<svg ")[2]
    head, _, body = drawn.partition("</defs>")  # whose style would be that of the whole page
    for pattern, replacement in _FOR_A_PAGE:
        body = re.sub(pattern, replacement, body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", body)
    for gid, texts in (titles or {}).items():
        body = _titled(body, f"{name}-{gid}", texts)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    return f'<svg {box} role="img" aria-label="{escape(label)}">{body}'


def _titled(drawn: str, gid: str, texts: Sequence[str]) -> str:
    """Give each point of a line a title, which browsers show beside the pointer."""
    before, found, after = drawn.partition(f'<g id="{gid}">')
    each = iter(texts)

    def titled(use: re.Match[str]) -> str:
        return f"{use[1]}><title>{escape(next(each))}</title></use>"

    return before + found + re.sub(r"(<use [^>]*)/>", titled, after, count=len(texts))
