"""A broken store costs a warning and some seconds, and no training its run of numbers."""

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


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def use(run: runs.TrackedRun, project: Path) -> None:
    (project / "train.csv").write_text("epoch,loss\n1,9\n")
    run.log_params({"seed": 0})
    run.log_machine()
    run.log_metrics({"loss": 1.0}, step=1)
    run.log_files(project / "train.csv")
    run.log_checkpoint("best", Path("best"), {"macro_ap": 0.5}, 3)


def in_vain(project: Path) -> float:
    """Return the seconds that a training loses to a store that it cannot have a run in."""
    begun = time.monotonic()
    with runs.start("vit") as run:
        use(run, project)
    assert run.id is None
    assert mlflow.active_run() is None
    return time.monotonic() - begun


@pytest.mark.parametrize("server", [refusing_server, silent_server])
def test_a_server_that_does_not_serve_is_told_once_and_soon(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    server: Callable[[], AbstractContextManager[str]],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert in_vain(project) < 20
    assert len(warnings_of(caplog)) == 1


def test_a_server_that_is_away_is_told_once_and_soon(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable_address())
    assert in_vain(project) < 20
    assert len(warnings_of(caplog)) == 1
    assert "going on without it" in warnings_of(caplog)[0]


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
    """Take the place of what is needed to write, which holds for root as well."""
    database.with_name("mlflow.db-journal").mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "spoil", [garble, replace_by_folder, make_older, make_newer, forbid_writing]
)
def test_a_database_that_cannot_be_used_is_told_once_and_left_as_it_is(
    project: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    database = project / "mlflow.db"
    spoil(database)
    before = database.read_bytes() if database.is_file() else b""
    assert in_vain(project) < 10
    assert len(warnings_of(caplog)) == 1
    assert "MLflow cannot be written" in warnings_of(caplog)[0]
    assert (database.read_bytes() if database.is_file() else b"") == before


def test_a_folder_that_is_not_there_is_told_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project / "none"))
    (project / "none").write_text("a file in its place")
    assert in_vain(project) < 10
    assert len(warnings_of(caplog)) == 1


def test_a_locked_database_is_waited_for_and_told_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "_LOCKED", 0.5)
    with locked_database(project):
        assert in_vain(project) < 10
    assert len(warnings_of(caplog)) == 1
    assert "locked" in warnings_of(caplog)[0]


def impatient(
    connection: object, cursor: object, statement: str, parameters: object, *_: object
) -> tuple[str, object]:
    """Wait half a second where MLflow waits twenty."""
    return statement.replace("busy_timeout = 20000", "busy_timeout = 500"), parameters


def test_a_database_locked_half_way_costs_one_wait_and_keeps_what_it_has(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "_SLOW", 0.1)
    event.listen(Engine, "before_cursor_execute", impatient, retval=True)
    try:
        with runs.start("vit") as run:
            run.log_metrics({"loss": 2.0}, step=1)
            with locked_database(project):
                begun = time.monotonic()
                for step in range(2, 100):
                    run.log_metrics({"loss": 1.0}, step=step)
                use(run, project)
                assert time.monotonic() - begun < 3
    finally:
        event.remove(Engine, "before_cursor_execute", impatient)
    assert len(warnings_of(caplog)) == 1
    kept = read_run(project, run.id)
    assert (kept.data.metrics, kept.info.status) == ({"loss": 2.0}, "FINISHED")


def fail() -> None:
    time.sleep(0.01)
    raise OSError


def test_a_store_that_comes_back_is_written_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "_SLOW", 0.0)
    monkeypatch.setattr(runs, "_REST", 20)
    with runs.start("vit") as run:
        run.try_to(fail)
        run.log_metrics({"loss": 1.0}, step=1)
        time.sleep(0.5)
        run.log_metrics({"loss": 2.0}, step=2)
    assert [p.step for p in client(project).get_metric_history(str(run.id), "loss")] == [2]
    assert len(warnings_of(caplog)) == 1


@pytest.mark.timeout(20)
def test_an_error_of_the_block_is_seen_through_a_broken_store(project: Path) -> None:
    replace_by_folder(project / "mlflow.db")
    with pytest.raises(ZeroDivisionError), runs.start("vit"):
        raise ZeroDivisionError


def test_what_is_refused_is_left_out_alone(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    with runs.start("vit") as run:
        run.log_params({"seed": 0})
        run.log_params({"seed": 1})
        run.log_files(project / "none.csv", project / "neither.csv")
        run.log_metrics({"loss": 1.0}, step=1)
    assert len(warnings_of(caplog)) == 1
    kept = read_run(project, run.id)
    assert (kept.data.params, kept.data.metrics) == ({"seed": "0"}, {"loss": 1.0})
    assert kept.info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_a_run_that_is_gone_from_the_store_is_told_once(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with runs.add_to("0" * 32) as run:
        use(run, project)
    assert len(warnings_of(caplog)) == 1
    assert run.id == "0" * 32  # it may be there again, once the training is taken up again
