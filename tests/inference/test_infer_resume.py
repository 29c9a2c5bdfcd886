"""Resumed runs of infer, and sidecars that exist already."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tagger.core import files
from tagger.inference import embeddings, tables

Infer = Callable[..., int]
TABLES = ("json", "jsonl", "csv", "parquet")


def content_of(path: Path) -> object:
    return pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.parametrize("output", TABLES)
def test_a_resumed_table_equals_that_of_one_run(
    run_infer: Infer, image_folder: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(f"tags.{output}")
    assert run_infer(image_folder, "--output", output, "--recursive") == 0
    at_once = content_of(path)
    path.unlink()
    assert run_infer(image_folder / "a.png", "--output", output, "--skip-existing") == 0
    capsys.readouterr()
    assert run_infer(image_folder, "--output", output, "--recursive", "--skip-existing") == 0
    assert content_of(path) == at_once
    summary = capsys.readouterr().err
    assert "tagged: 3 images" in summary
    assert "skipped: 1 images, which were done before" in summary
    assert run_infer(image_folder, "--output", output, "--recursive", "--skip-existing") == 0
    assert content_of(path) == at_once
    assert "skipped: 4 images" in capsys.readouterr().err


@pytest.mark.parametrize("output", TABLES)
@pytest.mark.parametrize("content", [b"\xff\xfe no table", b'{"a": 1}\n', b"x,y\n1,2\n"])
def test_another_file_is_not_resumed_as_a_table(
    run_infer: Infer,
    image_folder: Path,
    output: str,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path(f"tags.{output}")
    path.write_bytes(content)
    assert run_infer(image_folder, "--output", output, "--skip-existing") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"tags.{output} is no table of this program" in line
    assert path.read_bytes() == content


def test_images_with_a_sidecar_are_skipped(run_infer: Infer, image_folder: Path) -> None:
    (image_folder / "b.txt").write_text("mine\n")
    assert run_infer(image_folder, "--output", "txt", "--skip-existing") == 0
    assert (image_folder / "b.txt").read_text() == "mine\n"
    assert (image_folder / "a.txt").is_file()
    assert (image_folder / "c.txt").is_file()


def test_append_adds_each_tag_to_a_sidecar_once(run_infer: Infer, image_folder: Path) -> None:
    rest = ("--output", "txt", "--threshold", "0.5")
    assert run_infer(image_folder / "a.png", *rest) == 0
    predicted = (image_folder / "a.txt").read_text().strip().split(", ")
    mine = f"my_style, {predicted[-1].replace('_', ' ')}"
    (image_folder / "a.txt").write_text(f"{mine}\n")
    for _ in range(2):
        assert run_infer(image_folder / "a.png", *rest, "--append") == 0
        expected = [*mine.split(", "), *predicted[:-1]]
        assert (image_folder / "a.txt").read_text().strip().split(", ") == expected


def test_append_leaves_a_sidecar_in_another_encoding(run_infer: Infer, image_folder: Path) -> None:
    (image_folder / "a.txt").write_bytes("größe".encode("latin-1"))
    assert run_infer(image_folder, "--output", "txt", "--append") == 1
    assert (image_folder / "a.txt").read_bytes() == "größe".encode("latin-1")
    (failure,) = files.read_csv(Path("infer_failures.csv"))
    assert failure["reason"] == "unreadable sidecar"
    assert (image_folder / "b.txt").is_file()


def test_a_run_without_failures_removes_the_list_of_failures(
    run_infer: Infer, image_folder: Path
) -> None:
    good = (image_folder / "b.png").read_bytes()
    (image_folder / "b.png").write_bytes(b"no image")
    assert run_infer(image_folder, "--output", "csv") == 1
    assert Path("infer_failures.csv").is_file()
    (image_folder / "b.png").write_bytes(good)
    assert run_infer(image_folder, "--output", "csv", "--skip-existing") == 0
    assert not Path("infer_failures.csv").exists()
    assert tables.read_file_names(Path("tags.csv")) == {
        str(image_folder / f"{name}.png") for name in "abc"
    }


@pytest.mark.parametrize("suffix", embeddings.SUFFIXES)
def test_an_image_without_its_embedding_is_not_done(
    run_infer: Infer, image_folder: Path, suffix: str
) -> None:
    vectors = Path(f"seen{suffix}")
    assert run_infer(image_folder, "--output", "csv") == 0
    rest = ("--output", "csv", "--embeddings", vectors, "--skip-existing")
    assert run_infer(image_folder / "a.png", *rest) == 0
    assert embeddings.read_file_names(vectors) == {str(image_folder / "a.png")}
    assert run_infer(image_folder, *rest) == 0
    assert embeddings.read_file_names(vectors) == {
        str(image_folder / f"{name}.png") for name in "abc"
    }
    rows = files.read_csv(Path("tags.csv"))
    assert len({(row["file"], row["tag"]) for row in rows}) == len(rows)


@pytest.mark.parametrize("output", ["jsonl", "txt"])
def test_ctrl_c_keeps_the_results_and_a_second_run_resumes(
    root: Path, export_folder: Path, large_image: Path, tmp_path: Path, output: str
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    paths = [folder / f"{number:03}.png" for number in range(80)]
    for path in paths:
        path.hardlink_to(large_image)
    command = [sys.executable, root / "stages" / "infer.py", folder, "--model", export_folder]
    command += ["--output", output, "--batch-size", "1", "--workers", "1", "--skip-existing"]
    run = partial(subprocess.Popen, list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE)
    for seconds in (1, 2, 4, 8, 16):  # a busy machine may have tagged nothing in the first
        started = run(text=True)
        wait_for(tmp_path, ".tags.jsonl.partial" if output == "jsonl" else "many/*.txt")
        time.sleep(seconds)
        started.send_signal(signal.SIGINT)
        _, stderr = started.communicate(timeout=20)
        assert started.returncode == 130, stderr
        if done := tagged(tmp_path):
            break
    assert 0 < len(done) < len(paths)
    assert done == list(map(str, paths[: len(done)]))
    left = len(paths) - len(done)
    assert stderr.splitlines()[-1] == (
        f"stopped: {left} images are left. Give --skip-existing to go on."
    )
    assert not list(tmp_path.rglob("*.partial"))
    again = run(text=True)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 0
    assert f"tagged: {left} images" in stderr
    assert tagged(tmp_path) == list(map(str, paths))


def wait_for(folder: Path, pattern: str) -> None:
    for _ in range(300):
        if list(folder.glob(pattern)):
            return
        time.sleep(0.1)
    raise AssertionError(f"there is no {pattern}")


def tagged(folder: Path) -> list[str]:
    """Return the images in tags.jsonl, or else those with a sidecar."""
    if (folder / "tags.jsonl").exists():
        lines = (folder / "tags.jsonl").read_text().splitlines()
        return [json.loads(line)["file"] for line in lines]
    return sorted(str(path.with_suffix(".png")) for path in folder.rglob("*.txt"))
