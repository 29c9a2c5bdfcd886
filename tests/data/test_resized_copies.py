"""Resized copies look like their originals, lie in indexed tars, and survive interruptions."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from textwrap import dedent
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.data import resized_copies
from tagger.data.hub import shards
from tagger.images import decode

STAGES = Path(__file__).parents[2] / "stages"
IMAGES = 10  # of the interrupted runs
Row = dict[str, Any]


def table(files: dict[str, Path]) -> pa.Table:
    """Return the locations of images by id, as in the manifest."""
    columns: Row = {
        "id": list(files),
        "file": list(map(str, files.values())),
        "shard": pa.nulls(len(files), pa.string()),
        "offset": [0] * len(files),
        "size": [path.stat().st_size if path.exists() else 9 for path in files.values()],
        "modified": [path.stat().st_mtime_ns if path.exists() else 0 for path in files.values()],
    }
    return pa.table(columns)


def write_copies(files: dict[str, Path], folder: Path, **changes: Any) -> list[Row]:
    settings: Row = {"side": 32, "format": "webp", "quality": 90, "shard_size": 10**9} | changes
    copies = resized_copies.write_copies(table(files), folder, **settings)
    assert copies.schema == resized_copies.SCHEMA
    rows: list[Row] = copies.to_pylist()
    return rows


def opened(row: Row) -> Image.Image:
    return decode.open_rgb(Location(row["shard"], row["offset"], row["size"]))


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Draw an image with a gradient."""

    def draw(name: str, width: int, height: int, mode: str = "RGB") -> Path:
        ramp = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp.astype(np.uint8)).convert(mode).save(path)
        return path

    return draw


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_copies_limit_the_shorter_side_and_keep_the_aspect(
    tmp_path: Path, draw: Callable[..., Path], format: str
) -> None:
    sizes = [(64, 48), (48, 64), (300, 40), (33, 33), (32, 500), (20, 10), (1, 1), (1000, 33)]
    files = {f"{w}x{h}.png": draw(f"{w}x{h}.png", w, h) for w, h in sizes}
    rows = write_copies(files, tmp_path / "shards", format=format)
    for (width, height), row in zip(sizes, rows, strict=True):
        shorter = min(width, height)
        scale = min(1.0, 32 / shorter)  # never enlarged
        assert (row["width"], row["height"]) == (round(width * scale), round(height * scale))
        assert opened(row).size == (row["width"], row["height"])
        with Image.open(io.BytesIO(member(row))) as copy:
            assert copy.format == format.upper()


def member(row: Row) -> bytes:
    return decode.read_bytes(Location(row["shard"], row["offset"], row["size"]))


def test_copies_look_like_their_images_upright_and_on_white(tmp_path: Path, demo: Path) -> None:
    turned, clear = tmp_path / "turned.png", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(demo / "0000.png") as image:
        image.convert("RGB").save(turned, exif=exif)
    Image.new("RGBA", (40, 50), (255, 0, 0, 0)).save(clear)
    files = {"turned": turned, "clear": clear, "plain": demo / "0001.png"}
    for path, row in zip(files.values(), write_copies(files, tmp_path / "shards"), strict=True):
        small = decode.open_rgb(path).resize(opened(row).size, Image.Resampling.LANCZOS)
        difference = np.asarray(opened(row)).astype(int) - np.asarray(small)
        assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("shard_size", [1, 3_000, 10**9])
