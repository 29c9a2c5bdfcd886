"""MLflow runs: every training is one, and evaluation and export add to it.

A broken store never stops a stage: what it does not take is lost, with one warning.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, RunInfo
from PIL import Image

from tagger.tracking import machine, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, which a training does not need

T = TypeVar("T")

SLOW = 1.0  # seconds: a call that fails after so long means that the store is away
PAUSE = 100  # times as long as that call, nothing is sent: a dead store costs 1 % of the time
_DATA = ("posts", "vocabulary", "split")  # what a model is trained and evaluated on
_log = logging.getLogger(__name__)


class TrackedRun:
    """An MLflow run, the active one while it is open. If the store is away, nothing is logged."""

    def __init__(self, run_id: str | None = None) -> None:
        self.id = run_id
        self._is_open = False
        self._datasets: dict[str, Dataset] = {}
        self._has_warned = False
        self._paused_until = 0.0

    def attempt(self, action: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """Return what a call of MLflow returns, or None if it fails; warn at the first failure."""
        started = time.monotonic()
        if started < self._paused_until:
            return None
        try:
            return action(*args, **options)
        except Exception as error:  # whatever the store, its driver or the network may raise
            ended = time.monotonic()
            if ended - started > SLOW:
                self._paused_until = ended + PAUSE * (ended - started)
            if not self._has_warned:
                reason = store.reason(error)
                _log.warning("MLflow cannot be written, going on without it: %s", reason)
            self._has_warned = True
            return None

    def log(self, action: Callable[..., object], *args: Any, **options: Any) -> None:
        """Do what logs to the active run, if the run is open."""
        if self._is_open:
            self.attempt(action, *args, **options)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the leaves of a nested mapping, named by their path: `train.loss.kind`."""
        leaves = {store.mlflow_name(path): value for path, value in flatten(params).items()}
        self.log(mlflow.log_params, leaves)

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int = 0, *, checkpoint: str | None = None
    ) -> None:
        """Log the numbers of a nested mapping, named by their path: `test.macro_ap`.

        Of [low, high], `.low` and `.high` are logged. Metrics below the name of a split whose data
        was logged are metrics on that data.

        checkpoint: the name of a logged checkpoint, whose metrics these are, too
        """
        by_split: dict[str, dict[str, float]] = {}
        for name, value in numeric_leaves(metrics).items():
            by_split.setdefault(name.split(".")[0] if "." in name else "", {})[name] = value
        for split, values in by_split.items():
            self.log(self._log_metrics, values, step, split, checkpoint)

    def _log_metrics(
        self, metrics: dict[str, float], step: int, split: str, checkpoint: str | None
    ) -> None:
        model = store.logged_models(str(self.id)).get(checkpoint) if checkpoint else None
        mlflow.log_metrics(
            metrics,
            step=step,
            run_id=self.id if model else None,  # as in log_checkpoint
            model_id=model.model_id if model else None,
            dataset=self._datasets.get(split),
        )

    def log_data(
        self, name: str, digest: str, source: Path, counts: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Log the data that a model is trained or evaluated on.

        counts: of images, tags and labels, by split
        """
        for split, profile in counts.items():
            dataset = store.dataset(f"{name}-{split}", digest, source, profile)
            self._datasets[split] = dataset
        inputs = [
            DatasetInput(self._datasets[split], [InputTag("mlflow.data.context", split)])
            for split in counts
        ]
        # mlflow.log_inputs takes only data sets that it can read.
        self.log(lambda: MlflowClient().log_inputs(str(self.id), inputs))

    def log_machine(self) -> None:
        """Log versions and device as tags, and all installed packages as a file."""
        self.log(lambda: mlflow.set_tags(machine.machine_tags()))
        self.log(lambda: mlflow.log_text(machine.installed_packages(), "packages.txt"))

    def log_files(self, *paths: Path, under: str | None = None) -> None:
        """Log files and folders, below a folder of the run."""
        for path in paths:
            self.log(mlflow.log_artifact, str(path), under)

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Log a figure as a file of this name, whose ending is its format."""
        self.log(mlflow.log_figure, figure, name)

    def log_image(self, image: Image.Image, name: str, step: int) -> None:
        self.log(mlflow.log_image, image, key=name, step=step, synchronous=True)

    def log_checkpoint(
        self, name: str, file: Path, metrics: Mapping[str, float], step: int, sha256: str = ""
    ) -> None:
        """Track a checkpoint as a logged model of this run that points at its file.

        A checkpoint of the same name and hash is not tracked again: a training that was killed at
        its end comes here twice.
        metrics: on the data logged as `validation`, which the run has at this step already
        """
        self.log(self._log_checkpoint, name, file, dict(metrics), step, sha256)

    def _log_checkpoint(
        self, name: str, file: Path, metrics: dict[str, float], step: int, sha256: str
    ) -> None:
        earlier = store.logged_models(str(self.id)).get(name)
        if sha256 and earlier and earlier.tags.get("sha256") == sha256:
            return
        tags = {"file": str(file), "step": str(step), "sha256": sha256}
        model = mlflow.create_external_model(name, tags=tags)
        mlflow.log_outputs([LoggedModelOutput(model.model_id, step)])
        # With the time stamp that the run's own points have, they are not logged twice.
        history = MlflowClient().get_metric_history(str(self.id), next(iter(metrics)))
        mlflow.log_metrics(
            metrics,
            step=step,
            run_id=self.id,  # makes MLflow look up the run's outputs, else the model is an input
            timestamp={point.step: point.timestamp for point in history}.get(step),
            model_id=model.model_id,
            dataset=self._datasets.get("validation"),
        )

    def open_training(self, name: str, tags: Mapping[str, str]) -> None:
        """Start the run, or resume it if it has an id."""
        store.connect()
        watch = None if find_spec("psutil") else False  # None: as MLflow's variables say
        if self.id:
            mlflow.start_run(self.id, log_system_metrics=watch)
        else:
            tags = {**tags, **store.origin_tags()}
            run = mlflow.start_run(
                run_name=name,
                parent_run_id=store.parent_run(),
                tags={store.mlflow_name(key): value for key, value in tags.items() if value},
                log_system_metrics=watch,
            )
            self.id = run.info.run_id
        self._is_open = True

    def reopen(self) -> RunInfo:
        """Make an earlier run the active one, and return what it said of its end."""
        store.connect()
        info = mlflow.get_run(str(self.id)).info
        mlflow.start_run(self.id, log_system_metrics=False)
        self._is_open = True
        return info


@contextmanager
def start(name: str, *, run_id: str | None = None, **tags: str) -> Iterator[TrackedRun]:
    """Yield a new run, or resume an earlier one; it ends with the block, and fails with it."""
    run = TrackedRun(run_id)
    run.attempt(run.open_training, name, tags)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        with suppress(Exception):  # has been warned of, if the store has failed
            mlflow.end_run(status)


@contextmanager
def add_to(run_id: str | None) -> Iterator[TrackedRun]:
    """Yield an earlier run to add to; its status and its end stay. None: a run of nothing.

    A run that never told its end has finished, if the block does.
    """
    run = TrackedRun(run_id)
    info = run.attempt(run.reopen) if run_id else None
    status = info.status if info else ""
    try:
        yield run
        status = "FINISHED"
    finally:
        if info:
            end_time = info.end_time if status == info.status else None
            with suppress(Exception):
                mlflow.end_run(status)
                MlflowClient().set_terminated(info.run_id, status, end_time)


def data_digest(hashes: Mapping[str, str]) -> str:
    """Return one short hash of the data: runs that share it can be compared."""
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
    leaves: dict[str, float] = {}
    for path, value in flatten(nested).items():
        if isinstance(value, int | float):
            leaves[path] = value
        elif isinstance(value, list | tuple) and len(value) == 2:
            interval = dict(zip((f"{path}.low", f"{path}.high"), value, strict=True))
            leaves |= numeric_leaves(interval)
    return {store.mlflow_name(path): value for path, value in leaves.items()}
