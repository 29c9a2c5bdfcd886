"""A broken MLflow store costs a training one warning and some seconds."""

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import mlflow
import pytest
from sqlalchemy import Engine, event

from support.mlflow_stores import (
    client,
    locked_database,
    project,
    read_run,
    refusing_server,
    silent_server,
    unreachable_address,
)
from tagger.tracking import runs, store

pytestmark = pytest.mark.usefixtures("project")
__all__ = ["project"]


def the_warning(caplog: pytest.LogCaptureFixture) -> str:
    """Return the only warning."""
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    return record.getMessage()


def log_everything(run: runs.TrackedRun, project: Path) -> None:
    (project / "train.csv").write_text("epoch,loss\n1,9\n")
    run.log_params({"seed": 0})
    run.log_machine()
    run.log_metrics({"loss": 1.0}, step=1)
    run.log_files(project / "train.csv")
    run.log_checkpoint("best", Path("best"), {"macro_ap": 0.5}, 3)


def lost_seconds(project: Path) -> float:
    """Return the seconds that a training loses to a store that takes no run."""
    started = time.monotonic()
    with runs.start("vit") as run:
        log_everything(run, project)
    assert run.id is None
    assert mlflow.active_run() is None
    return time.monotonic() - started


@pytest.mark.parametrize("server", [refusing_server, silent_server])
def test_server_without_answers_is_given_up_soon(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    server: Callable[[], AbstractContextManager[str]],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert lost_seconds(project) < 20
    assert the_warning(caplog)


def test_unreachable_server_is_given_up_soon(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable_address())
    assert lost_seconds(project) < 20
    assert "going on without it" in the_warning(caplog)


def garble(database: Path) -> None:
    database.write_bytes(b"this is no database, and never was one\n" * 40)


def replace_by_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


def make_older(database: Path) -> None:
    set_revision(database, "75868b020152")


def make_newer(database: Path) -> None:
    set_revision(database, "ffffffffffff")


def set_revision(database: Path, revision: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update alembic_version set version_num = ?", [revision])


def forbid_writing(database: Path) -> None:
    """Put a folder in the place of the journal: this stops root as well."""
    database.with_name("mlflow.db-journal").mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "spoil", [garble, replace_by_folder, make_older, make_newer, forbid_writing]
)
def test_unusable_database_is_warned_of_once_and_not_changed(
    project: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    database = project / "mlflow.db"
    spoil(database)
    before = database.read_bytes() if database.is_file() else b""
    assert lost_seconds(project) < 10
    assert "MLflow cannot be written" in the_warning(caplog)
    assert (database.read_bytes() if database.is_file() else b"") == before


def test_missing_project_folder_is_warned_of_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project / "none"))
    (project / "none").write_text("a file in its place")
    assert lost_seconds(project) < 10
    assert the_warning(caplog)


def test_locked_database_is_waited_for_and_warned_of_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.5)
    with locked_database(project):
        assert lost_seconds(project) < 10
    assert "locked" in the_warning(caplog)


def wait_half_a_second(
    connection: object, cursor: object, statement: str, parameters: object, *_: object
) -> tuple[str, object]:
    """Shorten the 20 seconds that MLflow waits for a locked database."""
    return statement.replace("busy_timeout = 20000", "busy_timeout = 500"), parameters


def test_database_locked_during_training_costs_one_wait_and_keeps_its_numbers(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "SLOW", 0.1)
    event.listen(Engine, "before_cursor_execute", wait_half_a_second, retval=True)
    try:
        with runs.start("vit") as run:
            run.log_metrics({"loss": 2.0}, step=1)
            with locked_database(project):
                started = time.monotonic()
                for step in range(2, 100):
                    run.log_metrics({"loss": 1.0}, step=step)
                log_everything(run, project)
                assert time.monotonic() - started < 3
    finally:
        event.remove(Engine, "before_cursor_execute", wait_half_a_second)
    assert the_warning(caplog)
    stored = read_run(project, run.id)
    assert (stored.data.metrics, stored.info.status) == ({"loss": 2.0}, "FINISHED")


def fail() -> None:
    time.sleep(0.01)
    raise OSError


def test_store_that_comes_back_is_written_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "SLOW", 0.0)
    monkeypatch.setattr(runs, "PAUSE", 10)
    with runs.start("vit") as run:
        run.attempt(fail)
        run.log_metrics({"loss": 1.0}, step=1)
        time.sleep(0.3)
        run.log_metrics({"loss": 2.0}, step=2)
    assert [p.step for p in client(project).get_metric_history(str(run.id), "loss")] == [2]
    assert the_warning(caplog)


@pytest.mark.timeout(20)
def test_error_of_the_block_passes_through_a_broken_store(project: Path) -> None:
    replace_by_folder(project / "mlflow.db")
    with pytest.raises(ZeroDivisionError), runs.start("vit"):
        raise ZeroDivisionError


def test_refused_values_cost_only_themselves(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with runs.start("vit") as run:
        run.log_params({"seed": 0})
        run.log_params({"seed": 1})
        run.log_files(project / "none.csv", project / "neither.csv")
        run.log_metrics({"loss": 1.0}, step=1)
    assert the_warning(caplog)
    stored = read_run(project, run.id)
    assert (stored.data.params, stored.data.metrics) == ({"seed": "0"}, {"loss": 1.0})
    assert stored.info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_deleted_run_is_warned_of_once(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    with runs.add_to("0" * 32) as run:
        log_everything(run, project)
    assert the_warning(caplog)
    assert run.id == "0" * 32  # it may be there again when the training resumes
