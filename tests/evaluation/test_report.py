"""The report shows all metrics for any names of tags, loads nothing else, and can be used."""

import base64
import io
import re
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Page
from scipy.special import logit

from support import browser
from support.browser import contrasts, open_page
from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    write_store,
)
from tagger.core.colours import WHITE
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.evaluation import result
from tagger.evaluation.inspection import SplitInspection
from tagger.evaluation.report import html_page, tables
from tagger.evaluation.report.html_page import Gallery, GalleryImage, ReportContent, ReportTable
from tagger.images import decode
from tagger.images.dataset import Split

THRESHOLDS = np.linspace(0.2, 0.6, 30)
HOSTILE = (
    "<script>alert(1)</script>",
    "</noscript></table><img src=x onerror=alert(2)>",
    "<!--<tr><td>",
    "\"quoted\" & 'so' {{ 7 * 7 }}",
    "$x^2$ 初音ミク \u202eright to left",
    "a_name_without_end" * 60,
    "two\nlines",
    "bad\udcffbyte",
)
NOTHING = ReportContent("none", {}, {"test": {"images": 0, "tags": 0}}, [], [], [], [], [], [])


class Seen(HTMLParser):
    """The elements and texts of a page, without scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def values(self, *names: str) -> list[str]:
        return [
            attributes[name]
            for _, attributes in self.elements
            for name in names
            if name in attributes
        ]


@pytest.fixture(scope="module")
def content(split: Split, tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    """An evaluation of random predictions, with real images."""
    tags = make_tags(30, (9, 0, 4))
    with (
        TemporaryStore(random_predictions(150, 30)) as test,
        TemporaryStore(random_predictions(100, 30, seed=1)) as validation,
    ):
        evaluation = result.evaluate(test, tags, THRESHOLDS, seed=0)
        metrics = {"test": evaluation.metrics}
        metrics["validation"] = result.evaluate(validation, tags, THRESHOLDS, seed=0).metrics
    images = [
        GalleryImage(
            decode.open_rgb(location),
            Path(location.path).name,
            [(f"tag_{n}", 0.9) for n in range(20)],
            [("tag_1", 0.81), ("tag_2", 0.8)],
            [("tag_3", 0.1)],
            "loss 4.1",
        )
        for location in split.locations[:12]
    ]
    return ReportContent(
        "small tagger",
        {"Backbone": "test_efficientnet", "MLflow run": "0" * 32},
        metrics,
        tables.tag_rows(evaluation.counts, tags, THRESHOLDS),
        tables.pr_rows(evaluation.counts),
        tables.f1_rows(evaluation.counts),
        tables.reliability_rows(evaluation.counts),
        [ReportTable("Confusions", "One for another.", ("tag", "fraction"), [("tag_1", 0.25)])],
        [
            Gallery("Predictions", "The first.", images),
            Gallery("Lost", "Gone.", [GalleryImage(None, "gone.png", [], [], [])]),
        ],
    )


@pytest.fixture(scope="module")
def file(content: ReportContent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics") / "report.html"
    html_page.write(path, content)
    return path


def hostile(content: ReportContent) -> ReportContent:
    names = [*HOSTILE, *(str(row[0]) for row in content.tags[len(HOSTILE) :])]
    rows = [[name, *row[1:]] for name, row in zip(names, content.tags, strict=True)]
    confidences = [(name, 0.5) for name in HOSTILE]
    kinds = confidences, confidences, confidences
    images = [GalleryImage(None, name, *kinds, name) for name in HOSTILE]
    report_tables = [ReportTable(name, name, (name,), [(name,), (None,)]) for name in HOSTILE]
    galleries = [Gallery(name, name, images) for name in HOSTILE]
    facts = {name: name for name in HOSTILE}
    changed = content._replace(title=HOSTILE[0], facts=facts, tags=rows)
    return changed._replace(tables=report_tables, galleries=galleries)


def test_the_report_shows_the_metrics(content: ReportContent, file: Path) -> None:
    texts = Seen(file.read_text()).texts
    for split in content.metrics.values():
        for name in ("macro_ap", "micro_ap", "macro_f1", "micro_f1", "brier"):
            assert html_page.format_number(split[name]) in texts
        low, high = split["intervals"]["macro_ap"]
        assert f"{low:.3f} to {high:.3f}" in texts
    for group in ("categories", "bands"):
        for name, group_metrics in content.metrics["test"][group].items():
            assert name in texts
            assert html_page.format_number(group_metrics["micro_f1"]) in texts
    assert {"small tagger", "Confusions", "0.250", "gone.png", "cannot be read"} <= set(texts)
    assert f"The mean distance (ECE) is {content.metrics['test']['ece']:.3f}." in file.read_text()


def test_each_tag_has_a_row_with_all_its_metrics(content: ReportContent, file: Path) -> None:
    table = file.read_text().partition("<noscript>")[2].partition("</noscript>")[0]
    rows = table.partition("<tbody>")[2].split("<tr>")[1:]
    assert len(rows) == 30
    for row, tag in zip(rows, content.tags, strict=True):
        cells = [cell.strip() for cell in re.split("<t[hd][^>]*>|</tbody>", row)[1:15]]
        assert cells == [html_page.format_number(value) for value in tag]


def test_predictions_are_marked_by_sign_and_in_words(file: Path) -> None:
    seen = Seen(file.read_text())
    assert seen.texts.count("predicted and true:") == 12 * 20
    assert seen.texts.count("predicted, not true:") == 12 * 2
    assert seen.texts.count("true, not predicted:") == 12
    assert [seen.texts.count(sign) for sign in "✓✗○"] == [12 * 20, 12 * 2, 12]
    assert seen.texts.count("8 more predicted and true") == 12


def test_the_report_is_reproducible(content: ReportContent, file: Path) -> None:
    assert html_page.render(content) == file.read_text()


def test_the_report_loads_nothing_from_elsewhere(file: Path) -> None:
    seen, text = Seen(file.read_text()), file.read_text()
    assert all(re.match("data:|#", value) for value in seen.values("src", "href", "srcset"))
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert not re.search("https?:|@import|<link rel=.?style", text)
    assert "default-src 'none'" in seen.values("content")[0]


def test_the_report_is_valid_and_accessible_html(file: Path) -> None:
    seen = Seen(file.read_text())
    ids = seen.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in seen.values("href") if value.startswith("#")} <= set(ids)
    assert set(seen.values("aria-labelledby")) <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in seen.elements if tag == "img")
    assert all("scope" in attributes for tag, attributes in seen.elements if tag == "th")
    assert all("aria-label" in attributes for tag, attributes in seen.elements if tag == "svg")
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1


def test_thumbnails_are_small_and_complete(file: Path) -> None:
    sources = [source for source in Seen(file.read_text()).values("src") if source]
    assert len(sources) == 12
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/webp;base64,"), validate=True)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (64, 64)
    wide = Image.new("RGBA", (4000, 10))
    text = html_page.render(
        NOTHING._replace(galleries=[Gallery("", "", [GalleryImage(wide, "", [], [], [])])])
    )
    assert 'width="192" height="1"' in text


def test_hostile_names_are_text(content: ReportContent) -> None:
    plain, seen = Seen(html_page.render(content)), Seen(html_page.render(hostile(content)))
    scripts = [tag for tag, _ in seen.elements if tag == "script"]
    assert scripts == ["script"]
    assert "onerror" not in {name for _, attributes in seen.elements for name in attributes}
    assert [t for t, _ in plain.elements if t == "img"] == ["img"] * 12
    assert not [t for t, _ in seen.elements if t == "img"]
    for name in HOSTILE:
        assert name.replace("\udcff", "\\udcff") in seen.texts


def test_images_need_not_fit_into_memory_together(content: ReportContent) -> None:
    references: list[weakref.ref[Image.Image]] = []

    def images() -> Iterator[GalleryImage]:
        for _ in range(5):
            image = Image.new("RGB", (8, 8))
            references.append(weakref.ref(image))
            yield GalleryImage(image, "", [], [], [])
            del image
            assert sum(reference() is not None for reference in references) == 1

    text = html_page.render(content._replace(galleries=iter([Gallery("", "", images())])))
    assert text.count("<img ") == 5


@pytest.mark.parametrize("figures", [{}, {"test": {}}, NOTHING.metrics])
def test_a_report_without_images_and_tags_says_so(figures: dict[str, object]) -> None:
    texts = Seen(html_page.render(NOTHING._replace(metrics=figures))).texts
    assert "Nothing to evaluate: no test image has a tag of the vocabulary." in texts
    assert {"There are no tags.", "There are none.", "no image has a tag"} <= set(texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (np.float64(1), "1.000"),
        (0.0, "0.000"),
        (0.000234, "0.00023"),
        (1.2e-7, "1e-07"),
        (41.25, "41.250"),
        (1234.56, "1,234.6"),
        (np.int64(12345), "12,345"),
        (float("nan"), ""),
        (None, ""),
        ("", ""),
        ("1girl", "1girl"),
        (True, "True"),
    ],
)
def test_numbers_are_short_and_never_rounded_to_zero(value: object, text: str) -> None:
    assert html_page.format_number(value) == text


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as instance:
        yield instance


def test_the_report_opens_without_errors_and_requests(chromium: Browser, file: Path) -> None:
    with open_page(chromium, file.as_uri()) as (page, errors, requests):
        assert page.title() == "small tagger: evaluation"
        images = page.locator(".images img")
        assert images.evaluate_all("all => all.map(one => one.naturalWidth)") == [64] * 12
        assert not errors
        assert requests == [file.as_uri()]


def names(page: Page) -> list[str]:
    return page.locator("#tag-table tbody th").all_inner_texts()


def test_tags_are_sorted_by_a_column(chromium: Browser, content: ReportContent, file: Path) -> None:
    with open_page(chromium, file.as_uri()) as (page, _, _):
        assert names(page) == [row[0] for row in content.tags]
        head = page.locator("#tag-table th", has_text="F1")
        f1 = tables.TAG_HEADER.index("f1")
        for direction, sign in (("descending", -1), ("ascending", 1)):
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == direction
            by_f1 = sorted(content.tags, key=lambda row: sign * round(row[f1], 3))
            assert names(page) == [row[0] for row in by_f1]
        page.locator("#tag-table th button").first.press("Enter")
        assert names(page) == [f"tag_{number}" for number in range(30)]
        assert page.locator("[aria-sort]").all_inner_texts() == ["Tag"]


def test_tags_are_found_by_name_and_category(chromium: Browser, file: Path) -> None:
    with open_page(chromium, file.as_uri()) as (page, _, _):
        page.get_by_label("Find a tag").fill("Tag 1")
        assert names(page) == ["tag_1", *(f"tag_{number}" for number in range(10, 20))]
        assert page.get_by_role("status").inner_text() == "11 of 30 tags"
        page.get_by_role("combobox").select_option("rating")
        assert names(page) == ["tag_1"]
        page.get_by_label("Find a tag").fill("no such tag")
        assert names(page) == []


def test_hostile_names_stay_text_in_the_sorted_table(
    chromium: Browser, content: ReportContent
) -> None:
    rows = hostile(content)
    text = html_page.render(rows)
    with open_page(chromium, "about:blank") as (page, errors, requests):
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.set_content(text)
        page.locator("#tag-table th button").first.click()
        shown = page.locator("#tag-table tbody th").evaluate_all("all => all.map(e => e.innerText)")
        assert len(shown) == 30
        assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3]} <= set(shown)
        page.get_by_label("Find a tag").fill("<SCRIPT>")
        assert names(page) == [HOSTILE[0]]
        assert page.locator("script").count() == 1
        assert not errors
        assert requests == []


def test_all_tags_are_shown_without_scripts(chromium: Browser, file: Path) -> None:
    with open_page(chromium, file.as_uri(), scripts=False) as (page, _, _):
        assert len(names(page)) == 30
        assert not page.get_by_label("Find a tag").is_visible()


def test_rows_of_ten_thousand_tags_are_added_while_scrolling(
    chromium: Browser, content: ReportContent, tmp_path: Path
) -> None:
    rows = [[f"tag_{n}", *content.tags[n % 30][1:]] for n in range(10_000)]
    html_page.write(tmp_path / "many.html", content._replace(tags=rows))
    with open_page(chromium, (tmp_path / "many.html").as_uri()) as (page, errors, _):
        assert len(names(page)) == 200
        assert "3,000 of 10,000 are plotted" in page.content()
        page.locator("#tag-table").evaluate("box => box.scrollTop = box.scrollHeight")
        page.wait_for_function("document.querySelectorAll('#tag-table tbody tr').length === 400")
        page.get_by_label("Find a tag").fill("tag_9999")
        assert names(page) == ["tag_9999"]
        assert not errors


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_enough_contrast(chromium: Browser, file: Path, theme: browser.Theme) -> None:
    with open_page(chromium, file.as_uri(), theme=theme) as (page, _, _):
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        ratios = contrasts(page)
        assert {"small tagger", "tag_3", "posts with the tag in training"} <= ratios.keys()
        assert {text: ratio for text, ratio in ratios.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_the_report_does_not_overflow_its_window(
    chromium: Browser, content: ReportContent, tmp_path: Path, width: int
) -> None:
    html_page.write(tmp_path / "long.html", hostile(content))
    with open_page(chromium, (tmp_path / "long.html").as_uri(), width=width) as (page, _, _):
        assert browser.horizontal_overflow(page) == 0


def test_a_removed_image_is_grey_on_the_contact_sheet(
    split: Split, tags: list[Tag], tmp_path: Path
) -> None:
    labels = split.labels.toarray()
    logits = logit(np.where(labels, 0.9, 0.1)).astype(np.float32)
    store = write_store(RandomPredictions(logits, labels), tmp_path)
    unused: Any = None
    thresholds = np.full(len(tags), 0.5)
    removed = [Location(str(tmp_path / "removed.png"), 0, 8), *split.locations[1:]]
    complete, sheet = (
        SplitInspection("test", store, images, tags, thresholds, unused, WHITE).sheet()
        for images in (split, Split(removed, split.labels))
    )
    box = (12, 34, 12 + 168, 34 + 168)
    assert ImageChops.difference(complete, sheet).getbbox() == box
    assert sheet.crop(box).getcolors() == [(168 * 168, (234, 238, 242))]
