"""A folder of the worst files: infer.py tags every good picture, and lists every other one once."""

import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from support import malformed_images
from support.image_bytes import encode, gradient_image
from support.malformed_images import MalformedImage
from tagger.images import find_images
from tagger.inference import tables
from tagger.inference.pipeline import PipelineOptions
from tagger.models import load_tagger
from tagger.models.runtimes import Device
from tagger.web.album import Album, Upload, UploadDecoder

pytestmark = pytest.mark.timeout(300)

INFER = Path(__file__).parents[2] / "stages/infer.py"
GOOD = ("first good.png", "last good.webp")
MEMORY = 300  # MB of infer.py, beside what decodes for it
SECONDS = 60
# As the small process that starts it would count as what it takes, there is one.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


class Ended(NamedTuple):
    code: int
    told: list[str]  # lines on standard error
    memory: int  # MB at most
    seconds: float
    failures: list[dict[str, str]]
    tagged: set[str]  # files, as a table names them


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[MalformedImage]:
    """All nasty files, and two good ones among them."""
    folder = tmp_path_factory.mktemp("nasty") / "files"
    built = malformed_images.write_all(folder)
    for name in GOOD:
        path = folder / name
        path.write_bytes(encode(gradient_image(), path.suffix.removeprefix(".").upper()))
        built.append(MalformedImage(ascii(name), path, "picture"))
    return built


@pytest.fixture(scope="module", params=[0, 2])
def ended(
    request: pytest.FixtureRequest,
    files: list[MalformedImage],
    export_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ended:
    """How infer.py ends, decoding by itself or by two processes more."""
    work = tmp_path_factory.mktemp("work")
    folder = str(files[0].path.parent)
    words = [folder, "--output", "csv", "--threshold", "0", "--workers", str(request.param)]
    words += ["--model", str(export_folder), "--timeout", "20"]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-IS", "-c", MEASURED, sys.executable, str(INFER), *words],
        cwd=work,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)),
    )
    seconds = time.monotonic() - begun
    code, memory = map(int, done.stdout.split())
    with (work / "infer_failures.csv").open(encoding="utf-8", newline="") as file:
        failures = list(csv.DictReader(file))
    with (work / "tags.csv").open(encoding="utf-8", newline="") as file:
        tagged = {row["file"] for row in csv.DictReader(file)}
    assert {path.name for path in work.iterdir()} == {"infer_failures.csv", "tags.csv"}
    return Ended(code, done.stderr.splitlines(), memory, seconds, failures, tagged)


def test_good_pictures_are_tagged_and_every_other_file_is_listed_once(
    ended: Ended, files: list[MalformedImage]
) -> None:
    there = [
        path for path in files[0].path.parent.iterdir() if find_images.is_image_name(path.name)
    ]
    meant = {tables.encode_path(path) for path in there if not path.is_dir()}
    assert len(meant) > 150
    listed = [failure["file"] for failure in ended.failures]
    assert len(set(listed)) == len(listed)
    assert not ended.tagged & set(listed)
    assert ended.tagged | set(listed) == meant
    known = {tables.encode_path(file.path): file.expected for file in files}
    for name in ended.tagged:
        assert known[name] != "unreadable"
    for name in listed:
        assert known.get(name) != "picture"
    assert {tables.encode_path(files[0].path.with_name(name)) for name in GOOD} <= ended.tagged


def test_each_has_a_reason_of_one_line_and_the_end_is_told(ended: Ended) -> None:
    assert ended.code == 1
    assert {failure["reason"] for failure in ended.failures} == {"unreadable image"}
    for failure in ended.failures:
        assert failure["detail"] and len(failure["detail"].splitlines()) == 1, failure
        assert "took more than" not in failure["detail"]
    assert len(ended.told) == 2, ended.told
    assert ended.told[0].startswith(f"tagged: {len(ended.tagged):,} images")
    listed = "see infer_failures.csv"
    assert ended.told[1] == f"failed: {len(ended.failures):,} pictures, {listed}"


def test_memory_and_time_are_bounded(ended: Ended) -> None:
    assert ended.memory < MEMORY
    assert ended.seconds < SECONDS


def test_the_page_tags_every_good_upload_and_lists_every_other_one_once(
    files: list[MalformedImage], export_folder: Path, tmp_path: Path
) -> None:
    uploads = []
    for number, file in enumerate(file for file in files if file.path.is_file()):
        copy = tmp_path / "uploads" / str(number)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file.path, copy)
        uploads.append(Upload(copy, f"{number} {file.path.name}"))
    (tmp_path / "visit").mkdir()
    visit = Album(tmp_path / "visit")
    pace, opening = PipelineOptions(None, 2, 20), UploadDecoder(64, 100)
    *_, done = visit.add(uploads, load_tagger(export_folder, Device("cpu")), pace, opening)
    assert done == len(uploads) > 150
    tagged = [picture.name for picture in visit.images]
    listed = [failure.file for failure in visit.failures]
    assert len({*tagged, *listed}) == len(tagged) + len(listed) == len(uploads)
    assert sum(name.endswith(GOOD) for name in tagged) == len(GOOD)
    assert all(len(failure.detail.splitlines()) == 1 for failure in visit.failures)
    assert not list((tmp_path / "uploads").iterdir())
    assert {path.suffix for path in visit.folder.iterdir()} == {".jpg"}
    assert len(list(visit.folder.iterdir())) == len(tagged)
