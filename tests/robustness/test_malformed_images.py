"""Malformed images cost themselves alone: each opens as RGB or has a reason, in little time.

The same in the decoder, in `prepare` and in training.
"""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from support import malformed_images
from support.malformed_images import MalformedImage
from tagger.core.location import Location
from tagger.data import verify
from tagger.images import decode, find_images, loader
from tagger.images.dataset import ImageDataset, SampleKey, Split
from tagger.images.loader import Batch, ResumableBatchSampler
from tagger.images.preprocess import Preprocess

pytestmark = pytest.mark.timeout(60)

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STAGES = Path(__file__).parents[2] / "stages"
LARGEST = 5000 * 4800  # pixels, more than any of the images has


@pytest.fixture
def strict_warnings() -> None:
    """Make any warning that still escapes an error."""
    decode.init_process()


@pytest.fixture(scope="module")
def readable(malformed: list[MalformedImage]) -> list[bool]:
    with warnings.catch_warnings():
        decode.init_process()
        return [isinstance(open_image(file.location), tuple) for file in malformed]


@pytest.fixture(scope="module")
def posts(malformed: list[MalformedImage]) -> Split:
    """Each file as a post with a tag that no other has."""
    labels = csr_array(np.eye(len(malformed), dtype=np.bool_))
    return Split([file.location for file in malformed], labels)


def open_image(file: Path | Location) -> tuple[int, int] | str:
    """Return the size of an image, or the reason why it is unreadable."""
    try:
        image = decode.open_rgb(file)
    except decode.Unreadable as error:
        return str(error)
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return image.size


def find(files: list[MalformedImage], name: str) -> MalformedImage:
    (file,) = [file for file in files if file.path.name == name]
    return file


def test_malformed_images_are_many_and_the_same_each_time(
    malformed: list[MalformedImage], tmp_path: Path
) -> None:
    assert len(malformed) >= 150
    assert len({file.path for file in malformed}) == len(malformed)
    begun = time.monotonic()
    again = malformed_images.write_all(tmp_path / "again")
    assert time.monotonic() - begun < 10
    for file, other in zip(malformed, again, strict=True):
        assert (file.name, file.expected) == (other.name, other.expected)
        if file.path.is_file():
            assert file.path.read_bytes() == other.path.read_bytes(), file.name


@pytest.mark.usefixtures("strict_warnings")
@pytest.mark.parametrize("by_location", [False, True])
def test_each_file_is_an_image_or_has_a_reason_of_one_line(
    malformed: list[MalformedImage], by_location: bool
) -> None:
    wrong = {}
    for file in malformed:
        begun = time.monotonic()
        opened = open_image(file.location if by_location else file.path)
        seconds = time.monotonic() - begun
        if isinstance(opened, tuple):
            sane = min(opened) >= 1 and opened[0] * opened[1] <= LARGEST
        else:
            sane = len(opened.splitlines()) == 1 and opened == opened.strip()
        outcome = "image" if isinstance(opened, tuple) else "unreadable"
        if not sane or file.expected not in ("either", outcome) or seconds > 10:
            wrong[file.name] = (file.expected, opened, seconds)
    assert not wrong


def test_without_init_process_some_images_would_warn(malformed: list[MalformedImage]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for file in malformed:
            open_image(file.path)
    assert {warning.category for warning in caught} == {UserWarning}
    sources = {Path(warning.filename).name for warning in caught}
    assert sources == {"TiffImagePlugin.py", "JpegImagePlugin.py"}


@pytest.mark.usefixtures("strict_warnings")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open a file of mode 0")
def test_root_reads_a_file_without_permissions(malformed: list[MalformedImage]) -> None:
    assert open_image(find(malformed, "forbidden.png").path) == (64, 48)


def test_decompression_bombs_are_refused_before_they_take_memory(
    malformed: list[MalformedImage],
) -> None:
    bombs = [str(file.path) for file in malformed if file.name.startswith(("'bomb", "'cut"))]
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
    process = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(STAGES)}, capture_output=True, check=True
    )
    kilobytes, seconds = map(float, process.stdout.split())
    assert kilobytes < 150_000  # the profile alone would be 80 MB, each other gigabytes
    assert seconds < 10


