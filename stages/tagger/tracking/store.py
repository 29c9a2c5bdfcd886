"""The MLflow store: where it is, and what the project keeps in it."""

import fcntl
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import mlflow
from mlflow.entities import Dataset, LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException

from tagger.system import scratch

EXPERIMENT = "tagger"

# Used unless they are set. A server that is away is noticed in seconds, not in MLflow's minutes.
# System metrics have a point every half minute: a training of minutes has a curve.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "3",
}
LOCK_TIMEOUT = 20.0  # seconds that MLflow, too, waits for another process to release its database


def connect() -> None:
    """Select the store and its experiment.

    The store is the one that MLFLOW_TRACKING_URI names, else `mlflow.db` in the root of the
    project, also if DVC runs a copy of it. Raises any error of MLflow, its database or the network.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="mlflow|alembic|sqlalchemy")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the project warns of failures, once
    root, uri = scratch.project_root().absolute(), os.environ.get("MLFLOW_TRACKING_URI")
    database = root / "mlflow.db"
    mlflow.set_tracking_uri(uri or f"sqlite:///{database}")
    if not uri:
        # MLflow would try a database that it cannot read for minutes.
        with closing(sqlite3.connect(database, LOCK_TIMEOUT)) as connection:
            connection.execute("select 1 from sqlite_master limit 1")
    is_file = not uri or uri.startswith("sqlite")
    with _lock() if is_file else nullcontext():  # two processes cannot make the tables at once
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            with suppress(MlflowException):  # another process has just made it
                artifacts = (root / "mlruns").as_uri() if not uri else None
                mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts)
        mlflow.set_experiment(EXPERIMENT)


@contextmanager
def _lock() -> Iterator[None]:
    """Wait until no other process of the project holds the lock."""
    path = scratch.stage_folder("mlflow.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def origin_tags() -> dict[str, str]:
    """Return the tags that say where a run comes from: the Git commit and the DVC experiment."""
    commit = _git("rev-parse", "HEAD")
    return {"git_commit": commit, "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}


def parent_run() -> str | None:
    """Return the run above all DVC experiments from the same commit; it is made if need be.

    Outside a DVC experiment there is none.
    """
    commit = os.environ.get("DVC_EXP_BASELINE_REV")
    if not (commit and os.environ.get("DVC_EXP_NAME")):
        return None
    query = f"tags.dvc_baseline = '{commit}'"
    with _lock():  # workers of `dvc queue` start at the same time
        if parents := mlflow.search_runs(filter_string=query, max_results=1, output_format="list"):
            return str(parents[0].info.run_id)
        with mlflow.start_run(
            run_name=f"experiments from {commit[:7]}",
            tags={"dvc_baseline": commit},
            description=_git("log", "-1", "--format=%s", commit) or None,
            log_system_metrics=False,
        ) as parent:
            return str(parent.info.run_id)


def _git(*arguments: str) -> str:
    """Return what Git prints, or nothing outside a repository and without Git."""
    if not shutil.which("git"):
        return ""
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def logged_models(run_id: str) -> dict[str, LoggedModel]:
    """Return the complete logged models of a run by name; of one name the latest."""
    models = mlflow.search_logged_models(
        filter_string=f"source_run_id = '{run_id}'", output_format="list"
    )
    complete = [model for model in models if model.status == LoggedModelStatus.READY]
    return {model.name: model for model in sorted(complete, key=lambda m: m.creation_timestamp)}


def dataset(name: str, digest: str, source: Path, profile: Mapping[str, int]) -> Dataset:
    """Return a split of the data as MLflow knows it."""
    uri = json.dumps({"uri": str(source)})
    return Dataset(name, digest, "local", uri, profile=json.dumps(dict(profile)))


def reason(error: BaseException) -> str:
    """Return the message of an error, without the request or the query that led to it."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result")]
    return (lines or [type(error).__name__])[0].rstrip(".")


def mlflow_name(name: str) -> str:
    """Return a name with only the characters that MLflow takes in names."""
    return re.sub(r"[^\w./: -]", "_", name)
