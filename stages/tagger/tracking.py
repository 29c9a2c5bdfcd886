"""MLflow: every training is a run, and judging adds to it. A broken store never stops a stage."""

import logging
import os
import shutil
import sqlite3
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from PIL import Image

from tagger import plots, scratch

T = TypeVar("T")

EXPERIMENT = "tagger"
_log = logging.getLogger(__name__)

# A server that is away should be noticed in seconds, not in MLflow's many minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Run:
    """One MLflow run. The first call that fails is told, later ones are left out."""

    def __init__(self) -> None:
        self.id: str | None = None
        self._broken = False

    def try_to(self, action: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Return what the action returns, or None where the store does not take it."""
        if self._broken:
            return None
        try:
            return action(*args, **kwargs)
        except Exception as error:  # whatever the store, its driver or the network may raise
            self._broken = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _log.warning("MLflow cannot be written, going on without it: %s", reason)
            return None

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.try_to(mlflow.log_params, flatten(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the numbers of a nested mapping, named by their path: `test.macro_ap`."""
        numbers = {k: v for k, v in flatten(metrics).items() if isinstance(v, int | float)}
        self.try_to(mlflow.log_metrics, numbers, step=step)

    def log_files(self, *paths: Path) -> None:
        for path in paths:
            self.try_to(mlflow.log_artifact, str(path))

    def log_curve(self, path: Path, title: str) -> None:
        """Log a CSV and a drawing of it: every column after the first against the first."""
        self.log_files(path)
        self.try_to(lambda: mlflow.log_figure(plots.curve(path, title), f"{path.stem}.png"))

    def log_picture(self, picture: Image.Image, name: str, step: int) -> None:
        self.try_to(mlflow.log_image, picture, key=name, step=step)

    def log_checkpoint(
        self, name: str, file: Path, metrics: Mapping[str, float], step: int
    ) -> None:
        """Track a checkpoint as a logged model of this run that points at its file."""

        def track() -> None:
            model = mlflow.create_external_model(
                name=name, source_run_id=self.id, tags={"file": str(file), "step": str(step)}
            )
            mlflow.log_metrics(dict(metrics), step=step, model_id=model.model_id)

        self.try_to(track)


@contextmanager
def run(name: str | None = None, *, run_id: str | None = None, **tags: str) -> Iterator[Run]:
    """Yield a new run, or an earlier one to add to. It ends with the block, and fails with it."""
    current = Run()
    current.try_to(_open_store)
    tags |= {"git_commit": _git_commit(), "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    new = {} if run_id else {"run_name": name, "tags": {k: v for k, v in tags.items() if v}}
    active = current.try_to(mlflow.start_run, run_id, **new)
    current.id = active.info.run_id if active else run_id
    status = "FAILED"
    try:
        yield current
        status = "FINISHED"
    finally:
        if active:
            with suppress(Exception):  # told already, where the store has failed
                mlflow.end_run(status)


def _open_store() -> None:
    """Keep runs beside the pipeline, also when DVC runs a copy of it, unless told otherwise."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="mlflow|alembic|sqlalchemy")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    root = scratch.project().absolute()
    local = "MLFLOW_TRACKING_URI" not in os.environ
    if local:
        database = root / "mlflow.db"
        with closing(sqlite3.connect(database)) as connection:  # MLflow would try for minutes
            connection.execute("select 1 from sqlite_master limit 1")
        mlflow.set_tracking_uri(f"sqlite:///{database}")
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        artifacts = (root / "mlruns").as_uri() if local else None
        mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts)
    mlflow.set_experiment(EXPERIMENT)


def _git_commit() -> str:
    """Return the commit checked out, or nothing outside a repository and without Git."""
    if not shutil.which("git"):
        return ""
    command = ["git", "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted path."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
