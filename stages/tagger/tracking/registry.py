"""MLflow's model registry: the model of the best run gets a version and an alias."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException

from tagger.core.errors import TaggerError
from tagger.tracking import store

_BEST = "best"  # a checkpoint that training tracks
_COPIED_TAGS = ("preset", "data", "git_commit", "dvc_experiment")  # from the run to the version
_EXTERNAL = "mlflow.model.isExternal"


class ModelVersion(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str
    alias: str
    run: Run
    file: str  # of its weights, in the project as the run left it; empty: MLflow holds them

    def summary(self, metric: str) -> str:
        """Return a line about the version, its run, and the metric of the run."""
        line = f"{self.run.info.run_name}, {metric} {self.run.data.metrics[metric]:.3f}: "
        line += f"version {self.number} of {self.name}, alias {self.alias}"
        return line + (f", weights in {self.file}" if self.file else "")


def best_run(metric: str, data: str) -> Run:
    """Return the run with the highest metric among the runs on the same data, by its digest.

    Raises TaggerError if there is no such run, and if the store cannot be read.
    """
    with _explained():
        store.connect()
        runs = mlflow.search_runs(
            # Comparing leaves out runs without the metric.
            filter_string=f"tags.data = '{data}' and metrics.`{metric}` > -1e300",
            order_by=[f"metrics.`{metric}` DESC"],
            max_results=1,
            output_format="list",
        )
        if not runs:
            raise TaggerError("MLflow has no run that was evaluated on this data. Run `dvc repro`.")
        return runs[0]


def register(run: Run, name: str, alias: str) -> ModelVersion:
    """Give the model of a run a version under the name, unless it has one; move the alias there.

    Raises TaggerError if the store refuses, and if the run has no model.
    """
    with _explained():
        store.connect()
        client = MlflowClient()
        model = _model_of(run)
        source = f"models:/{model.model_id}"
        versions = client.search_model_versions(f"name = '{name}'")
        earlier = next((str(each.version) for each in versions if each.source == source), None)
        number = earlier or _create_version(client, run, model, name)
        client.set_registered_model_alias(name, alias, number)
        return ModelVersion(name, number, alias, run, model.tags.get("file", ""))


def _model_of(run: Run) -> LoggedModel:
    """Return the model that MLflow itself can load, if the run has one; or the best checkpoint."""
    models = store.logged_models(run.info.run_id)
    loadable = [model for model in models.values() if model.tags.get(_EXTERNAL) != "true"]
    if not (loadable or _BEST in models):
        raise TaggerError(
            f"The run {run.info.run_name} ({run.info.run_id}) has no model in MLflow. "
            "It was away when the training ended: train again."
        )
    return loadable[-1] if loadable else models[_BEST]


def _create_version(client: MlflowClient, run: Run, model: LoggedModel, name: str) -> str:
    """Return the number of a new version. mlflow.register_model would print, and describe none."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {key: run.data.tags[key] for key in _COPIED_TAGS if key in run.data.tags}
    tags |= {key: value for key, value in model.tags.items() if not key.startswith("mlflow.")}
    version = client.create_model_version(
        name,
        f"models:/{model.model_id}",
        run.info.run_id,
        tags=tags,
        description=f"{model.name} of {run.info.run_name}, {tags.get('file', 'kept by MLflow')}",
        model_id=model.model_id,
    )
    return str(version.version)


@contextmanager
def _explained() -> Iterator[None]:
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
