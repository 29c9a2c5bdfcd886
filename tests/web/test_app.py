"""The page in a browser: pictures dropped, tags, captions, maps, and nothing else let out."""

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

# What Gradio's own script says whenever an upload has ended.
GRADIOS = "Method not implemented."


class Site(NamedTuple):
    address: str
    folder: Path  # for temporary files
    calls: list[str]  # what other machines would have been asked


@contextmanager
def served(root: Path, folder: Path, *arguments: object) -> Iterator[Site]:
    """Serve the page; whoever it would call on other machines is this one instead."""
    folder.mkdir()
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener, calls), daemon=True).start()
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


def answer(listener: socket.socket, calls: list[str]) -> None:
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
    limits = ("--max-upload", 1, "--max-pixels", 1)
    with served(root, folder, "--model", export_folder, *limits) as site:
        yield site


expect.set_options(timeout=30_000)  # other work slows a machine at times


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


@contextmanager
def visited(browser: Browser, site: Site, width: int = 1280) -> Iterator[Page]:
    """Yield the page; nobody else was asked for anything, and no script was amiss."""
    with browsers.open_page(browser, site.address, width=width) as opened:
        opened.page.set_default_timeout(30_000)
        opened.page.locator("input[type=file]").wait_for(state="attached")
        yield opened.page
        check(opened, site)


def check(opened: OpenedPage, site: Site) -> None:
    streams = [asked for asked in opened.requests if "/queue/data?" in asked]
    assert len(streams) == 1  # of answers: whatever is asked for while one is closed is lost
    assert [said for said in opened.errors if said != GRADIOS] == []
    here = (f"{site.address}/", f"blob:{site.address}/")
    assert [asked for asked in opened.requests if not asked.startswith(here)] == []
    assert site.calls == []


def drop(page: Page, *files: Path) -> None:
    """Drop pictures, and wait for the first tag; once more where the page was not yet listening."""
    for seconds in (60, 120):
        page.set_input_files("input[type=file]", [str(file) for file in files])
        with suppress(AssertionError):
            expect(page.locator("#tags .tag").first).to_be_visible(timeout=1_000 * seconds)
            return
    raise AssertionError("no tag is shown")


def caption(page: Page) -> str:
    return page.locator("#caption textarea").input_value()


