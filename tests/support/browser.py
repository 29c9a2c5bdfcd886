"""Pages as people see them, in a headless Chromium; tests are skipped where there is none."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

Theme = Literal["light", "dark"]

PROGRAM = shutil.which("chromium")

# Texts that are seen, each with its colour and that of the ground it lies on.
_TEXTS = """
selector => [...document.querySelectorAll(selector)].filter(element =>
    element.checkVisibility() && [...element.childNodes].some(
        node => node.nodeType === Node.TEXT_NODE && node.textContent.trim())
).map(element => {
    const svg = element instanceof SVGElement, style = getComputedStyle(element);
    let ground = element;
    while (ground && /^rgba\\(.*, 0\\)$/.test(getComputedStyle(ground).backgroundColor))
        ground = ground.parentElement;
    return [element.textContent.trim(), svg ? style.fill : style.color,
        ground ? getComputedStyle(ground).backgroundColor : "rgb(255, 255, 255)"];
})
"""


class OpenedPage(NamedTuple):
    page: Page
    errors: list[str]  # of scripts, and what the console was told of mistakes
    requests: list[str]  # addresses, that of the page first; data: is none


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser; skip the test on machines without one."""
    if not PROGRAM:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Browser,
    address: str,
    *,
    width: int = 1280,
    theme: Theme = "light",
    scripts: bool = True,
) -> Iterator[OpenedPage]:
    """Yield a page that has been opened, in a window of some width, in pixels."""
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=theme, java_script_enabled=scripts)  # type: ignore[arg-type]
    opened = OpenedPage(context.new_page(), [], [])
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on("console", lambda said: _record_message(opened, said.type, said.text))
    opened.page.on("request", lambda request: _record_request(opened, request.url))
    try:
        opened.page.goto(address)
        yield opened
    finally:
        context.close()


def _record_message(opened: OpenedPage, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        opened.errors.append(text)


def _record_request(opened: OpenedPage, address: str) -> None:
    if not address.startswith("data:"):
        opened.requests.append(address)


def contrasts(page: Page, selector: str = "body *") -> dict[str, float]:
    """Return the contrast of each text that is seen, 1 to 21, as WCAG defines it."""
    texts = page.evaluate(_TEXTS, selector)
    return {text: _contrast(colour, ground) for text, colour, ground in texts}


def _contrast(colour: str, ground: str) -> float:
    dark, light = sorted((_luminance(colour), _luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    if not (parts := re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)):
        raise ValueError(f"{colour} is no opaque colour")
    shares = [int(part) / 255 for part in parts.groups()]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def horizontal_overflow(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    root = "document.documentElement"
    return int(page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))
