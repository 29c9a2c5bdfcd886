"""A user's mistake ends a stage with one clear line, exit code 2, and no partial file."""

import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import processes
from support.processes import FinishedProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, demo: Path) -> Path:
    """A project of two dozen images, with parameters to match."""
    return new_project(tmp_path, demo)


@pytest.fixture(scope="module")
def split_project(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """A project in which the stages before training have run. Copy it to change it."""
    folder = new_project(tmp_path_factory.mktemp("split"), demo)
    for stage in ("prepare", "vocabulary", "split"):
        assert run(folder, stage).success_output
    return folder


@pytest.fixture
def split_copy(split_project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(split_project, tmp_path / "copy"))


def new_project(folder: Path, demo: Path) -> Path:
    shutil.copytree(demo, folder / "data/demo")
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, {"vocabulary.min_count": 1})
    return folder


def set_params(project: Path, values: dict[str, Any]) -> None:
    """Change values in params.yaml; keys are dotted paths."""
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


def only_line(project: Path, stage: str) -> str:
    """Run a stage that must print its error and nothing else; return the line."""
    process = run(project, stage)
    assert process.output.splitlines() == [process.error_line]
    assert not list(project.rglob("*.partial"))
    return process.error_line


def test_an_unknown_preset_is_named_with_the_nearest(project: Path) -> None:
    set_params(project, {"model": "eva2"})
    line = only_line(project, "train")
    assert "Unknown preset 'eva2'. Did you mean 'eva02'?" in line


def test_an_unknown_key_is_named_with_the_nearest(project: Path) -> None:
    set_params(project, {"models.convnext.lerning_rate": 0.1})
    line = only_line(project, "prepare")
    assert "Unknown key models.convnext.lerning_rate. Did you mean 'learning_rate'?" in line


def test_a_missing_folder_is_named(project: Path) -> None:
    set_params(project, {"prepare.path": "pictures"})
    assert "there is no folder pictures" in only_line(project, "prepare")


def test_a_folder_without_images_says_what_it_should_hold(project: Path) -> None:
    for image in project.glob("data/demo/*.png"):
        image.unlink()
    line = only_line(project, "prepare")
    assert "data/demo holds no images" in line and ".png" in line


def test_a_folder_without_sidecars_names_the_missing_file(project: Path) -> None:
    for sidecar in project.glob("data/demo/*.txt"):
        sidecar.unlink()
    line = only_line(project, "prepare")
    assert "None of the 24 images in data/demo has a sidecar" in line
    assert "0000.png needs its tags in 0000.txt" in line


def test_unreadable_files_are_rejected_and_listed(project: Path) -> None:
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


def test_a_limit_on_file_size_is_one_line_and_leaves_no_partial_file(project: Path) -> None:
    process = subprocess.run(
        [sys.executable, ROOT / "stages/prepare.py"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert process.returncode == 2
    line = r"error: File too large: (\S+)\. Free some space\.\n"
    error = re.fullmatch(line, process.stderr)
    assert error and not (project / error[1]).exists()
    assert not list(project.rglob("*.partial"))
    assert run(project, "prepare").success_output
    assert (project / error[1]).exists()


def test_an_empty_vocabulary_says_how_common_tags_are(split_copy: Path) -> None:
    set_params(split_copy, {"vocabulary.min_count": 1000})
    line = only_line(split_copy, "vocabulary")
    assert "The most frequent one is on 24 posts. Loosen the limits" in line


def test_a_selected_tags_csv_of_other_tags_is_refused(split_copy: Path) -> None:
    (split_copy / "mine.csv").write_text("name,count\n1girl,5000\n", encoding="utf-8")
    set_params(split_copy, {"vocabulary.source": "mine.csv"})
    assert "not in the list" in only_line(split_copy, "vocabulary")


def test_a_split_without_validation_images_is_refused(split_copy: Path) -> None:
    (split_copy / "data/split.parquet").unlink()
    set_params(split_copy, {"split.train": 0.998, "split.validation": 0.001, "split.test": 0.001})
    set_params(split_copy, {"split.method": "random"})
    assert "The split validation has no post." in only_line(split_copy, "split")
    assert not (split_copy / "data/split.parquet").exists()


def test_training_without_readable_images_is_refused(split_copy: Path) -> None:
    for image in split_copy.glob("data/demo/*.png"):
        image.unlink()
    set_params(split_copy, {"train.workers": 0})
    process = run(split_copy, "train")
    assert "training images cannot be read" in process.error_line
    assert len(process.output.splitlines()) == 2  # with what is trained


@pytest.mark.parametrize("stage", ["vocabulary", "split", "train", "evaluate", "export"])
def test_a_stage_run_too_early_names_the_missing_input(project: Path, stage: str) -> None:
    line = only_line(project, stage)
    assert "is missing. It is written by an earlier stage: run `dvc repro`." in line
