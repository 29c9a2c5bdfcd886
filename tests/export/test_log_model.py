"""A run logs its export once, as a model that is registered and served."""

import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus

from support.mlflow_models import assert_same_tags, image_files, infer_tags, load_model, predict
from support.mlflow_stores import client, project, read_run
from tagger.export import log_model
from tagger.tracking import registry, runs, store

__all__ = ["image_files", "project"]


@contextmanager
def serve(uri: str, folder: Path) -> Iterator[str]:
    """Yield the address of `mlflow models serve`, once it answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = ["models", "serve", "-m", uri, "-p", str(port), "-h", "127.0.0.1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--env-manager", "local"],
            env=os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(400):
            assert server.poll() is None, (folder / "serve.log").read_text()
            try:
                with urlopen(f"http://127.0.0.1:{port}/ping"):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def post(address: str, **content: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(address, json.dumps(content).encode(), headers)) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.timeout(90)
def test_registered_run_is_served(
    project: Path, export_folder: Path, image_files: list[Path], run_infer: Callable[..., int]
) -> None:
    expected = infer_tags(run_infer, *image_files)
    with runs.start("vit", data="abc") as trained:
        trained.log_checkpoint("best", Path("models/tagger/model.safetensors"), {"ap": 0.5}, 3)
    with runs.add_to(trained.id) as again:
        again.log_metrics({"test": {"macro_ap": 0.5}})
        log_model.log_export(again, export_folder)
    best = registry.best_run("test.macro_ap", "abc")
    assert registry.register(best, "illustration-tagger", "best").file == ""
    uri = "models:/illustration-tagger@best"
    assert_same_tags(predict(load_model(uri), path=list(map(str, image_files))), expected)
    images = [[base64.b64encode(path.read_bytes()).decode()] for path in image_files]
    images.append(["bm8gcGljdHVyZQ=="])
    with serve(uri, project) as address:
        *rows, failed = post(address, dataframe_split={"columns": ["image"], "data": images})
        assert_same_tags(rows, expected)
        assert (failed["tags"], failed["rating"]) == ({}, None)
        assert "of a known format" in failed["error"]
        paths = [{"path": str(path)} for path in image_files]
        assert_same_tags(post(address, dataframe_records=paths), expected)
        with pytest.raises(HTTPError) as error:
            post(address, dataframe_records=paths, params={"threshold": "1.5"})
        with error.value as answer:
            assert answer.code == 400
            assert "threshold: 1.5 is not between 0 and 1" in json.load(answer)["message"]


def test_export_is_logged_once_and_its_run_does_not_change(
    project: Path, export_folder: Path, write_file: Callable[[str, bytes], Path]
) -> None:
    with runs.start("vit") as trained:
        trained.log_metrics({"test": {"macro_ap": 0.5}})
    before = read_run(project, trained.id)
    for _ in range(2):
        with runs.add_to(trained.id) as again:
            log_model.log_export(again, export_folder)
    after, store_client = read_run(project, trained.id), client(project)
    assert (dict(after.info), after.data.metrics) == (dict(before.info), before.data.metrics)
    assert len(store_client.get_metric_history(str(trained.id), "test.macro_ap")) == 1
    (first,) = store_client.search_logged_models([after.info.experiment_id])
    assert (first.name, first.status) == (log_model.MODEL_NAME, LoggedModelStatus.READY)
    assert [(m.key, m.value) for m in first.metrics or []] == [("test.macro_ap", 0.5)]
    for name in log_model.FILES:
        write_file(f"other/{name}", (export_folder / name).read_bytes())
    (project / "other" / "calibration.json").unlink()
    with runs.add_to(trained.id) as again:
        log_model.log_export(again, project / "other")
    assert len(store_client.search_logged_models([after.info.experiment_id])) == 2
    assert store.logged_models(str(trained.id))[log_model.MODEL_NAME].model_id != first.model_id


@pytest.mark.timeout(30)
def test_broken_store_is_warned_of_once(
    project: Path, export_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with runs.start("vit") as run:
        (project / "mlflow.db").write_bytes(b"this is no database, and never was one\n" * 40)
        log_model.log_export(run, export_folder)
        log_model.log_export(run, export_folder)
    (record,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert "going on without it" in record.getMessage()


def test_logging_prints_nothing(
    project: Path, export_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with runs.start("vit") as run:
        log_model.log_export(run, export_folder)
    assert capfd.readouterr() == ("", "")
