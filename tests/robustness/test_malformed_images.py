"""The worst files cost themselves alone: each opens as RGB or has a reason, in little time."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from support import malformed_images
from support.malformed_images import MalformedImage
from tagger.core.location import Location
from tagger.images import decode, find_images
from tagger.images.preprocess import Preprocess

pytestmark = pytest.mark.timeout(60)

PREPARED = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STAGES = Path(__file__).parents[2] / "stages"
LARGEST = 5000 * 4800  # pixels, more than any of the pictures has


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[MalformedImage]:
    return malformed_images.write_all(tmp_path_factory.mktemp("nasty") / "files")


@pytest.fixture(scope="module")
def files(everything: list[MalformedImage]) -> list[MalformedImage]:
    return everything


@pytest.fixture
def ready() -> None:
    """Any warning that still escapes is an error."""
    decode.init_process()


def opened(file: Path | Location) -> tuple[int, int] | str:
    """Return the size of a picture, or the reason that there is none."""
    try:
        picture = decode.open_rgb(file)
    except decode.Unreadable as error:
        return str(error)
    assert picture.mode == "RGB"
    assert np.asarray(picture).shape == (picture.height, picture.width, 3)
    return picture.size


def test_there_are_many_nasty_files_the_same_each_time(
    everything: list[MalformedImage], tmp_path: Path
) -> None:
    assert len(everything) >= 150
    assert len({file.path for file in everything}) == len(everything)
    begun = time.monotonic()
    again = malformed_images.write_all(tmp_path / "again")
    assert time.monotonic() - begun < 10
    for file, other in zip(everything, again, strict=True):
        assert (file.name, file.expected) == (other.name, other.expected)
        if file.path.is_file():
            assert file.path.read_bytes() == other.path.read_bytes(), file.name


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("by_place", [False, True])
def test_each_file_is_a_picture_or_has_a_reason_of_one_line(
    files: list[MalformedImage], by_place: bool
) -> None:
    wrong = {}
    for file in files:
        begun = time.monotonic()
        found = opened(file.location if by_place else file.path)
        took = time.monotonic() - begun
        is_picture = isinstance(found, tuple)
        if isinstance(found, tuple):
            sane = min(found) >= 1 and found[0] * found[1] <= LARGEST
        else:
            sane = len(found.splitlines()) == 1 and found == found.strip()
        as_expected = file.expected in ("either", "picture" if is_picture else "unreadable")
        if not sane or not as_expected or took > 10:
            wrong[file.name] = (file.expected, found, took)
    assert not wrong


def test_without_begin_some_files_would_warn(files: list[MalformedImage]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for file in files:
            opened(file.path)
    assert {warning.category for warning in caught} == {UserWarning}
    by = {Path(warning.filename).name for warning in caught}
    assert by == {"TiffImagePlugin.py", "JpegImagePlugin.py"}


@pytest.mark.usefixtures("ready")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open what nobody may read")
def test_root_reads_what_nobody_may(files: list[MalformedImage]) -> None:
    (forbidden,) = [file for file in files if file.name == "forbidden.png"]
    assert opened(forbidden.path) == (64, 48)


def test_bombs_are_refused_before_they_take_memory(files: list[MalformedImage]) -> None:
    bombs = [str(file.path) for file in files if file.name.startswith(("'bomb", "'cut"))]
    assert len(bombs) > 10
    code = """
import resource, sys, time
from pathlib import Path
from tagger.images import decode
decode.init_process()
try: decode.open_rgb(b"x")
except decode.Unreadable: pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.monotonic()
for path in sys.argv[1:]:
    try: decode.open_rgb(Path(path))
    except decode.Unreadable: pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - begun)
"""
    command = [sys.executable, "-c", code, *bombs]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(STAGES)}, capture_output=True, check=True
    )
    kilobytes, seconds = map(float, ended.stdout.split())
    assert kilobytes < 150_000  # the profile alone would be 80 MB, each other gigabytes
    assert seconds < 10


def open_in_a_thread(file: Path | Location, writer: Path) -> list[object]:
    """Return what opening a file gave within two seconds; nothing where it still waits."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(opened(file)), daemon=True)
    thread.start()
    thread.join(2)
    given = list(found)
    if thread.is_alive():  # a writer that comes and goes ends the wait
        os.close(os.open(writer, os.O_WRONLY))
        thread.join(10)
        assert not thread.is_alive()
    return given


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("by_place", [False, True])
def test_a_named_pipe_is_unreadable(everything: list[MalformedImage], by_place: bool) -> None:
    (pipe,) = [file.path for file in everything if file.name == malformed_images.NAMED_PIPE]
    assert open_in_a_thread(Location(str(pipe), 0, 8) if by_place else pipe, pipe)


def test_a_named_pipe_is_never_found_among_pictures(everything: list[MalformedImage]) -> None:
    folder = everything[0].path.parent
    found = {entry.name for one in find_images.scan_folders(folder) for entry in one.images}
    assert malformed_images.NAMED_PIPE not in found
    assert "folder.jpg" not in found
    assert {"forbidden.png", "link.png", "dangling.png"} <= found


def test_one_picture_of_a_spider_stack_is_unreadable(everything: list[MalformedImage]) -> None:
    (spider,) = [file.path for file in everything if file.path.name == malformed_images.SPIDER]
    assert isinstance(opened(spider), str)


def test_reasons_are_the_same_each_time() -> None:
    assert "object at 0x" not in str(opened_bytes(b"no picture"))


def opened_bytes(data: bytes) -> str:
    with pytest.raises(decode.Unreadable) as caught:
        decode.open_rgb(data)
    return str(caught.value)
