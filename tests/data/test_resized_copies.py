"""Smaller copies in tars: what they look like, where they lie, and that no stop spoils them."""

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
from tagger.core.manifest import Location
from tagger.data import resized_copies
from tagger.data.hub import shards
from tagger.images import decode

STAGES = Path(__file__).parents[2] / "stages"
_PICTURES = 10  # of the runs that are broken off
Row = dict[str, Any]


def table(files: dict[str, Path]) -> pa.Table:
    """Return pictures by id, as they are in the manifest."""
    columns: Row = {
        "id": list(files),
        "file": list(map(str, files.values())),
        "shard": pa.nulls(len(files), pa.string()),
        "offset": [0] * len(files),
        "size": [path.stat().st_size if path.exists() else 9 for path in files.values()],
        "modified": [path.stat().st_mtime_ns if path.exists() else 0 for path in files.values()],
    }
    return pa.table(columns)


def copied(files: dict[str, Path], folder: Path, **settings: Any) -> list[Row]:
    chosen: Row = {"side": 32, "format": "webp", "quality": 90, "shard_size": 10**9} | settings
    tables = list(resized_copies.write_copies(table(files), folder, **chosen))
    assert all(made.schema == resized_copies.SCHEMA for made in tables)
    return [row for made in tables for row in made.to_pylist()]


def opened(row: Row) -> Image.Image:
    return decode.open_rgb(Location(row["shard"], row["offset"], row["size"]))


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Draw a picture with a gradient."""

    def draw(name: str, width: int, height: int, mode: str = "RGB") -> Path:
        ramp = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp.astype(np.uint8)).convert(mode).save(path)
        return path

    return draw


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_the_shorter_side_is_limited_and_the_aspect_kept(
    tmp_path: Path, draw: Callable[..., Path], form: str
) -> None:
    sizes = [(64, 48), (48, 64), (300, 40), (33, 33), (32, 500), (20, 10), (1, 1), (1000, 33)]
    files = {f"{w}x{h}.png": draw(f"{w}x{h}.png", w, h) for w, h in sizes}
    rows = copied(files, tmp_path / "shards", form=form)
    for (width, height), row in zip(sizes, rows, strict=True):
        shorter = min(width, height)
        scale = min(1.0, 32 / shorter)  # never enlarged
        assert (row["width"], row["height"]) == (round(width * scale), round(height * scale))
        picture = opened(row)
        assert picture.size == (row["width"], row["height"])
        with Image.open(io.BytesIO(member(row))) as copy:
            assert copy.format == form.upper()


def member(row: Row) -> bytes:
    return decode.read_bytes(Location(row["shard"], row["offset"], row["size"]))


def test_a_copy_looks_like_its_picture_upright_and_on_white(tmp_path: Path, demo: Path) -> None:
    turned, clear = tmp_path / "turned.png", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(demo / "0000.png") as picture:
        picture.convert("RGB").save(turned, exif=exif)
    Image.new("RGBA", (40, 50), (255, 0, 0, 0)).save(clear)
    files = {"turned": turned, "clear": clear, "plain": demo / "0001.png"}
    for path, row in zip(files.values(), copied(files, tmp_path / "shards"), strict=True):
        small = decode.open_rgb(path).resize(opened(row).size, Image.Resampling.LANCZOS)
        difference = np.asarray(opened(row)).astype(int) - np.asarray(small)
        assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("shard_size", [1, 3_000, 10**9])
def test_every_picture_is_in_one_tar_whose_index_is_true(
    tmp_path: Path, demo: Path, shard_size: int
) -> None:
    files = {path.name: path for path in sorted(demo.glob("*.png"))}
    rows = copied(files, tmp_path / "shards", shard_size=shard_size)
    assert [PurePosixPath(row["file"]).stem for row in rows] == [Path(name).stem for name in files]
    tars = list(dict.fromkeys(row["shard"] for row in rows))
    assert sorted(tars) == tars == sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    assert len(tars) == {1: 24, 10**9: 1}.get(shard_size, len(tars))
    found = {}
    for tar in map(Path, tars):
        index, doubt = shards.open_index(tar)
        assert doubt == ""
        for name, offset, size in zip(index.names, index.offsets, index.sizes, strict=True):
            found[name] = (str(tar), int(offset), int(size))
    assert found == {row["file"]: (row["shard"], row["offset"], row["size"]) for row in rows}
    if 1 < shard_size < 10**9:
        assert 1 < len(tars) < 24
        assert max(Path(tar).stat().st_size for tar in tars) < 12 * shard_size


def test_pictures_in_tars_are_copied_too(tmp_path: Path, demo: Path) -> None:
    contents = {path.name: path.read_bytes() for path in sorted(demo.glob("*.png"))[:3]}
    shards.write_tar(tmp_path / "0000.tar", contents.items())
    index, _ = shards.open_index(tmp_path / "0000.tar")
    pictures = table({name: demo / name for name in contents})
    for name, values in (("offset", index.offsets), ("size", index.sizes)):
        pictures = pictures.set_column(pictures.column_names.index(name), name, pa.array(values))
    tar = pa.array([str(tmp_path / "0000.tar")] * 3)
    pictures = pictures.set_column(pictures.column_names.index("shard"), "shard", tar)
    settings: Row = {"side": 32, "format": "webp", "quality": 90, "shard_size": 10**9}
    (packed,) = resized_copies.write_copies(pictures, tmp_path / "packed", **settings)
    loose = copied({name: demo / name for name in contents}, tmp_path / "loose")
    assert [member(row) for row in packed.to_pylist()] == [member(row) for row in loose]


identities = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
paths = st.lists(st.sampled_from(["a", "b", "..", ".", "", "a.png", "a.jpg", "a.b", "é"])).map(
    "/".join
)


@given(st.lists(identities | paths, unique=True, max_size=12), st.sampled_from(["webp", "jpeg"]))
def test_names_are_unique_and_safe_to_unpack(ids: list[str], form: str) -> None:
    names = resized_copies._names(ids, form)
    assert len(set(names)) == len(names) == len(ids)
    for name in names:
        path = PurePosixPath(name)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert path.suffix == f".{form}" or path.name == f".{form}"


def test_what_cannot_be_copied_is_a_row_with_its_reason(
    tmp_path: Path, draw: Callable[..., Path]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = {
        "good": draw("good.png", 40, 40),
        "broken": tmp_path / "broken.png",
        "gone": tmp_path / "gone.png",
        "long": draw("long.png", 17_000, 8),
        "also good": draw("other.png", 40, 40),
    }
    good, broken, gone, long, other = copied(files, tmp_path / "shards")
    for row in (broken, gone, long):
        assert (row["file"], row["shard"], row["width"]) == (None, None, None)
        assert row["reason"] == "unreadable picture"
        assert row["detail"] and "\n" not in row["detail"]
    assert gone["detail"] == "No such file or directory"
    assert "cannot be written as webp" in long["detail"]
    assert (good["reason"], other["reason"]) == (None, None)
    assert opened(good).size == opened(other).size == (32, 32)
    as_jpeg = copied({"long": files["long"]}, tmp_path / "jpegs", form="jpeg")
    assert as_jpeg[0]["width"] == 17_000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_where_nothing_can_be_copied_every_picture_is_a_row(tmp_path: Path, count: int) -> None:
    files = {f"{number}": tmp_path / "gone.png" for number in range(count)}
    rows = copied(files, tmp_path / "shards")
    assert [row["reason"] for row in rows] == ["unreadable picture"] * count


def test_no_room_is_told_before_anything_is_written(
    tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    with pytest.raises(TaggerError, match=r"shards/below has 100 bytes free.*needed"):
        copied({"a": demo / "0000.png"}, tmp_path / "shards" / "below")
    assert not (tmp_path / "shards").exists()


def test_a_tar_that_fits_is_used_again_and_another_setting_makes_another(
    tmp_path: Path, demo: Path
) -> None:
    folder = tmp_path / "shards"
    files = {path.name: path for path in sorted(demo.glob("*.png"))[:4]}
    rows = copied(files, folder)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert copied(files, folder) == rows
    assert {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()
    } == before
    for changed in ({"side": 31}, {"quality": 80}, {"format": "jpeg"}):
        assert copied(files, folder, **changed)[0]["shard"] not in {row["shard"] for row in rows}
    changed_file = tmp_path / "changed.png"
    shutil.copy(files["0001.png"], changed_file)
    moved = {**files, "0000.png": changed_file}
    assert copied(moved, folder)[0]["shard"] != rows[0]["shard"]


SCRIPT = """
    import sys
    from pathlib import Path

    import pyarrow.parquet as pq

    from tagger.core import errors
    from tagger.data import resized_copies

    if __name__ == "__main__":
        with errors.exit_on_error():
            pictures = pq.read_table("pictures.parquet")
            made = resized_copies.copies(
                pictures, Path(sys.argv[1]), side=400, form="webp", quality=90, shard_size=1
            )
            print(sum(map(len, made)))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], "subprocess.Popen[str]"]:
    """Start a program that copies some pictures, each into a tar of its own, into a folder."""
    project = tmp_path_factory.mktemp("project")
    random = np.random.default_rng(0)
    files = {}
    for number in range(_PICTURES):
        path = project / f"{number}.bmp"
        Image.fromarray(random.integers(0, 255, (420, 420, 3), np.uint8)).save(path)
        files[path.name] = path
    pq.write_table(table(files), project / "pictures.parquet")
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


