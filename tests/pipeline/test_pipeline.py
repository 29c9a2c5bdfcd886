"""The whole pipeline, run by the real dvc in a clone of the repository with tiny images."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import onnxruntime
import pytest
import yaml

from support import clones, processes

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def clone(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished project."""
    folder = tmp_path_factory.mktemp("pipeline") / "clone"
    return Path(shutil.copytree(finished_project, folder, symlinks=True))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_one_command_runs_every_stage_and_leaves_an_export(finished_project: Path) -> None:
    output = finished_project.with_suffix(".log").read_text(encoding="utf-8")
    assert clones.stages_run(output) == list(clones.STAGES)
    session = onnxruntime.InferenceSession(finished_project / "models/export/model.onnx")
    assert session.get_outputs()[0].name == "prediction"
    report = read_json(finished_project / "metrics/evaluate.json")
    assert report["test"]["images"] > 0
    assert 0 < report["test"]["macro_ap"] <= 1


def test_git_tracks_folders_and_metrics_and_ignores_data_and_weights(
    finished_project: Path,
) -> None:
    tracked = clones.git(finished_project, "ls-files").splitlines()
    for folder in ("data", "models", "metrics"):
        assert f"{folder}/README.md" in tracked
    assert "metrics/evaluate.json" in tracked
    assert not [name for name in tracked if name.endswith((".parquet", ".safetensors", ".db"))]


def test_no_stage_runs_again_when_nothing_has_changed(clone: Path) -> None:
    assert clones.stages_run(processes.run(clone, "dvc", "repro").success_output) == []


def test_the_mlflow_run_has_params_curves_test_metrics_and_origin(finished_project: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished_project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tagger")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    report = read_json(finished_project / "metrics/evaluate.json")
    assert run.info.status == "FINISHED"
    assert run.data.params["preset.backbone"] == "test_efficientnet"
    assert run.data.params["train.epochs"] == "2"
    assert run.data.metrics["test.macro_ap"] == report["test"]["macro_ap"]
    assert run.data.metrics["macro_ap"] > 0
    tags = run.data.tags
    assert tags["preset"] == "mobilenetv4"
    assert len(tags["git_commit"]) == 40
    assert {"posts", "vocabulary", "split"} <= tags.keys()
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"train.log", "precision_recall.png", "predictions.png", "report.html"} <= artifacts


def test_an_export_is_checked_in_any_folder_and_damage_is_named(
    clone: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "downloaded"
    shutil.copytree(clone / "models/export", copy)
    command = ("stages/check_export.py", copy)
    output = processes.run(clone, *command).success_output
    assert "files as they were exported" in output and "5 tools agree with the model" in output
    output = processes.run(clone, *command, "--images", "data/demo/0000.png").success_output
    assert "5 tools agree" in output
    with (copy / "wd14/model.onnx").open("ab") as file:
        file.write(b"more")
    error_line = processes.run(clone, *command).error_line
    assert re.match(r"error: .*wd14/model.onnx has changed since the export", error_line)


def test_the_model_card_names_scores_tools_and_shipped_models(
    finished_project: Path, tmp_path: Path
) -> None:
    clone = Path(shutil.copytree(finished_project, tmp_path / "clone", symlinks=True))
    params = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    params["export"]["quantize"] = ["fp16", "int8"]
    (clone / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert processes.run(clone, "stages/export.py").success_output
    card = (clone / "models/export/README.md").read_text(encoding="utf-8")
    report = read_json(clone / "metrics/export.json")
    metrics = read_json(clone / "metrics/evaluate.json")["test"]
    assert f"{metrics['macro_ap']:.3f} (" in card
    assert set(report["tools"]) >= {"timm", "imgutils", "kohya"}
    assert all(tool in card for tool in report["tools"])
    assert report["quantized"].keys() == {"fp16", "int8"}
    for name, model in report["quantized"].items():
        file = clone / f"models/export/model_{name}.onnx"
        assert file.is_file() is model["shipped"]
        assert (f"`model_{name}.onnx` |" in card) is model["shipped"]
    for path in (clone / "models/export/samples").glob("*.jpg"):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() in card
