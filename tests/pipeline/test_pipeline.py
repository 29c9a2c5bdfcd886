"""The whole pipeline, with the real dvc, in a clone of the repository with tiny pictures."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import onnxruntime
import pytest
import yaml
from mlflow.entities import Run

from support import clones, processes

TINY = {"backbone": "mobilenetv4_conv_small_035", "image_size": 32, "batch_size": 16}
SETTINGS: dict[str, Any] = {
    "demo": {"images": 100, "size": 32},
    "vocabulary": {"min_count": 8},
    "train": {"epochs": 1},
    "export": {"quantize": ["fp16", "int8"]},
    "models": {"mobilenetv4": TINY, "vit": TINY | {"backbone": "test_vit"}},
}


def dvc(clone: Path, *arguments: str) -> str:
    """Return what dvc printed."""
    return processes.run(clone, "dvc", *arguments).success_output


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(?:data/dvc.yaml:)?(\w+)'", output)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this one, and parameters small enough for seconds."""
    return clones.make_clone(tmp_path_factory.mktemp("clone"), SETTINGS)


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
    tracked = clones.git(clone, "ls-files").splitlines()
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
    """A rate in scientific notation is a number, though DVC writes a string for PyYAML."""
    for name, rate in (("slow", "3e-5"), ("fast", "1e-4")):
        settings = f"models.mobilenetv4.learning_rate={rate}", "export.quantize=[]"
        words = [word for setting in settings for word in ("-S", setting)]
        dvc(clone, "exp", "run", "--queue", "--name", name, *words)
    dvc(clone, "exp", "run", "--run-all")
    assert params_of(clone)["models"]["mobilenetv4"]["learning_rate"] == 8e-3
    by_name = {run.data.tags.get("dvc_experiment"): run for run in runs(clone)}
    assert by_name["slow"].data.params["preset.learning_rate"] == "3e-05"
    assert by_name["fast"].data.params["preset.learning_rate"] == "0.0001"
    (slow,) = clones.git(clone, "for-each-ref", "--format=%(refname)", "refs/exps/**/slow").split()
    written = yaml.safe_load(clones.git(clone, "show", f"{slow}:params.yaml"))
    assert written["models"]["mobilenetv4"]["learning_rate"] == "3e-05"
    shown = dvc(clone, "exp", "show", "--csv", "--no-pager")
    assert "slow" in shown and "fast" in shown and "test.macro_ap" in shown
    plots = json.loads(dvc(clone, "plots", "diff", "HEAD", "slow", "--json"))
    curves = {"metrics/pr_curve.csv", "metrics/f1_by_threshold.csv", "metrics/predictions.png"}
    assert curves <= set(plots["data"])


def test_an_export_is_tried_wherever_it_lies(clone: Path, first: str, tmp_path: Path) -> None:
    copy = tmp_path / "downloaded"
    shutil.copytree(clone / "models/export", copy)
    command = ("stages/check_export.py", copy)
    told = processes.run(clone, *command).success_output
    assert "files as they were exported" in told and "5 tools agree with the model" in told
    assert (
        "5 tools agree"
        in processes.run(clone, *command, "--images", "data/demo/0000.png").success_output
    )
    with (copy / "wd14/model.onnx").open("ab") as file:
        file.write(b"more")
    mistake = processes.run(clone, *command).error_line
    assert re.match(r"error: .*wd14/model.onnx has changed since the export", mistake)


def test_the_export_says_what_it_is(clone: Path, first: str) -> None:
    card = (clone / "models/export/README.md").read_text(encoding="utf-8")
    report = json.loads((clone / "metrics/export.json").read_text(encoding="utf-8"))
    figures = json.loads((clone / "metrics/evaluate.json").read_text(encoding="utf-8"))["test"]
    assert f"{figures['macro_ap']:.3f} (" in card
    assert set(report["tools"]) >= {"timm", "imgutils", "kohya"}
    assert all(tool in card for tool in report["tools"])
    for name, one in report["quantized"].items():
        assert (clone / f"models/export/model_{name}.onnx").is_file() is one["shipped"]
        assert (f"`model_{name}.onnx` |" in card) is one["shipped"]
    for path in (clone / "models/export/samples").glob("*.jpg"):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() in card