def finished(process: "subprocess.Popen[str]") -> None:
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (0, f"{_PICTURES}\n", "")


@pytest.fixture(scope="module")
def uninterrupted(
    script: Callable[[str], "subprocess.Popen[str]"], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that was let be."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished(script(str(folder)))
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("[!.]*")
    }


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_broken_off_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path,
    script: Callable[[str], "subprocess.Popen[str]"],
    uninterrupted: Path,
    ending: signal.Signals,
) -> None:
    folder = tmp_path / "shards"
    broken_off = script(str(folder))
    while len(list(folder.glob("*.json"))) < 3:
        assert broken_off.poll() is None
        time.sleep(0.005)
    broken_off.send_signal(ending)
    out, err = broken_off.communicate(timeout=100)
    if ending == signal.SIGINT:
        assert (broken_off.returncode, out, err) == (130, "", "interrupted\n")
    whole = [path for path in folder.glob("*.tar") if path.with_suffix(".json").exists()]
    assert 3 <= len(whole) < _PICTURES
    for tar in whole:
        index, doubt = shards.open_index(tar)
        assert (len(index.names), doubt) == (1, "")
    before = {
        name: kept
        for name, kept in state(folder).items()
        if Path(name).stem in {t.stem for t in whole}
    }
    finished(script(str(folder)))
    assert before.items() <= state(folder).items()
    names = sorted(path.name for path in uninterrupted.iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    assert len(names) == 2 * _PICTURES
    for name in names:
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_tar_without_its_index_is_made_again(tmp_path: Path, demo: Path) -> None:
    folder = tmp_path / "shards"
    files = {path.name: path for path in sorted(demo.glob("*.png"))[:4]}
    rows = copied(files, folder)
    (tar,) = folder.glob("*.tar")
    data = tar.read_bytes()
    tar.write_bytes(data[:100])
    tar.with_suffix(".json").unlink()
    assert copied(files, folder) == rows
    assert tar.read_bytes() == data
