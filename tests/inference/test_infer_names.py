"""Images of any file name are tagged, listed in tables, and printed without control characters."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tagger.core import files
from tagger.images.dataset import Split
from tagger.inference import messages

Infer = Callable[..., int]

NAMES = [
    "two\nlines.png",
    "-dash.png",
    "100%.png",
    "quote'\".png",
    "comma, semi; .png",
    "😀 größe 图.png",
    "#.png",
    "x" * 251 + ".png",
]


@pytest.fixture
def folder(split: Split, tmp_path: Path) -> Path:
    folder = tmp_path / "named"
    folder.mkdir()
    for place, name in zip(split.locations, NAMES, strict=False):
        shutil.copyfile(place.path, folder / name)
    return folder


@pytest.fixture
def latin(split: Split, tmp_path: Path) -> Path:
    """An image whose name is no UTF-8."""
    path = os.fsencode(tmp_path / "latin") + b"/\xc4\xe3.png"
    (tmp_path / "latin").mkdir()
    shutil.copyfile(split.locations[0].path, path)
    return Path(os.fsdecode(path))


@pytest.mark.parametrize("output", ["json", "jsonl", "csv", "parquet"])
def test_tables_have_every_name_unchanged(run_infer: Infer, folder: Path, output: str) -> None:
    assert run_infer(folder, "--output", output) == 0
    path = Path(f"tags.{output}")
    if output == "csv":
        names = [row["file"] for row in files.read_csv(path)]
    elif output == "parquet":
        names = pq.read_table(path)["file"].to_pylist()
    else:
        lines = path.read_text(encoding="utf-8")
        content = json.loads(lines) if output == "json" else map(json.loads, lines.splitlines())
        names = [image["file"] for image in content]
    assert set(names) == {str(folder / name) for name in NAMES}


def test_every_name_gets_its_sidecar(run_infer: Infer, folder: Path) -> None:
    assert run_infer(folder, "--output", "txt") == 0
    assert len(list(folder.glob("*.txt"))) == len(NAMES)


def test_text_shows_control_characters_escaped(
    run_infer: Infer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_infer(folder, "--threshold", 1) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "Image: " in line]
    assert len(lines) == len(NAMES)
    assert f"Image: {folder}/two\\nlines.png" in lines
    assert messages.printable("-dash '\".png") == "-dash '\".png"
    assert messages.printable("\x1b]0;owned\x07") == "\\x1b]0;owned\\x07"


@pytest.mark.parametrize("output", ["text", "txt", "json", "jsonl", "csv", "parquet"])
def test_an_image_whose_name_is_no_utf_8_is_tagged_and_skipped_later(
    run_infer: Infer, latin: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    escaped = f"{latin.parent}/\\udcc4\\udce3.png"
    assert run_infer(latin.parent, "--output", output) == 0
    if output == "text":
        assert f"Image: {escaped}" in capsys.readouterr().out
    elif output == "txt":
        assert latin.with_suffix(".txt").is_file()
    else:
        assert run_infer(latin, "--output", output, "--skip-existing") == 0
        assert "skipped: 1 images" in capsys.readouterr().err
    if output == "csv":
        assert {row["file"] for row in files.read_csv(Path("tags.csv"))} == {escaped}


def test_an_unreadable_image_whose_name_is_no_utf_8_is_listed(
    run_infer: Infer, latin: Path
) -> None:
    latin.write_bytes(b"no image")
    assert run_infer(latin, "--output", "csv") == 1
    (failure,) = files.read_csv(Path("infer_failures.csv"))
    assert failure["file"] == f"{latin.parent}/\\udcc4\\udce3.png"


def test_a_list_on_stdin_may_have_a_name_that_is_no_utf_8(
    run_infer: Infer, latin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(os.fsencode(latin) + b"\n")
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run_infer("-", "--output", "jsonl") == 0
    assert json.loads(Path("tags.jsonl").read_text())["file"].endswith(".png")