def test_every_copy_is_in_one_tar_with_a_correct_index(
    tmp_path: Path, demo: Path, shard_size: int
) -> None:
    files = {path.name: path for path in sorted(demo.glob("*.png"))}
    rows = write_copies(files, tmp_path / "shards", shard_size=shard_size)
    assert [PurePosixPath(row["file"]).stem for row in rows] == [Path(name).stem for name in files]
    tars = list(dict.fromkeys(row["shard"] for row in rows))
    assert sorted(tars) == tars == sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    assert len(tars) == {1: 24, 10**9: 1}.get(shard_size, len(tars))
    members = {}
    for tar in map(Path, tars):
        index, distrust = shards.open_index(tar)
        assert distrust == ""
        for name, offset, size in zip(index.names, index.offsets, index.sizes, strict=True):
            members[name] = (str(tar), int(offset), int(size))
    assert members == {row["file"]: (row["shard"], row["offset"], row["size"]) for row in rows}
    if 1 < shard_size < 10**9:
        assert 1 < len(tars) < 24
        assert max(Path(tar).stat().st_size for tar in tars) < 12 * shard_size


def test_images_in_tars_have_the_same_copies_as_files(tmp_path: Path, demo: Path) -> None:
    contents = {path.name: path.read_bytes() for path in sorted(demo.glob("*.png"))[:3]}
    shards.write_tar(tmp_path / "0000.tar", contents.items())
    index, _ = shards.open_index(tmp_path / "0000.tar")
    images = table({name: demo / name for name in contents})
    for name, values in (("offset", index.offsets), ("size", index.sizes)):
        images = images.set_column(images.column_names.index(name), name, pa.array(values))
    tar = pa.array([str(tmp_path / "0000.tar")] * 3)
    images = images.set_column(images.column_names.index("shard"), "shard", tar)
    settings: Row = {"side": 32, "format": "webp", "quality": 90, "shard_size": 10**9}
    packed = resized_copies.write_copies(images, tmp_path / "packed", **settings)
    loose = write_copies({name: demo / name for name in contents}, tmp_path / "loose")
    assert [member(row) for row in packed.to_pylist()] == [member(row) for row in loose]


identities = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
paths = st.lists(st.sampled_from(["a", "b", "..", ".", "", "a.png", "a.jpg", "a.b", "é"])).map(
    "/".join
)


@given(st.lists(identities | paths, unique=True, max_size=12), st.sampled_from(["webp", "jpeg"]))
def test_member_names_are_distinct_and_safe_to_unpack(ids: list[str], format: str) -> None:
    names = resized_copies.member_names(ids, format)
    assert len(set(names)) == len(names) == len(ids)
    for name in names:
        path = PurePosixPath(name)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert path.suffix == f".{format}" or path.name == f".{format}"


