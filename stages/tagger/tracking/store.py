"""The store of MLflow: where it is, and what the project keeps in it."""

import fcntl
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, LoggedModel, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

from tagger.images.dataset import Split
from tagger.system import scratch

EXPERIMENT = "tagger"

# A server that is away should be noticed in seconds, not in MLflow's many minutes.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_LOCKED = 20  # seconds that MLflow, too, waits for another process to release its database


class Store(NamedTuple):
    client: MlflowClient
    experiment: str  # its id


def connect() -> Store:
    """Return the store beside the pipeline, also when DVC runs a copy of it, unless told otherwise.

    Raises whatever MLflow, its database or the network does.
    """
    for name, value in TIMEOUTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="mlflow|alembic|sqlalchemy")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told by us, once
    root, given = scratch.project_root().absolute(), os.environ.get("MLFLOW_TRACKING_URI")
    database = root / "mlflow.db"
    mlflow.set_tracking_uri(given or f"sqlite:///{database}")
    if not given:
        with closing(sqlite3.connect(database, _LOCKED)) as connection:  # MLflow tries for minutes
            connection.execute("select 1 from sqlite_master limit 1")
    is_file = not given or given.startswith("sqlite")
    with _alone() if is_file else nullcontext():  # two that make the tables get in each other's way
        if mlflow.get_experiment_by_name(EXPERIMENT) is None:
            with suppress(MlflowException):  # another process has just made it
                artifacts = (root / "mlruns").as_uri() if not given else None
                mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts)
        return Store(MlflowClient(), mlflow.set_experiment(EXPERIMENT).experiment_id)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process of the project is at what must not be done twice."""
    lock = scratch.stage_folder("mlflow.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def origin_tags() -> dict[str, str]:
    """Return the tags that say where a run comes from: the commit, and the experiment of DVC."""
    commit = _git("rev-parse", "HEAD")
    return {"git_commit": commit, "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}


def parent_run(store: Store) -> str | None:
    """Return the run above all experiments that DVC makes from the same commit; it has ended.

    Outside an experiment of DVC there is none.
    """
    commit = os.environ.get("DVC_EXP_BASELINE_REV")
    if not (commit and os.environ.get("DVC_EXP_NAME")):
        return None
    with _alone():  # workers of `dvc queue` start at the same time
        query = f"tags.dvc_baseline = '{commit}'"
        if found := store.client.search_runs([store.experiment], query, max_results=1):
            return str(found[0].info.run_id)
        name = f"experiments from {commit[:7]}"
        about = {"dvc_baseline": commit}
        subject = _git("log", "-1", "--format=%s", commit)
        with mlflow.start_run(run_name=name, tags=about, description=subject or None) as parent:
            return str(parent.info.run_id)


def _git(*arguments: str) -> str:
    """Return what Git prints, or nothing outside a repository and without Git."""
    if not shutil.which("git"):
        return ""
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def logged_models(client: MlflowClient, run: str) -> dict[str, LoggedModel]:
    """Return the models that a run has logged to their end, by name; of several the latest."""
    experiment, query = client.get_run(run).info.experiment_id, f"source_run_id = '{run}'"
    found = client.search_logged_models([experiment], query)
    whole = [model for model in found if model.status == LoggedModelStatus.READY]
    return {model.name: model for model in sorted(whole, key=lambda one: one.creation_timestamp)}


def dataset(name: str, digest: str, source: Path, part: Split) -> Dataset:
    """Return a part of the data as MLflow knows it."""
    counts = {"pictures": len(part), "tags": part.labels.shape[1], "labels": part.labels.nnz}
    return Dataset(
        name,
        digest,
        "local",
        json.dumps({"uri": str(source)}),
        profile=json.dumps({key: int(count) for key, count in counts.items()}),
    )


def metric(
    name: str, value: float, at: int, step: int, data: Dataset | None, model: LoggedModel | None
) -> Metric:
    """Return a number of a run, of a model, too, where there is one, and on some data.

    at: milliseconds since 1970
    """
    return Metric(
        name,
        value,
        at,
        step,
        model_id=model.model_id if model else None,
        dataset_name=data.name if data else None,
        dataset_digest=data.digest if data else None,
    )


def reason(error: BaseException) -> str:
    """Return what an error of the store says, without the request or the query that led to it."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result")]
    return (lines or [type(error).__name__])[0].rstrip(".")


def now_ms() -> int:
    return int(time.time() * 1000)


def mlflow_name(name: str) -> str:
    """Return a name with those characters alone that MLflow takes in names."""
    return re.sub(r"[^\w./: -]", "_", name)
