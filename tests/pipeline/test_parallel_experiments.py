"""Two experiments at the same time in one clone: each has its own figures, run and parameters."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.entities import Run

from support import clones, processes

pytestmark = pytest.mark.timeout(300)

SMALL = {"backbone": "test_vit", "image_size": 32, "batch_size": 16}
CHANGED = {  # by each experiment
    "one": {"train.epochs": "1", "models.mobilenetv4.learning_rate": "0.001"},
    "other": {"train.epochs": "3", "model": "vit"},
}
LOGGED = {  # of these, by each run
    "one": {"model": "mobilenetv4", "train.epochs": "1", "preset.learning_rate": "0.001"},
    "other": {"model": "vit", "train.epochs": "3", "preset.backbone": "test_vit"},
}
FIGURES = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")


@pytest.fixture(scope="module")
def clone(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which all is done, as dvc knows, and committed; MLflow knows nothing yet."""
    folder = tmp_path_factory.mktemp("side_by_side") / "clone"
    shutil.copytree(finished, folder, symlinks=True)
    for path in (folder / "mlflow.db", folder / "mlruns", folder / ".scratch"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["models"]["vit"] |= SMALL
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    targets = ["data/dvc.yaml:demo", *clones.STAGES[1:]]
    assert processes.run(folder, "dvc", "commit", "--force", *targets).success_output
    clones.git(folder, "add", "--all")
    clones.git(folder, "commit", "--quiet", "--message", "done")
    return folder


@pytest.fixture(scope="module")
def told(clone: Path) -> dict[str, str]:
    """What the experiments printed, which were started at the same moment."""
    running = {}
    for name, changes in CHANGED.items():
        settings = [word for key, value in changes.items() for word in ("-S", f"{key}={value}")]
        words = ["dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name, *settings]
        running[name] = processes.start(clone, *words)
    return {name: one.finish().success_output for name, one in running.items()}


@pytest.fixture(scope="module")
def shown(clone: Path, told: dict[str, str]) -> dict[str, Any]:
    """What dvc shows of each experiment."""
    output = processes.run(clone, "dvc", "exp", "show", "--json").success_output
    revisions = json.loads(output[output.index("[{") :])
    found = [one for revision in revisions for one in revision["experiments"] or ()]
    return {one["name"]: one["revs"][0]["data"] | {"rev": one["revs"][0]["rev"]} for one in found}


@pytest.fixture(scope="module")
def runs(clone: Path, told: dict[str, str]) -> dict[str, Run]:
    """The runs of MLflow by the experiment that they tell of."""
    client = mlflow.MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tagger")
    assert experiment
    found = client.search_runs([experiment.experiment_id])
    named = [run for run in found if "dvc_experiment" in run.data.tags]
    assert len(named) == len(CHANGED)
    assert len(found) == len(named) + 1  # the one above both, made once
    return {run.data.tags["dvc_experiment"]: run for run in named}


def content(clone: Path, data: dict[str, Any], path: str) -> bytes:
    """Return a file as an experiment has it."""
    return subprocess.check_output(["git", "show", f"{data['rev']}:{path}"], cwd=clone)


def test_both_train_at_the_same_time_and_end_well(told: dict[str, str]) -> None:
    for name, output in told.items():
        ran = re.findall(r"Running stage '(\w+)'", output)
        assert ran == ["train", "evaluate", "export"]
        assert f"Ran experiment(s): {name}" in output
        assert "MLflow cannot be written" not in output
        assert output.count("epoch ") == int(CHANGED[name]["train.epochs"])


def test_dvc_has_both_with_their_own_parameters_and_figures(
    clone: Path, shown: dict[str, Any]
) -> None:
    assert shown.keys() == CHANGED.keys()
    for name, data in shown.items():
        params = data["params"]["params.yaml"]["data"]
        preset = params["models"][params["model"]]
        values = {"model": params["model"], "train.epochs": str(params["train"]["epochs"])}
        values |= {f"preset.{key}": str(value) for key, value in preset.items()}
        assert LOGGED[name].items() <= values.items()
        figures = data["metrics"]["metrics/evaluate.json"]["data"]["test"]
        written = json.loads(content(clone, data, "metrics/evaluate.json"))["test"]
        assert {key: figures[key] for key in FIGURES} == {key: written[key] for key in FIGURES}
        curve = content(clone, data, "metrics/train.csv").decode().splitlines()
        assert len(curve) == 1 + int(CHANGED[name]["train.epochs"])
    every = [data["metrics"]["metrics/evaluate.json"]["data"]["test"] for data in shown.values()]
    assert len({tuple(figures[key] for key in FIGURES) for figures in every}) == 2


def test_mlflow_has_both_with_their_own_parameters_and_figures(
    clone: Path, runs: dict[str, Run], shown: dict[str, Any]
) -> None:
    assert runs.keys() == CHANGED.keys()
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        figures = json.loads(content(clone, shown[name], "metrics/evaluate.json"))
        assert run.data.metrics["test.macro_ap"] == figures["test"]["macro_ap"]
        expected = LOGGED[name]
        assert expected["model"] == run.data.tags["preset"] == run.info.run_name
        logged = {"model": run.data.tags["preset"]} | run.data.params
        assert expected.items() <= logged.items()
    for key in ("preset.backbone", "preset.learning_rate", "train.epochs"):
        assert len({run.data.params[key] for run in runs.values()}) == 2


def test_the_workspace_and_nothing_else_is_as_it_was(
    clone: Path, told: dict[str, str], finished: Path
) -> None:
    status = subprocess.check_output(["git", "status", "--porcelain"], cwd=clone)
    assert status == b""
    expected = clones.read_outputs(finished)
    assert clones.read_outputs(clone) == expected
    left = [path for path in clone.rglob("*") if ".partial" in path.name or path.suffix == ".gone"]
    assert not left
    assert not list((clone / ".dvc/tmp/exps/standalone").glob("tmp*"))  # the copies