def open_in_a_thread(file: Path | Location, pipe: Path) -> list[object]:
    """Return what opening a pipe gave within two seconds, or nothing if it still waits."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(open_image(file)), daemon=True)
    thread.start()
    thread.join(2)
    in_time = list(results)
    if thread.is_alive():  # a writer that comes and goes ends the wait
        os.close(os.open(pipe, os.O_WRONLY))
        thread.join(10)
        assert not thread.is_alive()
    return in_time


@pytest.mark.usefixtures("strict_warnings")
@pytest.mark.parametrize("by_location", [False, True])
def test_a_named_pipe_is_unreadable(malformed: list[MalformedImage], by_location: bool) -> None:
    pipe = find(malformed, malformed_images.NAMED_PIPE).path
    assert open_in_a_thread(Location(str(pipe), 0, 8) if by_location else pipe, pipe)


def test_a_scan_of_folders_skips_named_pipes_and_folders(malformed: list[MalformedImage]) -> None:
    scan = find_images.scan_folders(malformed[0].path.parent)
    names = {entry.name for folder in scan for entry in folder.images}
    assert malformed_images.NAMED_PIPE not in names
    assert "folder.jpg" not in names
    assert {"forbidden.png", "link.png", "dangling.png"} <= names


def test_one_image_of_a_spider_stack_is_unreadable(malformed: list[MalformedImage]) -> None:
    assert isinstance(open_image(find(malformed, malformed_images.SPIDER).path), str)


def test_reasons_are_the_same_each_time() -> None:
    with pytest.raises(decode.Unreadable) as caught:
        decode.open_rgb(b"no picture")
    assert "object at 0x" not in str(caught.value)


def read_batches(posts: Split, *, workers: int, replace_unreadable: bool = False) -> list[Batch]:
    images = ImageDataset(posts, PREPROCESS, replace_unreadable=replace_unreadable)
    sampler = ResumableBatchSampler(len(posts), 32)
    return list(loader.build_loader(images, sampler, workers=workers))


@pytest.mark.usefixtures("strict_warnings")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_skips_and_reports_unreadable_images_only(
    posts: Split, readable: list[bool], workers: int
) -> None:
    batches = read_batches(posts, workers=workers)
    rows = [row for batch in batches for row in batch.rows]
    failures = dict(failure for batch in batches for failure in batch.failures)
    assert rows == np.flatnonzero(readable).tolist()
    assert sorted([*rows, *failures]) == list(range(len(posts)))
    assert all(reason and "\n" not in reason for reason in failures.values())
    for batch in batches:
        assert np.array_equal(batch.targets, posts.labels[batch.rows].toarray())


@pytest.mark.usefixtures("strict_warnings")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_an_unreadable_image_by_the_next_readable_one(
    posts: Split, readable: list[bool], malformed: list[MalformedImage], workers: int
) -> None:
    batches = read_batches(posts, workers=workers, replace_unreadable=True)
    good = np.flatnonzero(readable)
    sources = [int(good[np.searchsorted(good, row) % len(good)]) for row in range(len(posts))]
    assert [row for batch in batches for row in batch.rows] == sources
    failed = {row for batch in batches for row, _ in batch.failures}
    assert failed == set(range(len(posts))) - set(good.tolist())
    pixels = np.concatenate([batch.pixels for batch in batches])
    for row, source in enumerate(sources):
        if row == source:
            expected = PREPROCESS.to_square(decode.open_rgb(malformed[row].path))
            assert np.array_equal(pixels[row], expected), malformed[row].name
        else:
            assert np.array_equal(pixels[row], pixels[source])


@pytest.mark.usefixtures("strict_warnings")
def test_training_gives_up_after_a_hundred_unreadable_images_in_a_row(tmp_path: Path) -> None:
    locations = [Location(str(tmp_path / "none"), 0, 8)] * 120
    missing = Split(locations, csr_array((120, 1), dtype=np.bool_))
    sample = ImageDataset(missing, PREPROCESS, replace_unreadable=True)[SampleKey(0, 50)]
    assert sample.pixels is None
    assert [row for row, _ in sample.failures] == [*range(50, 120), *range(30)]


@pytest.mark.usefixtures("strict_warnings")
def test_prepare_rejects_the_images_that_training_cannot_read(
    posts: Split, malformed: list[MalformedImage], readable: list[bool]
) -> None:
    utf8 = [row for row, file in enumerate(malformed) if "\udcff" not in str(file.path)]
    locations = [posts.locations[row] for row in utf8]
    decoded = verify.verify_images(locations, level="decode", animated="first").to_pylist()
    assert [row["reason"] is None for row in decoded] == [readable[row] for row in utf8]
    assert all((row["detail"] or "x").splitlines() == [row["detail"] or "x"] for row in decoded)
    headers = verify.verify_images(locations, level="header", animated="drop").to_pylist()
    assert all(row["width"] or row["reason"] for row in headers)
    animated = {
        malformed[utf8[i]].name for i, row in enumerate(headers) if row["reason"] == "animated"
    }
    assert animated == {f"'moving.{form}'" for form in ("gif", "webp", "png", "tiff", "avif")}
