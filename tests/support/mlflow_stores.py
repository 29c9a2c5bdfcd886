"""Stores of MLflow for tests: one for each test, or none that answers."""

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from support.projects import empty_mlflow_store
from tagger.tracking import store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of its own, as DVC announces it, with nothing left of it afterwards."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    for name, value in store.SETTINGS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mlflow.db").write_bytes(empty_mlflow_store())
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def client(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def read_run(project: Path, run_id: str | None) -> Run:
    assert run_id is not None
    return client(project).get_run(run_id)


def all_runs(project: Path) -> list[Run]:
    """Return all runs, the earliest first."""
    store_client = client(project)
    experiment = store_client.get_experiment_by_name(store.EXPERIMENT)
    assert experiment is not None
    return list(
        store_client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    )


@contextmanager
def locked_database(project: Path) -> Iterator[None]:
    """Hold the database as another process does that writes to it and does not come to an end."""
    with closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        yield
        connection.execute("rollback")


@contextmanager
def refusing_server() -> Iterator[str]:
    """Yield the address of a server that answers 500 to everything."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(500)

        do_POST = do_PUT = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            """Tell nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def unreachable_address() -> str:
    """Return the address of a server that is not there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"
