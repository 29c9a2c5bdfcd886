"""infer.py: its text, tables, sidecars and exit codes."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.models.tagger import Tagger

Infer = Callable[..., int]


def text_lines(scores: dict[str, float], threshold: float) -> list[str]:
    return [f"{tag}: {score:.4f}" for tag, score in scores.items() if score >= threshold]


@pytest.mark.parametrize(
    ("lang", "image", "heading", "nothing"),
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
def test_text_is_printed_in_the_language(
    run_infer: Infer,
    image_folder: Path,
    scores: dict[str, float],
    capsys: pytest.CaptureFixture[str],
    lang: str,
    image: str,
    heading: str,
    nothing: str,
) -> None:
    file = image_folder / "a.png"
    assert run_infer(file, "--threshold", "0.5", "--lang", lang) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [image.format(file), heading, *text_lines(scores, 0.5), ""]
    assert run_infer(file, "--threshold", "1", "--lang", lang) == 0
    assert capsys.readouterr().out.splitlines() == [image.format(file), nothing, ""]


def test_without_a_threshold_each_tag_has_its_own(
    run_infer: Infer,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    scores: dict[str, float],
    tagger: Tagger,
) -> None:
    assert run_infer(image_folder / "a.png") == 0
    thresholds = {tag.name: t for tag, t in zip(tagger.tags, tagger.thresholds, strict=True)}
    expected = [f"{tag}: {score:.4f}" for tag, score in scores.items() if score >= thresholds[tag]]
    assert capsys.readouterr().out.splitlines()[2:-1] == expected


def test_folders_globs_and_skipped_images_are_understood(
    run_infer: Infer, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def count(*arguments: object) -> int:
        assert run_infer(*arguments) == 0
        return capsys.readouterr().out.count("Image:")

    assert count(image_folder) == 3
    assert count(image_folder, "--recursive", "--batch-size", 3) == 4
    assert count(image_folder, image_folder / "a.png", image_folder / "b.png") == 3
    assert count(image_folder, "--recursive", "--skip", "b.*", "--skip", "inner/*") == 2
    assert count(image_folder / "[ab].png") == 2


def test_json_has_every_category_and_the_likeliest_rating(
    run_infer: Infer, image_folder: Path, scores: dict[str, float], tags: list[Tag]
) -> None:
    assert run_infer(image_folder, "--output", "json", "--threshold", "0.4", "--recursive") == 0
    content = json.loads(Path("tags.json").read_text(encoding="utf-8"))
    names = ["a.png", "b.png", "c.png", "inner/d.png"]
    assert [image["file"] for image in content] == [str(image_folder / name) for name in names]
    first = content[0]
    assert first.keys() == {"file", "rating", "tags"}
    assert list(first["tags"]) == list(CATEGORIES.values())
    confidences = {tag: score for inside in first["tags"].values() for tag, score in inside.items()}
    assert confidences == {tag: round(score, 6) for tag, score in scores.items() if score >= 0.4}
    category_of = {tag.name: CATEGORIES[tag.category] for tag in tags}
    for category, inside in first["tags"].items():
        assert all(category_of[tag] == category for tag in inside)
    ratings = {tag: score for tag, score in scores.items() if category_of[tag] == "rating"}
    assert first["rating"] == max(ratings, key=lambda tag: ratings[tag], default=None)


def test_csv_has_a_row_for_each_image_and_tag(
    run_infer: Infer, image_folder: Path, scores: dict[str, float], tmp_path: Path
) -> None:
    folder, file = tmp_path / "out" / "deep", image_folder / "a.png"
    options = ("--output", "csv", "--threshold", 0.4, "--output-dir", folder)
    assert run_infer(file, *options) == 0
    with (folder / "tags.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["file", "tag", "category", "confidence"]
    assert {row["file"] for row in rows} == {str(file)}
    assert {row["tag"]: float(row["confidence"]) for row in rows} == {
        tag: pytest.approx(score, abs=1e-6) for tag, score in scores.items() if score >= 0.4
    }


def test_sidecars_lie_beside_images_and_are_overwritten_only_if_asked(
    run_infer: Infer,
    image_folder: Path,
    scores: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (image_folder / "b.txt").write_text("mine, by hand\n")
    assert run_infer(image_folder, "--output", "txt", "--threshold", "0.5") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 1 sidecars are there already")
    assert "--overwrite" in error
    assert (image_folder / "b.txt").read_text() == "mine, by hand\n"
    assert not (image_folder / "a.txt").exists()
    assert run_infer(image_folder, "--output", "txt", "--threshold", "0.5", "--overwrite") == 0
    expected = ", ".join(tag for tag, score in scores.items() if score >= 0.5)
    assert (image_folder / "a.txt").read_bytes() == f"{expected}\n".encode()
    assert (image_folder / "b.txt").read_text() != "mine, by hand\n"


def test_sidecars_in_another_folder_keep_their_subfolders(
    run_infer: Infer, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert run_infer(image_folder, "--output", "txt", "--recursive", "--output-dir", folder) == 0
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")}
    assert written == {"a.txt", "b.txt", "c.txt", "inner/d.txt"}
    assert not list(image_folder.rglob("*.txt"))


def test_the_script_runs_in_any_folder_and_loads_no_heavy_package(
    root: Path, image_folder: Path, export_folder: Path, tmp_path: Path, scores: dict[str, float]
) -> None:
    (image_folder / "b.png").write_bytes(b"no image")
    program = (
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'timm', 'dvc', 'mlflow', 'numba', 'pandas', 'scipy', 'pyarrow'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys())))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = [root / "stages" / "infer.py", image_folder, "--model", export_folder]
    arguments += ["--threshold", "0.5", "--lang", "zh", "--device", "cpu"]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(root / "stages"), "PYTHONUTF8": "1"},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[: len(text_lines(scores, 0.5)) + 2] == [
        f"图片: {image_folder / 'a.png'}",
        "预测标签 (置信度 > 0.5):",
        *text_lines(scores, 0.5),
    ]
    assert lines[-1] == "[]"
    tagged, failed = ended.stderr.splitlines()
    assert tagged.startswith("已打标签: 2 张")
    assert failed == "失败: 1 张，见 infer_failures.csv"  # noqa: RUF001
    assert (tmp_path / "infer_failures.csv").is_file()
