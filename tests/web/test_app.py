"""The page in a browser: dropped images, tags, captions, maps; no other file can be read."""

import csv
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

import app
from support import browser as browsers
from support.browser import OpenedPage
from support.image_bytes import encode, gradient_image, png
from tagger.core import errors
from tagger.core.colours import Colour
from tagger.core.vocabulary import Tag, count_categories
from tagger.images.decode import Pixels
from tagger.inference.pipeline import PipelineOptions
from tagger.models import load_tagger
from tagger.models.runtimes import Device
from tagger.web import album
from tagger.web.album import Album, Upload, UploadDecoder

pytestmark = pytest.mark.timeout(240)

# Gradio's own script logs it after each upload.
GRADIO_ERROR = "Method not implemented."


class Site(NamedTuple):
    address: str
    folder: Path  # for temporary files
    calls: list[str]  # requests to other machines


@contextmanager
def serve_page(root: Path, folder: Path, *arguments: object) -> Iterator[Site]:
    """Serve the page; requests to other machines are recorded instead."""
    folder.mkdir()
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=record_calls, args=(listener, calls), daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy)
        command = [sys.executable, str(root / "stages" / "app.py"), "--port", "0"]
        with subprocess.Popen(
            [*command, *map(str, arguments)],
            env=os.environ | proxies | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            try:
                lines = iter(process.stdout.readline, "")
                address = next(line.strip() for line in lines if line.startswith("http"))
                yield Site(address, folder, calls)
            finally:
                process.send_signal(signal.SIGTERM)
        assert process.returncode == 0
        assert not list(folder.iterdir())


def record_calls(listener: socket.socket, calls: list[str]) -> None:
    while True:
        try:
            with listener.accept()[0] as connection:
                calls.append(connection.recv(200).decode("latin-1"))
        except OSError:
            return


@pytest.fixture(scope="module")
def site(
    root: Path, export_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site") / "tmp"
    options = ("--max-upload", 1, "--max-pixels", 1)
    with serve_page(root, folder, "--model", export_folder, *options) as site:
        yield site


expect.set_options(timeout=30_000)  # other work slows a machine at times


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


@contextmanager
def open_site(browser: Browser, site: Site, width: int = 1280) -> Iterator[Page]:
    """Yield the page; afterwards no script has failed, and no other machine was asked."""
    with browsers.open_page(browser, site.address, width=width) as opened:
        opened.page.set_default_timeout(30_000)
        opened.page.locator("input[type=file]").wait_for(state="attached")
        yield opened.page
        check_requests(opened, site)


def check_requests(opened: OpenedPage, site: Site) -> None:
    streams = [url for url in opened.requests if "/queue/data?" in url]
    assert len(streams) == 1  # of answers: a question asked while one closes is lost
    assert [error for error in opened.errors if error != GRADIO_ERROR] == []
    own_urls = (f"{site.address}/", f"blob:{site.address}/")
    assert [url for url in opened.requests if not url.startswith(own_urls)] == []
    assert site.calls == []


def drop(page: Page, *files: Path) -> None:
    """Drop images, and wait for the first tag; once more if the page was not yet listening."""
    for seconds in (60, 120):
        page.set_input_files("input[type=file]", [str(file) for file in files])
        with suppress(AssertionError):
            expect(page.locator("#tags .tag").first).to_be_visible(timeout=1_000 * seconds)
            return
    raise AssertionError("no tag is shown")


def caption(page: Page) -> str:
    return page.locator("#caption textarea").input_value()


def download_zip(page: Page) -> dict[str, str]:
    """Return the files of the zip that is downloaded."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    content = Path(download.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_captions_and_sidecars_equal_those_of_infer(
    browser: Browser,
    site: Site,
    image_folder: Path,
    run_infer: Callable[..., int],
) -> None:
    image_folder.joinpath("b.png").rename(image_folder / "b_(c).猫.png")
    files = sorted(image_folder.glob("*.png"))
    with open_site(browser, site) as page:
        drop(page, *files)
        run_infer(image_folder, "--output", "txt")
        expected = {path.name: path.read_text() for path in image_folder.glob("*.txt")}
        assert len(expected) == 3
        assert download_zip(page) == expected
        assert caption(page) + "\n" == expected["a.txt"]
        page.get_by_label("set by me").check()
        for name, threshold in (("General", "0.45"), ("Artist", "0.8")):
            number_of(page, name).fill(threshold)
        page.get_by_label("Spaces for").check()
        page.get_by_label("Escape").check()
        options = ["--spaces", "--escape-parentheses", "--overwrite"]
        run_infer(image_folder, "--output", "txt", "--threshold", slider_thresholds(page), *options)
        again = {path.name: path.read_text() for path in image_folder.glob("*.txt")}
        assert again != expected
        expect(page.locator("#caption textarea")).to_have_value(again["a.txt"].rstrip("\n"))
        assert download_zip(page) == again


def number_of(page: Page, category: str) -> Locator:
    return page.get_by_label(f"number input for {category}", exact=True)


def slider_thresholds(page: Page) -> str:
    """Return the thresholds of the sliders, as infer.py takes them."""
    names = ("Rating", "General", "Character", "Copyright", "Artist", "Meta")
    numbers = {name.lower(): number_of(page, name) for name in names}
    shown = {name: number for name, number in numbers.items() if number.count()}
    assert {"rating", "general", "artist"} <= set(shown)
    return ",".join(f"{name}={number.input_value()}" for name, number in shown.items())


def test_slider_changes_the_tags_of_its_category(
    browser: Browser, site: Site, image_folder: Path, tags: list[Tag]
) -> None:
    with open_site(browser, site) as page:
        drop(page, image_folder / "a.png")
        page.get_by_label("set by me").check()
        general = page.locator("#tags section[data-category=general] .tag")
        others = page.locator("#tags section:not([data-category=general]) .tag")
        number_of(page, "General").fill("0")
        expect(general).to_have_count(count_categories(tags)["general"])
        confidences = [float(text) for text in general.locator("output").all_inner_texts()]
        assert confidences == sorted(confidences, reverse=True)
        before = others.count()
        number_of(page, "General").fill(f"{confidences[2]:.2f}")
        expect(general).to_have_count(
            sum(value >= round(confidences[2], 2) for value in confidences)
        )
        number_of(page, "General").fill("1")
        expect(general).to_have_count(0)
        assert others.count() == before
        page.get_by_label("its category's").check()  # fitted: 0.5 for all
        expect(general).to_have_count(sum(value >= 0.5 for value in confidences))


@pytest.fixture
def bad_files(tmp_path: Path) -> list[Path]:
    """Files that cannot be tagged: text, cut off, too large, a bomb, a name with a script."""
    folder = tmp_path / "bad"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    contents = {
        "text.png": b"1girl, solo",
        "<img src=x onerror=alert(1)>.png": b"",
        "cut.jpg": encode(gradient_image(), "JPEG")[:300],
        "heavy.png": encode(Image.fromarray(noise), "PNG"),  # 1.5 MB
        "wide.png": png(2000, 1000, 8, 2, b""),  # 2 million pixels by its header
        "bomb.png": png(60_000, 60_000, 8, 2, b""),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_unreadable_images_are_listed_and_the_others_tagged(
    browser: Browser, site: Site, image_folder: Path, bad_files: list[Path]
) -> None:
    others = set(site.folder.rglob("*.jpg"))  # of earlier visitors
    with open_site(browser, site) as page:
        drop(page, bad_files[0], image_folder / "a.png", *bad_files[1:], image_folder / "b.png")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("Not read: 6 of 8")
        rows = {row.split(": ")[0]: row for row in alert.locator("li").all_inner_texts()}
        assert list(rows) == [path.name for path in bad_files]
        assert "1.5 MB are more than the 1 MB allowed" in rows["heavy.png"]
        assert "2000000 pixels) exceeds limit of 1000000 pixels" in rows["wide.png"]
        downloaded = download_zip(page)
        assert sorted(downloaded) == ["a.txt", "b.txt", "infer_failures.csv"]
        table = list(csv.DictReader(io.StringIO(downloaded["infer_failures.csv"])))
        assert [row["file"] for row in table] == [path.name for path in bad_files]
        assert {row["reason"] for row in table} == {"unreadable image"}
        drop(page, image_folder / "c.png")  # the page goes on, and keeps its images
        expect(page.locator("#gallery .thumbnail-item")).to_have_count(3)
        assert len(download_zip(page)) == 4
        left = [path for path in site.folder.rglob("*") if path.is_file()]
        uploads = {path.read_bytes() for path in (*bad_files, *image_folder.glob("*.png"))} - {b""}
        assert left
        assert not [path for path in left if path.read_bytes() in uploads]
        page.get_by_role("button", name="Start over").click()
        expect(page.locator("#tags")).to_be_hidden()
        expect(alert).to_have_count(0)
        assert set(site.folder.rglob("*.jpg")) == others


def test_images_dropped_during_tagging_wait_for_their_turn(
    browser: Browser, site: Site, image_folder: Path
) -> None:
    with open_site(browser, site) as page:
        with page.expect_response("**/queue/join**"):
            page.set_input_files("input[type=file]", str(image_folder / "a.png"))
        drop(page, image_folder / "b.png")
        expect(page.locator("#gallery .thumbnail-item")).to_have_count(2)


def test_images_with_the_same_stem_have_a_sidecar_each(
    browser: Browser, site: Site, image_folder: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "twin" / "a.png"
    twin.parent.mkdir()
    shutil.copyfile(image_folder / "b.png", twin)
    Image.open(image_folder / "c.png").save(image_folder / "a.webp")
    with open_site(browser, site) as page:
        drop(page, image_folder / "a.png", image_folder / "a.webp", twin, image_folder / "c.png")
        assert set(download_zip(page)) == {"a.png.txt", "a.webp.txt", "a.png (2).txt", "c.txt"}


def test_sidecar_names_differ_on_any_system() -> None:
    names = ["a.png", "A.PNG", "a.webp", "a.png.jpg", "b.png", "b.png", "b.png", "c"]
    sidecars = album.sidecar_names(names)
    assert len({name.casefold() for name in sidecars}) == len(names)
    assert sidecars[3:5] == ["a.png (3).txt", "b.png.txt"]
    assert sidecars[-1] == "c.txt"


class DyingDecoder(UploadDecoder):
    """Die of one image, as a decoder does."""

    def __call__(self, path: Path, background: Colour) -> Pixels:
        if path.read_bytes() == b"deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(path, background)


def test_image_that_kills_its_decoder_costs_only_itself(
    export_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "b.png").write_bytes(b"deadly")
    visited = Album(tmp_path)
    uploads = [Upload(path, path.name) for path in sorted(image_folder.glob("*.png"))]
    done = visited.add(
        uploads,
        load_tagger(export_folder, Device("cpu")),
        PipelineOptions(None, 1, 60),
        DyingDecoder(9, 9),
    )
    assert list(done)[-1] == 3
    assert [image.name for image in visited.images] == ["a.png", "c.png"]
    (failure,) = visited.failures
    assert failure.file == "b.png"
    assert "was killed" in failure.detail
    assert not list(image_folder.glob("*.png"))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\x.png", "x.png"),
        ("a\nb\0\ud800.png", "a_b__.png"),
        ("", "image"),
        ("saber_(fate) 猫.png", "saber_(fate) 猫.png"),
    ],
)
def test_safe_name_stays_inside_the_zip(name: str, safe: str) -> None:
    assert album.safe_name(name) == safe


def test_selected_tag_shows_where_the_model_looks(
    browser: Browser, site: Site, image_folder: Path
) -> None:
    with open_site(browser, site) as page:
        drop(page, image_folder / "a.png", image_folder / "b.png")
        image = page.locator("#image img")
        plain = image.get_attribute("src") or ""
        tag = page.locator("button.tag").nth(1)
        tag.click()
        expect(tag).to_have_attribute("aria-pressed", "true", timeout=60_000)  # torch is loaded
        expect(page.locator("#hint")).to_contain_text(tag.get_attribute("data-tag") or "none")
        expect(image).not_to_have_attribute("src", plain)
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") == 64
        tag.click()
        expect(image).to_have_attribute("src", plain)
        expect(tag).to_have_attribute("aria-pressed", "false")
        page.locator("#gallery .thumbnail-item").nth(1).click()
        expect(image).not_to_have_attribute("src", plain)


def test_narrow_page_fits_and_is_readable(browser: Browser, site: Site, image_folder: Path) -> None:
    with open_site(browser, site, width=390) as page:
        assert browsers.horizontal_overflow(page) <= 0
        drop(page, *sorted(image_folder.glob("*.png")))
        page.get_by_label("set by me").check()
        expect(number_of(page, "General")).to_be_visible()
        assert browsers.horizontal_overflow(page) <= 0
        assert page.locator("footer").count() == 0 or page.locator("footer").is_hidden()
        texts = "h1, header p, h3, .tag .name, .tag output, .hint"
        assert min(browsers.contrasts(page, texts).values()) > 4.5


def test_model_without_weights_has_no_maps_in_chinese(
    browser: Browser, root: Path, export_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    missing = shutil.ignore_patterns("*.safetensors", "thresholds.csv")
    shutil.copytree(export_folder, bare, ignore=missing)
    arguments = ("--model", bare, "--lang", "zh")
    with serve_page(root, tmp_path / "tmp", *arguments) as site, open_site(browser, site) as page:
        expect(page.locator("h1")).to_have_text("给插画打标签")
        content = "element => getComputedStyle(element, '::after').content"
        assert "拖到这里" in page.locator("#drop .wrap").last.evaluate(content)
        drop(page, image_folder / "a.png")
        assert page.locator("button.tag").count() == 0
        expect(page.locator("#hint")).to_contain_text("model.safetensors")
        expect(page.get_by_label("所属类别的")).to_have_count(0)  # none were fitted
        expect(page.get_by_label("自己设定")).to_be_visible()


def test_visitor_reads_no_other_file_and_triggers_no_request(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        for path in ("/etc/passwd", str(secret), "http://example.org/a.png"):
            assert client.get(f"/gradio_api/file={path}").status_code == 403
        assert client.get("/gradio_api/proxy=http://example.org/").status_code == 403
        assert client.get("/", headers={"Host": "example.org"}).status_code == 403
        for path in ("/docs", "/openapi.json", "/gradio_api/runs"):
            assert client.get(path).status_code in (403, 404)
        assert client.get("/monitoring").status_code == 403
        config = client.get("/config").json()
        upload = next(d for d in config["dependencies"] if d["targets"][0][1] == "upload")
        file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
        assert "not uploaded by a user" in join_queue(client, upload, file)
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(0)
            file["path"] = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
            assert "is an address" in join_queue(client, upload, file)
            with pytest.raises(BlockingIOError):
                other.accept()
    assert secret.exists()
    assert site.calls == []


def join_queue(client: httpx.Client, upload: dict[str, Any], file: dict[str, Any]) -> str:
    """Return the answer to a file that is named as if it had been dropped."""
    data: list[Any] = [None] * len(upload["inputs"])
    data[1] = [file]
    body = {"fn_index": upload["id"], "data": data, "session_hash": file["path"][-9:]}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    session = {"session_hash": body["session_hash"]}
    with client.stream("GET", "/gradio_api/queue/data", params=session, timeout=30) as lines:
        return next(line for line in lines.iter_lines() if "process_completed" in line)


def test_far_too_large_upload_is_refused_before_it_is_complete(site: Site) -> None:
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        large = {"files": ("a.png", bytes(9_000_000))}
        assert client.post("/gradio_api/upload", files=large).status_code == 413
        smaller = {"files": ("a.png", bytes(2_000_000))}
        assert client.post("/gradio_api/upload", files=smaller).status_code == 200


def test_taken_port_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended, errors.exit_on_error():
            app.main(["--port", port])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: 127.0.0.1:{port}: Address already in use. Name another --port, or another --host."
    )


@pytest.mark.parametrize("wrong", [["--port", "65536"], ["--max-pixels", "0"], ["--lang", "fr"]])
def test_invalid_option_is_one_error_line(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        app.main(wrong)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_missing_gradio_is_one_error_line(root: Path) -> None:
    stages = root / "stages"
    code = (
        "import runpy, sys; sys.modules['gradio'] = None; sys.argv = ['app.py', '--port', '0']; "
        f"runpy.run_path({str(stages / 'app.py')!r}, run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(stages)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "error: The page needs gradio, which is missing: pip install -r stages/app-requirements.txt"
    ]
