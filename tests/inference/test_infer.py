"""infer.py, as people call it: its words, its files, its exit codes."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import load_tagger
from tagger.models.runtimes import Device

Infer = Callable[..., int]


@pytest.fixture
def expected(export_folder: Path, split: Split, tags: list[Tag]) -> dict[str, float]:
    """What the model gives for picture a.png, by falling confidence."""
    tagger = load_tagger(export_folder, Device("cpu"))
    scores = tagger.probabilities([decode.open_rgb(split.locations[0])])[0]
    given = sorted(zip(scores.tolist(), range(len(tags)), strict=True), key=lambda s: (-s[0], s[1]))
    return {tags[column].name: score for score, column in given}


def above(expected: dict[str, float], threshold: float) -> list[str]:
    return [f"{tag}: {score:.4f}" for tag, score in expected.items() if score >= threshold]


@pytest.mark.parametrize(
    ("lang", "picture", "heading", "nothing"),
    [
        (
            "en",
            "Image: {}",
            "Predicted tags (confidence > 0.5):",
            "No tag has a confidence above the threshold 1",
        ),
        ("zh", "图片: {}", "预测标签 (置信度 > 0.5):", "没有标签的置信度高于阈值 1"),
    ],
)
def test_text_is_in_the_words_promised(
    run_infer: Infer,
    image_folder: Path,
    expected: dict[str, float],
    capsys: pytest.CaptureFixture[str],
    lang: str,
    picture: str,
    heading: str,
    nothing: str,
) -> None:
    file = image_folder / "a.png"
    assert run_infer(file, "--threshold", "0.5", "--lang", lang) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [picture.format(file), heading, *above(expected, 0.5), ""]
    assert run_infer(file, "--threshold", "1", "--lang", lang) == 0
    assert capsys.readouterr().out.splitlines() == [picture.format(file), nothing, ""]


def test_the_closing_lines_are_in_those_words_too(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "broken.png").write_bytes(b"no picture")
    assert run_infer(image_folder, "--output", "csv", "--lang", "zh") == 1
    tagged, failed = capsys.readouterr().err.splitlines()
    assert tagged.startswith("已打标签: 3 张")
    assert failed == "失败: 1 张，见 infer_failures.csv"  # noqa: RUF001


def test_without_a_threshold_each_tag_has_its_own(
    run_infer: Infer,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    expected: dict[str, float],
    export_folder: Path,
) -> None:
    assert run_infer(image_folder / "a.png") == 0
    tagger = load_tagger(export_folder, Device("cpu"))
    limits = {t.name: limit for t, limit in zip(tagger.tags, tagger.thresholds, strict=True)}
    wanted = [f"{t}: {score:.4f}" for t, score in expected.items() if score >= limits[t]]
    assert capsys.readouterr().out.splitlines()[2:-1] == wanted


def test_folders_are_entered_only_when_asked(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_infer(image_folder) == 0
    assert capsys.readouterr().out.count("Image:") == 3
    assert run_infer(image_folder, "--recursive", "--batch-size", 3) == 0
    assert capsys.readouterr().out.count("Image:") == 4
    assert run_infer(image_folder, image_folder / "a.png", image_folder / "b.png") == 0
    assert capsys.readouterr().out.count("Image:") == 3


def test_json_holds_every_category_and_the_likeliest_rating(
    run_infer: Infer, image_folder: Path, expected: dict[str, float], tags: list[Tag]
) -> None:
    assert run_infer(image_folder, "--output", "json", "--threshold", "0.4", "--recursive") == 0
    content = json.loads(Path("tags.json").read_text(encoding="utf-8"))
    names = ["a.png", "b.png", "c.png", "inner/d.png"]
    assert [one["file"] for one in content] == [str(image_folder / name) for name in names]
    first = content[0]
    assert first.keys() == {"file", "rating", "tags"}
    assert list(first["tags"]) == list(CATEGORIES.values())
    together = {tag: score for inside in first["tags"].values() for tag, score in inside.items()}
    wanted = {tag: round(score, 6) for tag, score in expected.items() if score >= 0.4}
    assert together == wanted
    category_of = {tag.name: CATEGORIES[tag.category] for tag in tags}
    for category, inside in first["tags"].items():
        assert all(category_of[tag] == category for tag in inside)
    ratings = {tag: score for tag, score in expected.items() if category_of[tag] == "rating"}
    assert first["rating"] == max(ratings, key=lambda tag: ratings[tag], default=None)


def test_csv_has_a_row_per_picture_and_tag(
    run_infer: Infer, image_folder: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    out = tmp_path / "out" / "deep"
    assert (
        run_infer(
            image_folder / "a.png", "--output", "csv", "--threshold", 0.4, "--output-dir", out
        )
        == 0
    )
    with (out / "tags.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert list(rows[0]) == ["file", "tag", "category", "confidence"]
    assert {row["file"] for row in rows} == {str(image_folder / "a.png")}
    assert {row["tag"]: float(row["confidence"]) for row in rows} == {
        tag: pytest.approx(score, abs=1e-6) for tag, score in expected.items() if score >= 0.4
    }


def test_sidecars_are_written_beside_and_never_overwritten_unasked(
    run_infer: Infer,
    image_folder: Path,
    expected: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (image_folder / "b.txt").write_text("mine, by hand\n")
    assert run_infer(image_folder, "--output", "txt", "--threshold", "0.5") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: 1 sidecars are there already")
    assert "--overwrite" in told
    assert (image_folder / "b.txt").read_text() == "mine, by hand\n"
    assert not (image_folder / "a.txt").exists()
    assert run_infer(image_folder, "--output", "txt", "--threshold", "0.5", "--overwrite") == 0
    wanted = ", ".join(tag for tag, score in expected.items() if score >= 0.5)
    assert (image_folder / "a.txt").read_bytes() == f"{wanted}\n".encode()
    assert (image_folder / "b.txt").read_text() != "mine, by hand\n"


def test_sidecars_elsewhere_keep_their_subfolders(
    run_infer: Infer, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_infer(image_folder, "--output", "txt", "--recursive", "--output-dir", out) == 0
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.txt")}
    assert written == {"a.txt", "b.txt", "c.txt", "inner/d.txt"}
    assert not list(image_folder.rglob("*.txt"))


def test_the_program_tags_without_torch_dvc_and_mlflow(
    root: Path, image_folder: Path, export_folder: Path, tmp_path: Path
) -> None:
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(sorted({'torch', 'timm', 'dvc', 'mlflow', 'pandas'}"
        " & sys.modules.keys())))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = str(root / "stages" / "infer.py")
    arguments = [
        str(image_folder),
        "--model",
        str(export_folder),
        "--device",
        "cpu",
        "--lang",
        "zh",
    ]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, script, *arguments],
        env=os.environ | {"PYTHONPATH": str(root / "stages")},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_script_runs_from_any_folder(
    root: Path, image_folder: Path, export_folder: Path, tmp_path: Path, expected: dict[str, float]
) -> None:
    (image_folder / "b.png").write_bytes(b"no picture")
    ended = subprocess.run(
        [
            sys.executable,
            root / "stages" / "infer.py",
            image_folder,
            "--model",
            export_folder,
            "--threshold",
            "0.5",
            "--lang",
            "zh",
            "--device",
            "cpu",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[: len(above(expected, 0.5)) + 2] == [
        f"图片: {image_folder / 'a.png'}",
        "预测标签 (置信度 > 0.5):",
        *above(expected, 0.5),
    ]
    assert (tmp_path / "infer_failures.csv").is_file()