def test_images_without_a_copy_have_a_reason(tmp_path: Path, draw: Callable[..., Path]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = {
        "good": draw("good.png", 40, 40),
        "broken": tmp_path / "broken.png",
        "gone": tmp_path / "gone.png",
        "long": draw("long.png", 17_000, 8),
        "also good": draw("other.png", 40, 40),
    }
    good, broken, gone, long, other = write_copies(files, tmp_path / "shards")
    for row in (broken, gone, long):
        assert (row["file"], row["shard"], row["width"]) == (None, None, None)
        assert row["reason"] == "unreadable image"
        assert row["detail"] and "\n" not in row["detail"]
    assert gone["detail"] == "No such file or directory"
    assert "cannot be written as webp" in long["detail"]
    assert (good["reason"], other["reason"]) == (None, None)
    assert opened(good).size == opened(other).size == (32, 32)
    as_jpeg = write_copies({"long": files["long"]}, tmp_path / "jpegs", format="jpeg")
    assert as_jpeg[0]["width"] == 17_000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unreadable_images_alone_make_a_tar_without_members(tmp_path: Path, count: int) -> None:
    files = {f"{number}": tmp_path / "gone.png" for number in range(count)}
    rows = write_copies(files, tmp_path / "shards")
    assert [row["reason"] for row in rows] == ["unreadable image"] * count


def test_lack_of_disk_space_is_an_error_before_anything_is_written(
    tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    with pytest.raises(TaggerError, match=r"shards/below has 100 bytes free.*needed"):
        write_copies({"a": demo / "0000.png"}, tmp_path / "shards" / "below")
    assert not (tmp_path / "shards").exists()


def test_fitting_tars_are_reused_and_other_settings_make_other_tars(
    tmp_path: Path, demo: Path
) -> None:
    folder = tmp_path / "shards"
    files = {path.name: path for path in sorted(demo.glob("*.png"))[:4]}
    rows = write_copies(files, folder)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert write_copies(files, folder) == rows
    assert {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()
    } == before
    for change in ({"side": 31}, {"quality": 80}, {"format": "jpeg"}):
        assert write_copies(files, folder, **change)[0]["shard"] not in {
            row["shard"] for row in rows
        }
    changed_file = tmp_path / "changed.png"
    shutil.copy(files["0001.png"], changed_file)
    moved = {**files, "0000.png": changed_file}
    assert write_copies(moved, folder)[0]["shard"] != rows[0]["shard"]


SCRIPT = """
    import sys
    from pathlib import Path

    import pyarrow.parquet as pq

    from tagger.core import errors
    from tagger.data import resized_copies

    if __name__ == "__main__":
        with errors.exit_on_error():
            images = pq.read_table("images.parquet")
            copies = resized_copies.write_copies(
                images, Path(sys.argv[1]), side=300, format="webp", quality=90, shard_size=1
            )
            print(len(copies))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], "subprocess.Popen[str]"]:
    """Start a program that copies images into a folder, each into its own tar."""
    project = tmp_path_factory.mktemp("project")
    random = np.random.default_rng(0)
    files = {}
    for number in range(IMAGES):
        path = project / f"{number}.bmp"
        Image.fromarray(random.integers(0, 255, (320, 320, 3), np.uint8)).save(path)
        files[path.name] = path
    pq.write_table(table(files), project / "images.parquet")
    (project / "script.py").write_text(dedent(SCRIPT))

    def start(folder: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "script.py", folder],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(STAGES)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def assert_finishes(process: "subprocess.Popen[str]") -> None:
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (0, f"{IMAGES}\n", "")


@pytest.fixture(scope="module")
def uninterrupted(
    script: Callable[[str], "subprocess.Popen[str]"], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert_finishes(script(str(folder)))
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("[!.]*")
    }


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_copying_continues_and_equals_uninterrupted(
    tmp_path: Path,
    script: Callable[[str], "subprocess.Popen[str]"],
    uninterrupted: Path,
    ending: signal.Signals,
) -> None:
    folder = tmp_path / "shards"
    interrupted = script(str(folder))
    while len(list(folder.glob("*.json"))) < 3:
        assert interrupted.poll() is None
        time.sleep(0.005)
    interrupted.send_signal(ending)
    out, err = interrupted.communicate(timeout=100)
    if ending == signal.SIGINT:
        assert (interrupted.returncode, out, err) == (130, "", "interrupted\n")
    whole = [path for path in folder.glob("*.tar") if path.with_suffix(".json").exists()]
    assert 3 <= len(whole) < IMAGES
    for tar in whole:
        index, distrust = shards.open_index(tar)
        assert (len(index.names), distrust) == (1, "")
    before = {
        name: stat
        for name, stat in state(folder).items()
        if Path(name).stem in {t.stem for t in whole}
    }
    assert_finishes(script(str(folder)))
    assert before.items() <= state(folder).items()
    names = sorted(path.name for path in uninterrupted.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    assert len(names) == 2 * IMAGES
    for name in names:
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_tars_without_an_index_are_written_again(tmp_path: Path, demo: Path) -> None:
    folder = tmp_path / "shards"
    files = {path.name: path for path in sorted(demo.glob("*.png"))[:4]}
    rows = write_copies(files, folder)
    (tar,) = folder.glob("*.tar")
    data = tar.read_bytes()
    tar.write_bytes(data[:100])
    tar.with_suffix(".json").unlink()
    assert write_copies(files, folder) == rows
    assert tar.read_bytes() == data
