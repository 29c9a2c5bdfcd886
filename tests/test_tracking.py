"""A run holds what was tried and what came of it; a broken store costs a warning, no more."""

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tagger import tracking


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of its own, as DVC announces it, with nothing left of it afterwards."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in tracking._PATIENCE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DVC_EXP_NAME", "brave-otter")
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def stored(project: Path, run_id: str | None) -> Run:
    assert run_id is not None
    return client(project).get_run(run_id)


def client(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def test_a_run_keeps_parameters_metrics_tags_and_files(project: Path) -> None:
    (project / "train.csv").write_text("epoch,loss\n1,9\n")
    with tracking.run("vit", preset="vit", posts="abc") as run:
        run.log_params({"seed": 0, "train": {"epochs": 3, "deep": {"er": "x"}}})
        for epoch, loss in ((1, 9.0), (2, 7.5)):
            run.log_metrics({"loss": loss, "note": "text", "test": {"macro_ap": 0.1}}, step=epoch)
        run.log_files(project / "train.csv")
    kept = stored(project, run.id)
    assert kept.data.params == {"seed": "0", "train.epochs": "3", "train.deep.er": "x"}
    assert kept.data.metrics == {"loss": 7.5, "test.macro_ap": 0.1}
    history = client(project).get_metric_history(kept.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 9.0), (2, 7.5)]
    assert kept.data.tags.items() >= {
        ("preset", "vit"),
        ("posts", "abc"),
        ("dvc_experiment", "brave-otter"),
    }
    assert len(kept.data.tags["git_commit"]) == 40
    assert (kept.info.run_name, kept.info.status) == ("vit", "FINISHED")
    assert (project / "mlruns" / kept.info.run_id / "artifacts" / "train.csv").is_file()


def test_a_run_is_taken_up_again_by_its_id(project: Path) -> None:
    with tracking.run("vit", preset="vit") as first:
        first.log_params({"seed": 0})
    with tracking.run(run_id=first.id) as again:
        again.log_metrics({"test": {"macro_f1": 0.25}})
    kept = stored(project, first.id)
    assert again.id == first.id
    assert (kept.data.params, kept.data.metrics) == ({"seed": "0"}, {"test.macro_f1": 0.25})
    assert (kept.info.run_name, kept.info.status) == ("vit", "FINISHED")
    experiment = client(project).get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    assert len(client(project).search_runs([experiment.experiment_id])) == 1


def test_checkpoints_are_models_of_the_run(project: Path) -> None:
    with tracking.run("vit") as run:
        run.log_checkpoint("best", Path("models/best.safetensors"), {"macro_ap": 0.5}, 3)
        run.log_checkpoint("last", Path("models/last.safetensors"), {"macro_ap": 0.4}, 5)
    info = stored(project, run.id).info
    models = client(project).search_logged_models([info.experiment_id])
    by_name = {model.name: model for model in models}
    assert by_name.keys() == {"best", "last"}
    assert {model.source_run_id for model in models} == {run.id}
    assert by_name["best"].tags["file"] == "models/best.safetensors"
    assert by_name["best"].tags["step"] == "3"
    assert [(m.key, m.value, m.step) for m in by_name["best"].metrics or []] == [
        ("macro_ap", 0.5, 3)
    ]


def test_curves_are_kept_as_table_and_drawing(project: Path) -> None:
    (project / "pr_curve.csv").write_text("recall,precision\n0.1,1.0\n1.0,0.4\n")
    with tracking.run("vit") as run:
        run.log_curve(project / "pr_curve.csv", "Precision and recall")
    artifacts = project / "mlruns" / str(run.id) / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {"pr_curve.csv", "pr_curve.png"}
    assert (artifacts / "pr_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_a_failed_run(project: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), tracking.run("vit") as run:
        raise error
    assert stored(project, run.id).info.status == "FAILED"
    assert mlflow.active_run() is None


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.message
        for record in caplog.records
        if record.name == "tagger.tracking" and record.levelno >= logging.WARNING
    ]


def use(run: tracking.Run, project: Path) -> None:
    run.log_params({"seed": 0})
    run.log_metrics({"loss": 1.0}, step=1)
    run.log_files(project / "train.csv")
    run.log_checkpoint("best", Path("best"), {"macro_ap": 0.5}, 3)


def test_a_server_that_is_away_is_told_once_and_soon(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    begun = time.monotonic()
    with tracking.run("vit") as run:
        use(run, project)
    assert time.monotonic() - begun < 20
    assert len(warnings_of(caplog)) == 1
    assert "going on without it" in warnings_of(caplog)[0]
    assert run.id is None


def test_a_store_that_cannot_be_opened_is_told_once(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "mlflow.db").write_bytes(b"this is no database, and never was one\n" * 40)
    with tracking.run("vit") as run:
        use(run, project)
    assert len(warnings_of(caplog)) == 1
    assert run.id is None


@pytest.mark.timeout(20)
def test_an_error_of_the_block_is_seen_through_a_broken_store(project: Path) -> None:
    (project / "mlflow.db").mkdir()
    with pytest.raises(ZeroDivisionError), tracking.run("vit"):
        raise ZeroDivisionError


def test_a_call_that_fails_does_not_leave_the_run_open(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run("vit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_files(project / "none.csv")
    assert len(warnings_of(caplog)) == 1
    assert mlflow.active_run() is None
    assert stored(project, run.id).info.status == "FINISHED"


def test_parameters_of_a_run_taken_up_again_cannot_break_it(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run("vit") as first:
        first.log_params({"seed": 0})
    with tracking.run(run_id=first.id) as again:
        again.log_params({"seed": 1})
    assert stored(project, first.id).data.params == {"seed": "0"}
    assert mlflow.active_run() is None


def test_a_run_that_is_gone_from_the_store_is_told_once(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run(run_id="0" * 32) as run:
        use(run, project)
    assert len(warnings_of(caplog)) == 1


def test_a_machine_without_git_still_trains(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    with tracking.run("vit", preset="vit") as run:
        run.log_params({"seed": 0})
    assert stored(project, run.id).data.tags["preset"] == "vit"


def test_mappings_are_flattened_to_dotted_paths() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}
    assert tracking.flatten(nested) == {"a.b.c": 1, "a.d": [1, 2], "e": None}
