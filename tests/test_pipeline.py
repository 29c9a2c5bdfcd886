"""The whole pipeline, with the real dvc, in a clone of the repository with tiny pictures."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clones
import mlflow
import onnxruntime
import pytest
import yaml
from mlflow.entities import Run
from zygote import SOCKET, Zygote

from tagger import params

TINY = {"backbone": "mobilenetv4_conv_small_035", "image_size": 32, "batch_size": 16}
SETTINGS: dict[str, Any] = {
    "demo": {"pictures": 150, "size": 32},
    "vocabulary": {"min_count": 10},
    "train": {"epochs": 1},
    "export": {"lighter": ["fp16", "int8"], "samples": 6, "parity_pictures": 200},
    "models": {"mobilenetv4": TINY, "vit": {"image_size": 32, "batch_size": 16}},
}


@pytest.fixture(scope="module", autouse=True)
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let dvc start stages as forks of a process that has loaded what they load."""
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    places = (zygote.programs, Path(sys.executable).parent, os.environ["PATH"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join(map(str, places)))
        patch.setenv(SOCKET, zygote.socket)
        yield
    zygote.end()


def execute(clone: Path, *command: str) -> str:
    """Return what a command printed."""
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    result = subprocess.run(
        command, cwd=clone, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def dvc(clone: Path, *arguments: str) -> str:
    return execute(clone, sys.executable, "-m", "dvc", *arguments)


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(?:data/dvc.yaml:)?(\w+)'", output)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this one, and parameters small enough for seconds."""
    return clones.made(tmp_path_factory.mktemp("clone"), SETTINGS)


@pytest.fixture(scope="module")
def first(clone: Path) -> str:
    """What the first `dvc repro` printed; everything it wrote is committed."""
    output = dvc(clone, "repro")
    commit(clone)
    return output


def commit(clone: Path) -> None:
    clones.git(clone, "add", "--all")
    clones.git(clone, "commit", "--quiet", "--message", "test")


def runs(clone: Path) -> list[Run]:
    mlflow.set_tracking_uri(f"sqlite:///{clone / 'mlflow.db'}")
    found = mlflow.search_runs(experiment_names=["tagger"], output_format="list")
    return [run for run in found if isinstance(run, Run)]


def params_of(clone: Path) -> dict[str, Any]:
    content = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_one_command_runs_every_stage_and_leaves_an_export(clone: Path, first: str) -> None:
    assert ran(first) == list(clones.STAGES)
    session = onnxruntime.InferenceSession(clone / "models/export/model.onnx")
    assert session.get_outputs()[0].name == "prediction"
    report = json.loads((clone / "metrics/evaluate.json").read_text(encoding="utf-8"))
    assert report["test"]["images"] > 0
    assert 0 < report["test"]["macro_ap"] <= 1


def test_a_fresh_clone_has_the_folders_and_ignores_what_stages_write(
    clone: Path, first: str
) -> None:
    tracked = execute(clone, "git", "ls-files").splitlines()
    for folder in ("data", "models", "metrics"):
        assert f"{folder}/README.md" in tracked
    assert "metrics/evaluate.json" in tracked
    assert not [name for name in tracked if name.endswith((".parquet", ".safetensors", ".db"))]


def test_with_nothing_to_do_no_stage_runs(clone: Path, first: str) -> None:
    assert ran(dvc(clone, "repro")) == []


def test_the_run_holds_parameters_curves_test_figures_and_where_it_came_from(
    clone: Path, first: str
) -> None:
    (run,) = runs(clone)
    report = json.loads((clone / "metrics/evaluate.json").read_text(encoding="utf-8"))
    assert run.info.status == "FINISHED"
    assert run.data.params["preset.backbone"] == TINY["backbone"]
    assert run.data.params["train.epochs"] == "1"
    assert run.data.metrics["test.macro_ap"] == report["test"]["macro_ap"]
    assert run.data.metrics["macro_ap"] > 0
    tags = run.data.tags
    assert tags["preset"] == "mobilenetv4"
    assert len(tags["git_commit"]) == 40
    assert {"posts", "vocabulary", "split"} <= tags.keys()
    logged = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"train.log", "precision_recall.png", "predictions.png", "report.html"} <= logged


def test_a_changed_threshold_policy_runs_only_what_depends_on_it(clone: Path, first: str) -> None:
    output = dvc(clone, "exp", "run", "--set-param", "evaluate.threshold.kind=category")
    assert ran(output) == ["evaluate", "export"]
    output = dvc(clone, "exp", "run", "--set-param", "evaluate.threshold.kind=tag")
    assert ran(output) == []


def test_another_preset_trains_and_the_first_comes_back_without_training(
    clone: Path, first: str
) -> None:
    before = (clone / "models/tagger/model.safetensors").read_bytes()
    assert ran(dvc(clone, "exp", "run", "-S", "model=vit")) == ["train", "evaluate", "export"]
    assert (clone / "models/tagger/model.safetensors").read_bytes() != before
    assert ran(dvc(clone, "exp", "run", "-S", "model=mobilenetv4")) == []
    assert (clone / "models/tagger/model.safetensors").read_bytes() == before


def test_queued_experiments_run_and_are_compared(clone: Path, first: str) -> None:
    dvc(clone, "exp", "run", "--queue", "--name", "slow", "-S", rate("3e-5"))
    dvc(clone, "exp", "run", "--queue", "--name", "fast", "-S", rate("1e-4"))
    dvc(clone, "exp", "run", "--run-all")
    assert params_of(clone)["models"]["mobilenetv4"]["learning_rate"] == 8e-3
    by_name = {run.data.tags.get("dvc_experiment"): run for run in runs(clone)}
    assert by_name["slow"].data.params["preset.learning_rate"] == "3e-05"
    assert by_name["fast"].data.params["preset.learning_rate"] == "0.0001"
    shown = dvc(clone, "exp", "show", "--csv", "--no-pager")
    assert "slow" in shown and "fast" in shown and "test.macro_ap" in shown
    plots = json.loads(dvc(clone, "plots", "diff", "HEAD", "slow", "--json"))
    curves = {"metrics/pr_curve.csv", "metrics/f1_by_threshold.csv", "metrics/predictions.png"}
    assert curves <= set(plots["data"])


def test_an_export_is_tried_wherever_it_lies(clone: Path, first: str, tmp_path: Path) -> None:
    copy = tmp_path / "downloaded"
    shutil.copytree(clone / "models/export", copy)
    command = [sys.executable, "stages/export.py", "--check", str(copy)]
    told = execute(clone, *command)
    assert "files as they were exported" in told and "8 tools agree with the model" in told
    assert "8 tools agree" in execute(clone, *command, "--on", "data/demo/0000.png")
    with (copy / "wd14/model.onnx").open("ab") as file:
        file.write(b"more")
    ended = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(
        r"error: [^\n]*wd14/model.onnx is not what was exported[^\n]*\n", ended.stderr
    )


def test_the_export_says_what_it_is(clone: Path, first: str) -> None:
    card = (clone / "models/export/README.md").read_text(encoding="utf-8")
    report = json.loads((clone / "metrics/export.json").read_text(encoding="utf-8"))
    figures = json.loads((clone / "metrics/evaluate.json").read_text(encoding="utf-8"))["test"]
    assert f"{figures['macro_ap']:.3f} (" in card
    assert set(report["tools"]) >= {"timm", "imgutils", "sd-scripts kohya"}
    assert all(tool in card for tool in report["tools"])
    for name, one in report["lighter"].items():
        assert (clone / f"models/export/model_{name}.onnx").is_file() is one["shipped"]
        assert (f"`model_{name}.onnx` |" in card) is one["shipped"]
    for path in (clone / "models/export/samples").glob("*.jpg"):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() in card


def test_a_rate_in_scientific_notation_is_a_number(clone: Path, first: str) -> None:
    """DVC writes 3e-05, which PyYAML takes for a string."""
    dvc(clone, "exp", "run", "-S", rate("3e-5"))
    assert params_of(clone)["models"]["mobilenetv4"]["learning_rate"] == "3e-05"
    assert params.load(clone / "params.yaml").preset.learning_rate == 3e-5


def rate(value: str) -> str:
    return f"models.mobilenetv4.learning_rate={value}"