def zipped(page: Page) -> dict[str, str]:
    """Return what is downloaded: the files of the zip."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    content = Path(download.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_captions_and_sidecars_are_those_of_infer(
    browser: Browser,
    site: Site,
    image_folder: Path,
    run_infer: Callable[..., int],
) -> None:
    image_folder.joinpath("b.png").rename(image_folder / "b_(c).猫.png")
    files = sorted(image_folder.glob("*.png"))
    with visited(browser, site) as page:
        drop(page, *files)
        run_infer(image_folder, "--output", "txt")
        expected = {path.name: path.read_text() for path in image_folder.glob("*.txt")}
        assert len(expected) == 3
        assert zipped(page) == expected
        assert caption(page) + "\n" == expected["a.txt"]
        page.get_by_label("set by me").check()
        for name, limit in (("General", "0.45"), ("Artist", "0.8")):
            number_of(page, name).fill(limit)
        page.get_by_label("Spaces for").check()
        page.get_by_label("Escape").check()
        own = ["--spaces", "--escape-parentheses", "--overwrite"]
        run_infer(image_folder, "--output", "txt", "--threshold", own_limits(page), *own)
        again = {path.name: path.read_text() for path in image_folder.glob("*.txt")}
        assert again != expected
        expect(page.locator("#caption textarea")).to_have_value(again["a.txt"].rstrip("\n"))
        assert zipped(page) == again


def number_of(page: Page, category: str) -> Locator:
    return page.get_by_label(f"number input for {category}", exact=True)


def own_limits(page: Page) -> str:
    """Return the limits that the sliders stand at, as infer.py takes them."""
    names = ("Rating", "General", "Character", "Copyright", "Artist", "Meta")
    numbers = {name.lower(): number_of(page, name) for name in names}
    there = {name: number for name, number in numbers.items() if number.count()}
    assert {"rating", "general", "artist"} <= set(there)
    return ",".join(f"{name}={number.input_value()}" for name, number in there.items())


def test_a_moved_slider_changes_the_tags_of_its_category(
    browser: Browser, site: Site, image_folder: Path, tags: list[Tag]
) -> None:
    with visited(browser, site) as page:
        drop(page, image_folder / "a.png")
        page.get_by_label("set by me").check()
        general = page.locator("#tags section[data-category=general] .tag")
        others = page.locator("#tags section:not([data-category=general]) .tag")
        number_of(page, "General").fill("0")
        expect(general).to_have_count(count_categories(tags)["general"])
        sure = [float(text) for text in general.locator("output").all_inner_texts()]
        assert sure == sorted(sure, reverse=True)
        before = others.count()
        number_of(page, "General").fill(f"{sure[2]:.2f}")
        expect(general).to_have_count(sum(one >= round(sure[2], 2) for one in sure))
        number_of(page, "General").fill("1")
        expect(general).to_have_count(0)
        assert others.count() == before
        page.get_by_label("its category's").check()  # fitted: 0.5 for all
        expect(general).to_have_count(sum(one >= 0.5 for one in sure))


@pytest.fixture
def bad(tmp_path: Path) -> list[Path]:
    """Files that cannot be tagged: no picture, cut off, too large, a bomb, a name for a script."""
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


def test_bad_pictures_are_listed_and_the_others_tagged(
    browser: Browser, site: Site, image_folder: Path, bad: list[Path]
) -> None:
    others = set(site.folder.rglob("*.jpg"))  # of visitors before
    with visited(browser, site) as page:
        drop(page, bad[0], image_folder / "a.png", *bad[1:], image_folder / "b.png")
        told = page.get_by_role("alert")
        expect(told).to_contain_text("Not read: 6 of 8")
        rows = {row.split(": ")[0]: row for row in told.locator("li").all_inner_texts()}
        assert list(rows) == [path.name for path in bad]
        assert "1.5 MB are more than the 1 MB allowed" in rows["heavy.png"]
        assert "2000000 pixels) exceeds limit of 1000000 pixels" in rows["wide.png"]
        found = zipped(page)
        assert sorted(found) == ["a.txt", "b.txt", "infer_failures.csv"]
        listed = list(csv.DictReader(io.StringIO(found["infer_failures.csv"])))
        assert [row["file"] for row in listed] == [path.name for path in bad]
        assert {row["reason"] for row in listed} == {"unreadable image"}
        drop(page, image_folder / "c.png")  # it lives on, and keeps what was there
        expect(page.locator("#gallery .thumbnail-item")).to_have_count(3)
        assert len(zipped(page)) == 4
        left = [path for path in site.folder.rglob("*") if path.is_file()]
        uploads = {path.read_bytes() for path in (*bad, *image_folder.glob("*.png"))} - {b""}
        assert left
        assert not [path for path in left if path.read_bytes() in uploads]
        page.get_by_role("button", name="Start over").click()
        expect(page.locator("#tags")).to_be_hidden()
        expect(told).to_have_count(0)
        assert set(site.folder.rglob("*.jpg")) == others


def test_pictures_dropped_while_others_are_tagged_wait_for_their_turn(
    browser: Browser, site: Site, image_folder: Path
) -> None:
    with visited(browser, site) as page:
        with page.expect_response("**/queue/join**"):
            page.set_input_files("input[type=file]", str(image_folder / "a.png"))
        drop(page, image_folder / "b.png")
        expect(page.locator("#gallery .thumbnail-item")).to_have_count(2)


def test_pictures_of_the_same_stem_have_a_sidecar_each(
    browser: Browser, site: Site, image_folder: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "twin" / "a.png"
    twin.parent.mkdir()
    shutil.copyfile(image_folder / "b.png", twin)
    Image.open(image_folder / "c.png").save(image_folder / "a.webp")
    with visited(browser, site) as page:
        drop(page, image_folder / "a.png", image_folder / "a.webp", twin, image_folder / "c.png")
        assert set(zipped(page)) == {"a.png.txt", "a.webp.txt", "a.png (2).txt", "c.txt"}


def test_no_two_sidecars_share_a_name_on_any_system() -> None:
    names = ["a.png", "A.PNG", "a.webp", "a.png.jpg", "b.png", "b.png", "b.png", "c"]
    found = album.sidecar_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    assert found[3:5] == ["a.png (3).txt", "b.png.txt"]
    assert found[-1] == "c.txt"


class Deadly(UploadDecoder):
    """Dies of one picture, as a decoder does."""

    def __call__(self, path: Path, background: Colour) -> Pixels:
        if path.read_bytes() == b"deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(path, background)


def test_a_picture_that_kills_its_decoder_costs_itself_alone(
    export_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "b.png").write_bytes(b"deadly")
    visit = Album(tmp_path)
    uploads = [Upload(path, path.name) for path in sorted(image_folder.glob("*.png"))]
    done = visit.add(
        uploads,
        load_tagger(export_folder, Device("cpu")),
        PipelineOptions(None, 1, 60),
        Deadly(9, 9),
    )
    assert list(done)[-1] == 3
    assert [picture.name for picture in visit.images] == ["a.png", "c.png"]
    (failure,) = visit.failures
    assert failure.file == "b.png"
    assert "was killed" in failure.detail
    assert not list(image_folder.glob("*.png"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\x.png", "x.png"),
        ("a\nb\0\ud800.png", "a_b__.png"),
        ("", "picture"),
        ("saber_(fate) 猫.png", "saber_(fate) 猫.png"),
    ],
)
def test_a_name_never_leads_out_of_the_zip(given: str, kept: str) -> None:
    assert album.safe_name(given) == kept


def test_a_tag_that_is_chosen_shows_where_the_model_looks(
    browser: Browser, site: Site, image_folder: Path
) -> None:
    with visited(browser, site) as page:
        drop(page, image_folder / "a.png", image_folder / "b.png")
        picture = page.locator("#picture img")
        plain = picture.get_attribute("src") or ""
        tag = page.locator("button.tag").nth(1)
        tag.click()
        expect(tag).to_have_attribute("aria-pressed", "true", timeout=60_000)  # torch is loaded
        expect(page.locator("#hint")).to_contain_text(tag.get_attribute("data-tag") or "none")
        expect(picture).not_to_have_attribute("src", plain)
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") == 64
        tag.click()
        expect(picture).to_have_attribute("src", plain)
        expect(tag).to_have_attribute("aria-pressed", "false")
        page.locator("#gallery .thumbnail-item").nth(1).click()
        expect(picture).not_to_have_attribute("src", plain)


def test_a_narrow_page_fits_and_can_be_read(
    browser: Browser, site: Site, image_folder: Path
) -> None:
    with visited(browser, site, width=390) as page:
        assert browsers.horizontal_overflow(page) <= 0
        drop(page, *sorted(image_folder.glob("*.png")))
        page.get_by_label("set by me").check()
        expect(number_of(page, "General")).to_be_visible()
        assert browsers.horizontal_overflow(page) <= 0
        assert page.locator("footer").count() == 0 or page.locator("footer").is_hidden()
        texts = "h1, header p, h3, .tag .name, .tag output, .hint"
        assert min(browsers.contrasts(page, texts).values()) > 4.5


def test_without_weights_there_are_no_maps_and_chinese_is_spoken(
    browser: Browser, root: Path, export_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    leave = shutil.ignore_patterns("*.safetensors", "thresholds.csv")
    shutil.copytree(export_folder, bare, ignore=leave)
    arguments = ("--model", bare, "--lang", "zh")
    with served(root, tmp_path / "tmp", *arguments) as site, visited(browser, site) as page:
        expect(page.locator("h1")).to_have_text("给插画打标签")
        said = "element => getComputedStyle(element, '::after').content"
        assert "拖到这里" in page.locator("#drop .wrap").last.evaluate(said)
        drop(page, image_folder / "a.png")
        assert page.locator("button.tag").count() == 0
        expect(page.locator("#hint")).to_contain_text("model.safetensors")
        expect(page.get_by_label("所属类别的")).to_have_count(0)  # none were fitted
        expect(page.get_by_label("自己设定")).to_be_visible()


def test_a_visitor_reads_no_other_file_and_sends_the_server_nowhere(
    site: Site, tmp_path: Path
) -> None:
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
        assert "not uploaded by a user" in answered(client, upload, file)
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(0)
            file["path"] = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
            assert "is an address" in answered(client, upload, file)
            with pytest.raises(BlockingIOError):
                other.accept()
    assert secret.exists()
    assert site.calls == []


def answered(client: httpx.Client, upload: dict[str, Any], file: dict[str, Any]) -> str:
    """Return what the page says to a file that is named as if it had been dropped."""
    data: list[Any] = [None] * len(upload["inputs"])
    data[1] = [file]
    body = {"fn_index": upload["id"], "data": data, "session_hash": file["path"][-9:]}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    session = {"session_hash": body["session_hash"]}
    with client.stream("GET", "/gradio_api/queue/data", params=session, timeout=30) as lines:
        return next(line for line in lines.iter_lines() if "process_completed" in line)


def test_an_upload_that_is_far_too_large_is_refused_before_it_is_whole(site: Site) -> None:
    with httpx.Client(base_url=site.address, trust_env=False) as client:
        many = {"files": ("a.png", bytes(9_000_000))}
        assert client.post("/gradio_api/upload", files=many).status_code == 413
        few = {"files": ("a.png", bytes(2_000_000))}
        assert client.post("/gradio_api/upload", files=few).status_code == 200


def test_a_port_that_is_taken_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_a_mistake_ends_with_exit_code_2_and_one_line(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        app.main(wrong)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_gradio_the_way_to_it_is_told(root: Path) -> None:
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
