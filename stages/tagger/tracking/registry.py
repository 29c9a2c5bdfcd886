"""MLflow's registry: the best of the runs, and its model under a name that others load it by."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException

from tagger.core.errors import TaggerError
from tagger.tracking import store

_BEST = "best"  # of the checkpoints that a training tracks
_TOLD = ("preset", "data", "git_commit", "dvc_experiment")  # tags of a run
_EXTERNAL = "mlflow.model.isExternal"


class ModelVersion(NamedTuple):
    """A registered model."""

    name: str
    number: str
    alias: str
    run: Run
    file: str  # of its weights, in the project as the run left it; empty: MLflow holds them

    def summary(self, metric: str) -> str:
        """Return what is to be told: which run it is of, and how good that is by a metric."""
        told = f"{self.run.info.run_name}, {metric} {self.run.data.metrics[metric]:.3f}: "
        told += f"version {self.number} of {self.name}, alias {self.alias}"
        return told + (f", weights in {self.file}" if self.file else "")


def best_run(metric: str, data: str) -> Run:
    """Return the run with the highest metric of those on the same data, by its digest.

    Raises TaggerError where there is none, and where the store cannot be read.
    """
    with _told():
        opened = store.connect()
        found = opened.client.search_runs(
            [opened.experiment],
            f"tags.data = '{data}' and metrics.`{metric}` > -1e300",  # which no missing value is
            order_by=[f"metrics.`{metric}` DESC"],
            max_results=1,
        )
        if not found:
            raise TaggerError("MLflow has no run that was judged on this data. Run `dvc repro`.")
        return found[0]


def register(run: Run, name: str, alias: str) -> ModelVersion:
    """Give the model of a run a version under the name, unless it has one; move the alias there.

    Raises TaggerError where the store refuses, and where the run has no model.
    """
    with _told():
        client = store.connect().client
        model = _model(client, run)
        source = f"models:/{model.model_id}"
        known = client.search_model_versions(f"name = '{name}'")
        number = next((str(one.version) for one in known if one.source == source), None)
        made = number or _make(client, run, model, name)
        client.set_registered_model_alias(name, alias, made)
        file = model.tags.get("file", "")
        return ModelVersion(name, made, alias, run, file)


def _model(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the model that MLflow itself can load, if the run has one; or the best checkpoint."""
    models = store.logged_models(client, run.info.run_id)
    whole = [model for model in models.values() if model.tags.get(_EXTERNAL) != "true"]
    if not (whole or _BEST in models):
        raise TaggerError(
            f"The run {run.info.run_name} ({run.info.run_id}) has no model in MLflow. "
            "It was away when the training ended: train again."
        )
    return whole[-1] if whole else models[_BEST]


def _make(client: MlflowClient, run: Run, model: LoggedModel, name: str) -> str:
    """Return the number of a new version."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {key: run.data.tags[key] for key in _TOLD if key in run.data.tags}
    tags |= {key: value for key, value in model.tags.items() if not key.startswith("mlflow.")}
    about = f"{model.name} of {run.info.run_name}, {tags.get('file', 'kept by MLflow')}"
    made = client.create_model_version(
        name,
        f"models:/{model.model_id}",
        run.info.run_id,
        tags=tags,
        description=about,
        model_id=model.model_id,
    )
    return str(made.version)


@contextmanager
def _told() -> Iterator[None]:
    """Turn whatever the store raises into one line for the user."""
    try:
        yield
    except TaggerError:
        raise
    except Exception as error:
        raise TaggerError(
            f"MLflow at {mlflow.get_tracking_uri()}: {store.reason(error)}. "
            "Put that right, or set MLFLOW_TRACKING_URI to another store."
        ) from error
