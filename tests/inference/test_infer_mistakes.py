"""infer.py where something is wrong: bad pictures are listed, mistakes end it in one line."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Infer = Callable[..., int]


def test_two_pictures_never_share_a_sidecar_unseen(
    run_infer: Infer, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    shutil.copyfile(image_folder / "b.png", twin / "a.png")
    shutil.copyfile(image_folder / "b.png", image_folder / "a.webp")
    assert run_infer(image_folder, "--output", "txt") == 2
    assert "a.txt" in capsys.readouterr().err
    out = tmp_path / "out"
    assert run_infer(image_folder / "a.png", twin, "--output", "txt", "--output-dir", out) == 2
    assert "a.txt" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("output", ["text", "txt", "json", "csv"])
def test_a_bad_picture_is_listed_and_the_others_tagged(
    run_infer: Infer, image_folder: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "b.png").write_bytes(b"no picture")
    assert run_infer(image_folder, "--output", output) == 1
    with Path("infer_failures.csv").open(encoding="utf-8", newline="") as file:
        (failure,) = csv.DictReader(file)
    assert failure["file"] == str(image_folder / "b.png")
    assert failure["reason"] == "unreadable image"
    assert failure["detail"]
    told = capsys.readouterr().err
    assert "tagged: 2 images" in told
    assert "failed: 1 images, see infer_failures.csv" in told


def test_nothing_but_bad_pictures_still_ends_in_order(run_infer: Infer, image_folder: Path) -> None:
    (image_folder / "a.png").write_bytes(b"")
    assert run_infer(image_folder / "a.png", "--output", "json") == 1
    assert json.loads(Path("tags.json").read_text()) == []


def test_a_name_that_is_not_utf_8_costs_no_other_picture(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(image_folder / "b.png", os.fsencode(image_folder) + b"/\xc4\xe3.png")  # noqa: PTH104
    for output in ("text", "json", "csv"):
        assert run_infer(image_folder, "--output", output, "--threshold", 0.5) in (0, 1)
    assert str(image_folder / "a.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.png"], "error: There is no image or folder none.png."),
        (["."], "no images there. With --recursive, subfolders are searched too."),
        ([".", "--recursive"], "no images there."),
        ([".", "--threshold", "1.5"], "1.5 is not between 0 and 1"),
        ([".", "--threshold", "nan"], "nan is not between 0 and 1"),
        ([".", "--threshold", "half"], "--threshold"),
        ([".", "--output", "xml"], "--output"),
        ([], "input"),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_one_line(
    run_infer: Infer, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run_infer(*arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err.splitlines()[-1]
    assert not captured.out


@pytest.mark.parametrize("size", ["0", "-3"])
def test_a_batch_of_no_pictures_is_refused_not_ignored(
    run_infer: Infer, image_folder: Path, size: str
) -> None:
    assert run_infer(image_folder, "--batch-size", size) == 2


def test_without_an_export_the_way_out_is_told(
    run_infer: Infer, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_infer(image_folder, "--model", tmp_path / "none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no tagger: an export lacks model.onnx" in line
    assert "dvc repro" in line


def test_cuda_that_is_not_there_is_told_and_the_cpu_used(
    run_infer: Infer,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_infer(image_folder, "--device", "cuda") == 0
    assert "CUDA is not available, going on with the CPU." in caplog.messages
