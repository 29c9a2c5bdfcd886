"""infer.py and the page tag every valid image in a folder of malformed ones, and list the others.

Each file is listed once, with a reason, and memory and time are bounded.
"""

import csv
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from support import processes
from support.malformed_images import VALID, MalformedImage
from tagger.images import find_images
from tagger.inference import tables
from tagger.inference.pipeline import PipelineOptions
from tagger.models import load_tagger
from tagger.models.runtimes import Device
from tagger.web.album import Album, Upload, UploadDecoder

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
MEMORY = 300  # MB of infer.py, beside its decoding processes
SECONDS = 60


class Tagging(NamedTuple):
    exit_code: int
    lines: list[str]
    megabytes: int
    seconds: float
    failures: list[dict[str, str]]
    tagged: set[str]  # files, as a table names them


@pytest.fixture(scope="module", params=[0, 2])
def tagging(
    request: pytest.FixtureRequest,
    malformed: list[MalformedImage],
    export_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Tagging:
    """infer.py on the malformed images, decoding by itself or in two more processes."""
    work = tmp_path_factory.mktemp("work")
    memory = work.with_name(f"{work.name}.memory")
    words = [malformed[0].path.parent, "--output", "csv", "--threshold", "0", "--timeout", "20"]
    words += ["--workers", request.param, "--model", export_folder]
    begun = time.monotonic()
    script = ROOT / "tests/support/limited_memory.py"
    process = processes.run(work, script, memory, ROOT / "stages/infer.py", *words)
    seconds = time.monotonic() - begun
    assert {path.name for path in work.iterdir()} == {"infer_failures.csv", "tags.csv"}
    return Tagging(
        process.exit_code,
        process.output.splitlines(),
        int(memory.read_text()),
        seconds,
        read_rows(work / "infer_failures.csv"),
        {row["file"] for row in read_rows(work / "tags.csv")},
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_infer_tags_every_valid_image_and_lists_every_other_file_once(
    tagging: Tagging, malformed: list[MalformedImage]
) -> None:
    folder = malformed[0].path.parent
    paths = [path for path in folder.iterdir() if find_images.is_image_name(path.name)]
    inputs = {tables.encode_path(path) for path in paths if not path.is_dir()}
    assert len(inputs) > 150
    failed = [failure["file"] for failure in tagging.failures]
    assert len(set(failed)) == len(failed)
    assert not tagging.tagged & set(failed)
    assert tagging.tagged | set(failed) == inputs
    expected = {tables.encode_path(file.path): file.expected for file in malformed}
    for name in tagging.tagged:
        assert expected[name] != "unreadable"
    for name in failed:
        assert expected.get(name) != "image"
    assert {tables.encode_path(folder / name) for name in VALID} <= tagging.tagged


def test_infer_gives_each_failure_a_reason_of_one_line_and_counts_them(tagging: Tagging) -> None:
    assert tagging.exit_code == 1
    assert {failure["reason"] for failure in tagging.failures} == {"unreadable image"}
    for failure in tagging.failures:
        assert failure["detail"] and len(failure["detail"].splitlines()) == 1, failure
        assert "took more than" not in failure["detail"]
    assert len(tagging.lines) == 2, tagging.lines
    assert tagging.lines[0].startswith(f"tagged: {len(tagging.tagged):,} images")
    expected = f"failed: {len(tagging.failures):,} images, see infer_failures.csv"
    assert tagging.lines[1] == expected


def test_infer_takes_bounded_memory_and_time(tagging: Tagging) -> None:
    assert tagging.megabytes < MEMORY
    assert tagging.seconds < SECONDS


def test_the_page_tags_every_valid_upload_and_lists_every_other_one_once(
    malformed: list[MalformedImage], export_folder: Path, tmp_path: Path
) -> None:
    uploads = []
    for number, file in enumerate(file for file in malformed if file.path.is_file()):
        copy = tmp_path / "uploads" / str(number)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file.path, copy)
        uploads.append(Upload(copy, f"{number} {file.path.name}"))
    (tmp_path / "album").mkdir()
    album = Album(tmp_path / "album")
    options, decoder = PipelineOptions(None, 2, 20), UploadDecoder(64, 100)
    *_, done = album.add(uploads, load_tagger(export_folder, Device("cpu")), options, decoder)
    assert done == len(uploads) > 150
    tagged = [image.name for image in album.images]
    failed = [failure.file for failure in album.failures]
    assert len({*tagged, *failed}) == len(tagged) + len(failed) == len(uploads)
    assert sum(name.endswith(VALID) for name in tagged) == len(VALID)
    assert all(len(failure.detail.splitlines()) == 1 for failure in album.failures)
    assert not list((tmp_path / "uploads").iterdir())
    assert {path.suffix for path in album.folder.iterdir()} == {".jpg"}
    assert len(list(album.folder.iterdir())) == len(tagged)
