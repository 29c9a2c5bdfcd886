"""MLflow: every training is a run, and judging adds to it. A broken store never stops a stage."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Param, RunTag
from PIL import Image

from tagger.images.dataset import Split
from tagger.tracking import machine, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, which a training does not need

T = TypeVar("T")

_DATA = ("posts", "vocabulary", "split")  # what a model learns and is judged by
_SLOW = 1.0  # seconds, from which on a call that fails means that the store is away
_REST = 100  # times as long as that call took, the store is left alone: it costs 1 % at most
_log = logging.getLogger(__name__)


class TrackedRun:
    """One MLflow run. What the store does not take is told once, and left out."""

    def __init__(self, run_id: str | None = None) -> None:
        self.id = run_id
        self.client: MlflowClient | None = None  # none where the run could not be opened
        self._data: dict[str, Dataset] = {}
        self._told = False
        self._resting_until = 0.0

    def try_to(self, action: Callable[..., T], *args: Any) -> T | None:
        """Return what the action returns, or None where the store does not take it."""
        begun = time.monotonic()
        if begun < self._resting_until:
            return None
        try:
            return action(*args)
        except Exception as error:  # whatever the store, its driver or the network may raise
            ended = time.monotonic()
            if ended - begun > _SLOW:
                self._resting_until = ended + _REST * (ended - begun)
            if not self._told:
                told = "MLflow cannot be written, going on without it: %s"
                _log.warning(told, store.reason(error))
            self._told = True
            return None

    def _write(self, action: Callable[[MlflowClient, str], object]) -> None:
        if self.client and self.id:
            self.try_to(action, self.client, self.id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the leaves of a nested mapping, named by their path: `train.loss.kind`."""
        every = [Param(store.mlflow_name(k), str(v)) for k, v in flatten(params).items()]
        self._write(lambda client, run: client.log_batch(run, params=every))

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int = 0, *, checkpoint: str | None = None
    ) -> None:
        """Log the numbers of a nested mapping, named by their path: `test.macro_ap`.

        Of [low, high], `.low` and `.high` are logged. Figures whose path starts with the name of
        data that was logged are figures on these.

        checkpoint: the name of one that was logged, whose figures these are, too
        """

        def write(client: MlflowClient, run: str) -> None:
            model = store.logged_models(client, run).get(checkpoint) if checkpoint else None
            now = store.now_ms()
            every = [
                store.metric(name, value, now, step, self._data.get(name.split(".")[0]), model)
                for name, value in numeric_leaves(metrics).items()
            ]
            client.log_batch(run, metrics=every)

        self._write(write)

    def log_data(self, name: str, digest: str, source: Path, **splits: Split) -> None:
        """Log what is trained or judged on, by part: its name, where it is from, and its counts."""
        self._data |= {
            part: store.dataset(f"{name}-{part}", digest, source, content)
            for part, content in splits.items()
        }
        inputs = [
            DatasetInput(self._data[part], [InputTag("mlflow.data.context", part)])
            for part in splits
        ]
        self._write(lambda client, run: client.log_inputs(run, inputs))

    def log_machine(self) -> None:
        """Log what the run runs on: versions and device as tags, all packages as a file."""

        def write(client: MlflowClient, run: str) -> None:
            tags = [RunTag(name, value) for name, value in machine.machine_tags().items()]
            client.log_batch(run, tags=tags)
            client.log_text(run, machine.installed_packages(), "packages.txt")

        self._write(write)

    def log_files(self, *paths: Path, under: str | None = None) -> None:
        """Log files and folders, below a folder of the run."""
        for path in paths:
            self._write(partial(_log_file, path=str(path), under=under))

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Log a drawing as a file of this name, whose ending says in which format."""
        self._write(lambda client, run: client.log_figure(run, figure, name))

    def log_image(self, image: Image.Image, name: str, step: int) -> None:
        self._write(lambda client, run: client.log_image(run, image, key=name, step=step))

    def log_checkpoint(
        self, name: str, file: Path, metrics: Mapping[str, float], step: int, sha256: str = ""
    ) -> None:
        """Track a checkpoint as a logged model of this run that points at its file.

        One that the run has already, of this name and hash, stays as it is: a training that was
        killed at its end comes here again.
        metrics: its figures on the data logged as `validation`, which the run has at this step
        """

        def write(client: MlflowClient, run: str) -> None:
            earlier = store.logged_models(client, run).get(name)
            if sha256 and earlier and earlier.tags.get("sha256") == sha256:
                return
            tags = {"file": str(file), "step": str(step), "sha256": sha256}
            model = mlflow.create_external_model(name=name, source_run_id=run, tags=tags)
            client.log_outputs(run, [LoggedModelOutput(model.model_id, step)])
            history = client.get_metric_history(run, next(iter(metrics)))
            # at the same time as the run's own, else the run would have each point twice
            stamp = {one.step: one.timestamp for one in history}.get(step, store.now_ms())
            on = self._data.get("validation")
            every = [store.metric(k, v, stamp, step, on, model) for k, v in metrics.items()]
            client.log_batch(run, metrics=every)

        self._write(write)


def start(
    name: str, *, run_id: str | None = None, **tags: str
) -> AbstractContextManager[TrackedRun]:
    """Return a new run, or an earlier one taken up again; it ends with the block."""
    return _run(name, run_id, tags)


def add_to(run_id: str | None) -> AbstractContextManager[TrackedRun]:
    """Return an earlier run that is only added to: what it says of its end stays. None: no run."""
    return _run(None, run_id, {})


@contextmanager
def _run(name: str | None, run_id: str | None, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    """Yield a new run, which ends with the block and fails with it; or an earlier one.

    With a name, an earlier one is taken up again, and ends like a new one. Without, it is only
    added to: what it says of its end stays.
    """
    current = TrackedRun(run_id)
    client = current.try_to(_open, current, name, tags) if name or run_id else None
    watching = machine.system_metrics(str(current.id)) if client and name else nullcontext()
    status = "FAILED"
    try:
        with watching:
            yield current
        status = "FINISHED"
    finally:
        if client:
            with suppress(Exception):  # told already, where the store has failed
                _end(client, current, name, status)


def _open(current: TrackedRun, name: str | None, tags: Mapping[str, str]) -> MlflowClient:
    """Make the run one that can be written, in the store as well."""
    opened = store.connect()
    if name and current.id:
        mlflow.start_run(current.id, log_system_metrics=False)
    elif name:
        tags = {**tags, **store.origin_tags()}
        above = store.parent_run(opened)
        started = mlflow.start_run(
            run_name=name,
            parent_run_id=above,
            tags={store.mlflow_name(k): v for k, v in tags.items() if v},
            log_system_metrics=False,
        )
        current.id = started.info.run_id
    else:
        opened.client.get_run(str(current.id))
    current.client = opened.client
    return opened.client


def _end(client: MlflowClient, current: TrackedRun, name: str | None, status: str) -> None:
    if name:
        mlflow.end_run(status)
    elif status == "FINISHED" != client.get_run(str(current.id)).info.status:
        client.set_terminated(str(current.id))  # which the training could not tell


def _log_file(client: MlflowClient, run: str, path: str, under: str | None) -> None:
    client.log_artifact(run, path, under)


def data_digest(hashes: Mapping[str, str]) -> str:
    """Return one short hash of the data's: runs that have it in common can be compared."""
    return hashlib.sha256("".join(hashes[name] for name in _DATA).encode()).hexdigest()[:12]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted path."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numeric_leaves(nested: Mapping[str, Any]) -> dict[str, float]:
    """Return the leaves that are numbers, by their path; [low, high] are two."""
    found: dict[str, float] = {}
    for path, value in flatten(nested).items():
        if isinstance(value, int | float):
            found[path] = value
        elif isinstance(value, list | tuple) and len(value) == 2:
            found |= numeric_leaves(dict(zip((f"{path}.low", f"{path}.high"), value, strict=True)))
    return {store.mlflow_name(path): value for path, value in found.items()}
