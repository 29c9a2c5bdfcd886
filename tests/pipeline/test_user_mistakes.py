"""A user's mistake ends a stage with one clear line, exit code 2, and nothing half-written."""

import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import processes
from support.processes import FinishedProcess

ROOT = Path(__file__).parents[2]
Stage = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, demo: Path) -> Path:
    """A project of two dozen pictures, with parameters to match."""
    shutil.copytree(demo, tmp_path / "data/demo")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    change(tmp_path, {"vocabulary.min_count": 1})
    return tmp_path


def change(project: Path, values: dict[str, Any]) -> None:
    """Change some values of params.yaml, by their dotted path."""
    path = project / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        *parents, name = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[name] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def run(project: Path, stage: str) -> FinishedProcess:
    return processes.run(project, ROOT / "stages" / f"{stage}.py")


def mistake(project: Path, stage: str) -> str:
    """Return the one line that a stage says of a mistake, and nothing else."""
    ended = run(project, stage)
    assert ended.output.splitlines() == [ended.error_line]
    assert not list(project.rglob("*.partial"))
    return ended.error_line


def test_an_unknown_preset_is_named_with_the_nearest(project: Path) -> None:
    change(project, {"model": "eva2"})
    line = mistake(project, "train")
    assert "Unknown preset 'eva2'. Did you mean 'eva02'?" in line


def test_an_unknown_key_is_named_with_the_nearest(project: Path) -> None:
    change(project, {"models.convnext.lerning_rate": 0.1})
    line = mistake(project, "prepare")
    assert "Unknown key models.convnext.lerning_rate. Did you mean 'learning_rate'?" in line


def test_a_missing_folder_is_named(project: Path) -> None:
    change(project, {"prepare.path": "pictures"})
    assert "there is no folder pictures" in mistake(project, "prepare")


def test_a_folder_without_pictures_says_what_it_should_hold(project: Path) -> None:
    for picture in project.glob("data/demo/*.png"):
        picture.unlink()
    line = mistake(project, "prepare")
    assert "data/demo holds no pictures" in line and ".png" in line


def test_a_folder_without_sidecars_says_which_file_is_wanted(project: Path) -> None:
    for sidecar in project.glob("data/demo/*.txt"):
        sidecar.unlink()
    line = mistake(project, "prepare")
    assert "None of the 24 pictures in data/demo has a sidecar" in line
    assert "0000.png needs its tags in 0000.txt" in line


def test_unreadable_files_are_left_out_and_listed(project: Path) -> None:
    (project / "data/demo/0000.png").write_bytes(b"no picture")
    (project / "data/demo/0001.txt").write_bytes(b"\xff\xfe broken")
    (project / "data/demo/0002.txt").unlink()
    assert len(run(project, "prepare").success_output.splitlines()) == 1
    rejected = (project / "metrics/rejected.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in sorted(rejected[1:])] == [
        ["0000.png", "unreadable image"],
        ["0001.png", "unreadable sidecar"],
        ["0002.png", "no sidecar"],
    ]
    assert '"posts": 21' in (project / "metrics/prepare.json").read_text(encoding="utf-8")


def test_a_limit_on_files_is_one_line_and_leaves_nothing_half_written(project: Path) -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "stages/prepare.py"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert ended.returncode == 2
    line = r"error: \S+: File too large\. Make room, then run again\.\n"
    assert re.fullmatch(line, ended.stderr)
    assert not (project / "data/posts.parquet").exists()
    assert not list(project.rglob("*.partial"))
    assert run(project, "prepare").success_output
    assert (project / "data/posts.parquet").exists()


def test_an_empty_vocabulary_says_how_common_tags_are(project: Path) -> None:
    assert run(project, "prepare").success_output
    change(project, {"vocabulary.min_count": 1000})
    line = mistake(project, "vocabulary")
    assert "the most common one is on 24 posts. Loosen the limits" in line


def test_a_selected_tags_csv_of_other_tags_is_refused(project: Path) -> None:
    assert run(project, "prepare").success_output
    (project / "mine.csv").write_text("name,count\n1girl,5000\n", encoding="utf-8")
    change(project, {"vocabulary.source": "mine.csv"})
    assert "not in the list" in mistake(project, "vocabulary")


def test_a_split_that_leaves_a_part_empty_is_refused(project: Path) -> None:
    assert run(project, "prepare").success_output
    assert run(project, "vocabulary").success_output
    change(project, {"split.train": 0.998, "split.validation": 0.001, "split.test": 0.001})
    change(project, {"split.method": "random"})
    assert "No post falls to validation" in mistake(project, "split")
    assert not (project / "data/split.parquet").exists()


def test_training_on_nothing_is_refused(project: Path) -> None:
    for stage in ("prepare", "vocabulary", "split"):
        assert run(project, stage).success_output
    for picture in project.glob("data/demo/*.png"):
        picture.unlink()
    change(project, {"train.workers": 0})
    ended = run(project, "train")
    assert "training pictures cannot be read" in ended.error_line
    assert len(ended.output.splitlines()) == 2  # with what is trained


@pytest.mark.parametrize("stage", ["vocabulary", "split", "train", "evaluate", "export"])
def test_a_stage_run_too_early_names_what_it_lacks(project: Path, stage: str) -> None:
    line = mistake(project, stage)
    assert "is missing. It is written by an earlier stage: run `dvc repro`." in line
