"""DVC experiments: in the workspace, from the queue, and two at the same time in one clone."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.entities import Run

from support import clones, processes
from support.clones import stages_run

pytestmark = pytest.mark.timeout(300)

CHANGES = {  # of the experiments that run at the same time
    "slow": {"train.epochs": "1", "models.mobilenetv4.learning_rate": "3e-5"},
    "other": {"train.epochs": "3", "model": "vit"},
}
LOGGED = {  # by the run of each
    "slow": {"model": "mobilenetv4", "train.epochs": "1", "preset.learning_rate": "3e-05"},
    "other": {"model": "vit", "train.epochs": "3", "preset.backbone": "test_vit"},
}
METRICS = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")


@pytest.fixture(scope="module")
def clone(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished project that has no runs in MLflow yet."""
    folder = tmp_path_factory.mktemp("experiments") / "clone"
    shutil.copytree(finished_project, folder, symlinks=True)
    for path in (folder / "mlflow.db", folder / "mlruns", folder / ".scratch"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.fixture(scope="module")
def outputs(clone: Path) -> dict[str, str]:
    """What two experiments printed that were started at the same moment."""
    running = {}
    for name, changes in CHANGES.items():
        command = ("dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name)
        running[name] = processes.start(clone, *command, *set_params(changes))
    return {name: process.finish().success_output for name, process in running.items()}


def set_params(changes: dict[str, str]) -> list[str]:
    return [word for key, value in changes.items() for word in ("-S", f"{key}={value}")]


def dvc(clone: Path, *arguments: str) -> str:
    return processes.run(clone, "dvc", *arguments).success_output


@pytest.fixture(scope="module")
def shown(clone: Path, outputs: dict[str, str]) -> dict[str, Any]:
    """What dvc shows of each experiment."""
    output = dvc(clone, "exp", "show", "--json")
    revisions = json.loads(output[output.index("[{") :])
    experiments = [item for revision in revisions for item in revision["experiments"] or ()]
    last = {item["name"]: item["revs"][0] for item in experiments}
    return {name: revision["data"] | {"rev": revision["rev"]} for name, revision in last.items()}


@pytest.fixture(scope="module")
def runs(clone: Path, outputs: dict[str, str]) -> dict[str, Run]:
    """The MLflow run of each experiment."""
    every = all_runs(clone)
    named = {run.data.tags["dvc_experiment"]: run for run in every if is_named(run)}
    assert len(named) == len(CHANGES)
    assert len(every) == len(named) + 1  # the parent of both, made once
    return named


def all_runs(clone: Path) -> list[Run]:
    client = mlflow.MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tagger")
    assert experiment
    return list(client.search_runs([experiment.experiment_id]))


def is_named(run: Run) -> bool:
    return "dvc_experiment" in run.data.tags


def committed(clone: Path, data: dict[str, Any], path: str) -> str:
    """Return a file as an experiment has it."""
    return clones.git(clone, "show", f"{data['rev']}:{path}")


def test_two_experiments_train_at_the_same_time(outputs: dict[str, str]) -> None:
    for name, output in outputs.items():
        ran = [stage for stage in stages_run(output) if stage != "demo"]  # drawn in each copy
        assert ran == ["train", "evaluate", "export"]
        assert f"Ran experiment(s): {name}" in output
        assert "MLflow cannot be written" not in output
        assert output.count("epoch ") == int(CHANGES[name]["train.epochs"])


def test_dvc_shows_params_and_metrics_of_each_experiment(
    clone: Path, shown: dict[str, Any]
) -> None:
    assert shown.keys() == CHANGES.keys()
    for name, data in shown.items():
        params = data["params"]["params.yaml"]["data"]
        preset = params["models"][params["model"]]
        values = {"model": params["model"], "train.epochs": str(params["train"]["epochs"])}
        values |= {f"preset.{key}": str(value) for key, value in preset.items()}
        assert LOGGED[name].items() <= values.items()
        metrics = data["metrics"]["metrics/evaluate.json"]["data"]["test"]
        written = json.loads(committed(clone, data, "metrics/evaluate.json"))["test"]
        assert {key: metrics[key] for key in METRICS} == {key: written[key] for key in METRICS}
        curve = committed(clone, data, "metrics/train.csv").splitlines()
        assert len(curve) == 1 + int(CHANGES[name]["train.epochs"])
    every = [data["metrics"]["metrics/evaluate.json"]["data"]["test"] for data in shown.values()]
    assert len({tuple(metrics[key] for key in METRICS) for metrics in every}) == 2


def test_mlflow_has_params_and_metrics_of_each_experiment(
    clone: Path, runs: dict[str, Run], shown: dict[str, Any]
) -> None:
    assert runs.keys() == CHANGES.keys()
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        metrics = json.loads(committed(clone, shown[name], "metrics/evaluate.json"))
        assert run.data.metrics["test.macro_ap"] == metrics["test"]["macro_ap"]
        expected = LOGGED[name]
        assert expected["model"] == run.data.tags["preset"] == run.info.run_name
        logged = {"model": run.data.tags["preset"]} | run.data.params
        assert expected.items() <= logged.items()
    for key in ("preset.backbone", "preset.learning_rate", "train.epochs"):
        assert len({run.data.params[key] for run in runs.values()}) == 2


def test_experiments_leave_the_workspace_as_it_was(
    clone: Path, outputs: dict[str, str], finished_project: Path
) -> None:
    assert clones.git(clone, "status", "--porcelain") == ""
    assert clones.read_outputs(clone) == clones.read_outputs(finished_project)
    partial = [p for p in clone.rglob("*") if ".partial" in p.name or p.suffix == ".gone"]
    assert not partial
    assert not list((clone / ".dvc/tmp/exps/standalone").glob("tmp*"))  # the copies


def test_a_rate_in_scientific_notation_is_a_number(clone: Path, shown: dict[str, Any]) -> None:
    """DVC writes 3e-5 as 3e-05, which is a string for PyYAML."""
    params = yaml.safe_load(committed(clone, shown["slow"], "params.yaml"))
    assert params["models"]["mobilenetv4"]["learning_rate"] == "3e-05"


def test_a_queued_experiment_runs_and_is_compared(clone: Path, outputs: dict[str, str]) -> None:
    changes = {"models.mobilenetv4.learning_rate": "1e-4", "export.quantize": "[]"}
    dvc(clone, "exp", "run", "--queue", "--name", "fast", *set_params(changes))
    dvc(clone, "exp", "run", "--run-all")
    params = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    assert params["models"]["mobilenetv4"]["learning_rate"] == 8e-3
    by_name = {run.data.tags["dvc_experiment"]: run for run in all_runs(clone) if is_named(run)}
    assert by_name["fast"].data.params["preset.learning_rate"] == "0.0001"
    shown = dvc(clone, "exp", "show", "--csv", "--no-pager")
    assert "slow" in shown and "fast" in shown and "test.macro_ap" in shown
    plots = json.loads(dvc(clone, "plots", "diff", "HEAD", "fast", "--json"))
    curves = {"metrics/pr_curve.csv", "metrics/f1_by_threshold.csv", "metrics/predictions.png"}
    assert curves <= set(plots["data"])


def test_a_changed_threshold_policy_runs_only_evaluate_and_export(
    finished_project: Path, tmp_path: Path
) -> None:
    clone = Path(shutil.copytree(finished_project, tmp_path / "clone", symlinks=True))
    output = dvc(clone, "exp", "run", "-S", "evaluate.threshold.kind=category")
    assert stages_run(output) == ["evaluate", "export"]
    assert stages_run(dvc(clone, "exp", "run", "-S", "evaluate.threshold.kind=tag")) == []


def test_a_preset_that_was_trained_before_comes_back_without_training(
    clone: Path, outputs: dict[str, str], tmp_path: Path
) -> None:
    clone = Path(shutil.copytree(clone, tmp_path / "clone", symlinks=True))
    weights = clone / "models/tagger/model.safetensors"
    before = weights.read_bytes()
    dvc(clone, "exp", "apply", "other")
    assert weights.read_bytes() != before
    back = {"model": "mobilenetv4", "train.epochs": "2"}
    assert stages_run(dvc(clone, "exp", "run", *set_params(back))) == []
    assert weights.read_bytes() == before
