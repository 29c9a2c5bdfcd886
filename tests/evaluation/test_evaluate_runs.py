"""What `evaluate` adds to MLflow, what it does without it, and which run it registers."""

import logging
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

import evaluate
import register
from support.evaluations import (
    error_line,
    inside_project,
    project_with_model,
    read_metrics,
    run_evaluate,
    write_run_json,
)
from support.trainings import Project
from tagger.core import files
from tagger.models import backbone
from tagger.params import Params, Preset
from tagger.tracking import runs

WRITTEN = (evaluate.METRICS, evaluate.REPORT, evaluate.SHEET, *evaluate.TABLES)


@pytest.fixture
def tracked(
    tmp_path: Path,
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Project]:
    """A project in which MLflow is used, with nothing left of that afterwards."""
    with caplog.at_level(logging.WARNING):
        yield project_with_model(tmp_path / "project", default_params, demo, preset, model_folder)
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def client(made: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{made.folder / 'mlflow.db'}")


def test_the_run_of_the_training_holds_what_the_evaluation_found(tracked: Project) -> None:
    with inside_project(tracked):
        with runs.start("small", preset="small") as run:
            run.log_checkpoint("best", evaluate.MODEL / backbone.WEIGHTS, {"macro_ap": 0.5}, 3)
        write_run_json(tracked, run.id)
        run_evaluate(tracked)
    here, found = client(tracked), read_metrics(tracked)["test"]
    kept = here.get_run(str(run.id))
    assert kept.info.status == "FINISHED"
    for name in ("macro_ap", "micro_f1"):
        low, high = found["intervals"][name]
        own = {"": found[name], ".low": low, ".high": high}
        logged = {
            end: kept.data.metrics[f"test.{f'intervals.{name}' if end else name}{end}"]
            for end in own
        }
        assert logged == own
    files_of = {file.path for file in here.list_artifacts(str(run.id))}
    assert {path.name for path in WRITTEN} <= files_of
    assert {"precision_recall.png", "f1_by_threshold.png", "by_category.png"} <= files_of


def test_a_broken_store_is_told_once_and_every_number_is_written(
    tracked: Project, caplog: pytest.LogCaptureFixture
) -> None:
    run_evaluate(tracked)
    before = read_metrics(tracked)
    for path in WRITTEN:
        (tracked.folder / path).unlink()
    (tracked.folder / "mlflow.db").write_bytes(b"no database" * 1000)
    write_run_json(tracked, "0123456789abcdef")
    assert "test: macro AP" in run_evaluate(tracked)
    (warning,) = caplog.messages
    assert warning.startswith("MLflow cannot be written, going on without it: ")
    assert read_metrics(tracked) == before
    assert all((tracked.folder / path).is_file() for path in WRITTEN)


def test_the_best_run_on_the_same_data_is_registered(
    tracked: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside_project(tracked):
        refused = error_line(lambda: register.main("tagger", "best"), capsys)
        assert refused == "MLflow has no run that was evaluated on this data. Run `dvc repro`."
        own = runs.data_digest(files.read_json(evaluate.MODEL / "run.json")["data"])
        for name, figure, data in (("fair", 0.5, own), ("good", 0.75, own), ("other", 0.9, "x")):
            with runs.start(name, data=data) as run:
                run.log_checkpoint("best", evaluate.MODEL / backbone.WEIGHTS, {"macro_ap": 0.1}, 3)
                run.log_metrics({"test": {"macro_ap": figure}})
        register.main("tagger", "champion")
    printed = capsys.readouterr().out
    assert printed.startswith("good, test.macro_ap 0.750: version 1 of tagger, alias champion")
    here = client(tracked)
    version = here.get_model_version_by_alias("tagger", "champion")
    assert here.get_run(str(version.run_id)).info.run_name == "good"
