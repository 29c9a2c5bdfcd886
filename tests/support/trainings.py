"""Trainings small enough for seconds: in this process, or as the real stage in a small project."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import torch
import yaml
from mlflow.entities import Run
from torch import Tensor

from support import processes
from support.processes import FinishedProcess, RunningProcess
from tagger import params
from tagger.core import manifest, vocabulary
from tagger.core.vocabulary import Tag
from tagger.data import groups, ingest
from tagger.data.sources.folder import FolderSource
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon
from tagger.images.dataset import Split
from tagger.params import Params, Preset, TrainParams
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import setup
from tagger.training.trainer import Trainer
from tagger.training.validation import Validation

ROOT = Path(__file__).parents[2]
SINGLE_PROCESS = ProcessGroup(World(0, 1, 0, 1), torch.device("cpu"))
SHORT_TRAINING: dict[str, Any] = {"epochs": 2, "workers": 0, "snapshot_every": "1 epoch"}

# The launcher of two processes, each of which is begun as one that a test begins.
TWO_PROCESSES = (
    *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("--no-python", "python"),
)

Splits = Mapping[str, Split]
BuildTrainer = Callable[..., Trainer]


@cache
def _params_text() -> str:
    return json.dumps(yaml.safe_load((ROOT / params.PATH).read_text(encoding="utf-8")))


def params_content() -> dict[str, Any]:
    """Return a copy of params.yaml."""
    content: dict[str, Any] = json.loads(_params_text())
    return content


def train_params(**changes: Any) -> TrainParams:
    """Return `train` of params.yaml, without a preset, with some keys changed."""
    return TrainParams.model_validate(params.merge(params_content()["train"], changes))


def small_params(preset: Preset, seed: int = 0, **train: Any) -> Params:
    """Return params.yaml with a small preset, a short training, and changes of `train`."""
    content = params_content()
    content |= {"seed": seed, "model": "small", "models": {"small": preset.model_dump()}}
    content["train"] = params.merge(content["train"], SHORT_TRAINING | train)
    return params.parse(content)


def build_trainer(p: Params, tags: Sequence[Tag], splits: Splits, folder: Path) -> Trainer:
    return setup.build_trainer(p, tags, splits, SINGLE_PROCESS, folder)


class Killed(BaseException):
    pass


@dataclass
class Recorder:
    """Records validations; may be killed instead of saving the snapshot after one of them."""

    watch: Callable[[Validation], object] = lambda validation: None
    kill_at: int | None = None  # validations
    validations: list[Validation] = field(default_factory=list)

    def log_validation(self, validation: Validation) -> None:
        self.validations.append(validation)
        self.watch(validation)
        if len(self.validations) == self.kill_at:
            raise Killed


def train_to_end(
    trainer: Trainer, watch: Callable[[Validation], object] = lambda validation: None
) -> list[Validation]:
    """Return all validations of a training; watch: called after each of them."""
    recorder = Recorder(watch)
    trainer.train(recorder)
    return recorder.validations


def train_and_kill(trainer: Trainer, validations: int) -> None:
    """Stop a training after so many validations, before the snapshot that follows the last."""
    with suppress(Killed):
        trainer.train(Recorder(kill_at=validations))
    trainer.snapshots.wait()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return a copy of the weights that train, and of the statistics beside them."""
    return {name: value.clone() for name, value in trainer.state.model.state_dict().items()}


def equal_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two models are the same to the bit."""
    return first.keys() == second.keys() and not changed_names(first, second)


def changed_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@contextmanager
def torch_state_restored() -> Iterator[None]:
    """Leave the random generator and the settings of torch as they were."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        yield
    torch.use_deterministic_algorithms(deterministic)


@dataclass(frozen=True)
class Project:
    """A folder in which stages run as DVC runs them."""

    folder: Path

    @property
    def scratch(self) -> Path:
        return self.folder / ".scratch" / "train"

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.folder, folder)
        return Project(folder)

    def write_params(self, content: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(content))
        (self.folder / "params.yaml").write_text(text, encoding="utf-8")

    def edit_params(
        self,
        seed: int = 0,
        preset: Mapping[str, Any] = {},
        evaluate: Mapping[str, Any] = {},
        **train: Any,
    ) -> None:
        """Change keys of params.yaml: of the preset, of `evaluate`, and of `train`."""
        content = yaml.safe_load((self.folder / "params.yaml").read_text(encoding="utf-8"))
        content["seed"] = seed
        content["models"]["small"] |= preset
        content["evaluate"] = params.merge(content["evaluate"], dict(evaluate))
        content["train"] = params.merge(content["train"], train)
        self.write_params(content)

    def start_stage(
        self, *arguments: object, stage: str = "train", by: Sequence[str] = ()
    ) -> RunningProcess:
        """Start a stage, as `python` or by a launcher."""
        script = ROOT / "stages" / f"{stage}.py"
        return processes.start(self.folder, *by, script, *arguments, DVC_ROOT=str(self.folder))

    def run_stage(
        self, *arguments: object, stage: str = "train", by: Sequence[str] = ()
    ) -> FinishedProcess:
        return self.start_stage(*arguments, stage=stage, by=by).finish(150)

    def train(self, by: Sequence[str] = ()) -> str:
        """Return what a training printed, which ended well."""
        return self.run_stage(by=by).success_output

    def newest_snapshot_step(self) -> int:
        """Return the step of the newest snapshot."""
        return max((int(path.stem) for path in self.scratch.glob("*/snapshots/*.pt")), default=0)

    def train_and_kill(self, ready: Callable[[], bool], *, alone: bool = False) -> None:
        """Start a training and kill it once something is so, with its workers unless `alone`."""
        running = self.start_stage()
        wait_until(ready, running)
        kill = os.kill if alone else os.killpg
        kill(running.pid, signal.SIGKILL)
        ended = running.finish(60)
        assert ended.exit_code == -signal.SIGKILL, ended.output

    def remove_outputs(self) -> None:
        """Remove what the stage writes, as DVC does before it runs."""
        shutil.rmtree(self.folder / "models", ignore_errors=True)
        for path in (self.folder / "metrics").glob("*"):
            path.unlink()

    def results(self) -> dict[str, bytes]:
        """Return what must be the same to the bit, by name."""
        paths = [
            *sorted((self.folder / "models" / "tagger").glob("*.safetensors")),
            self.folder / "metrics" / "train.csv",
            self.folder / "metrics" / "train.json",
        ]
        return {path.name: path.read_bytes() for path in paths}

    def runs(self) -> list[Run]:
        """Return what MLflow has of this project."""
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiments = [one.experiment_id for one in client.search_experiments()]
        return list(client.search_runs(experiments))


def wait_until(ready: Callable[[], bool], running: RunningProcess) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert running.wait(0.002) is None, running.finish().output
        assert time.monotonic() < until


def make_project(
    folder: Path,
    shipped: Params,
    demo: Path,
    preset: Preset,
    sizes: Sequence[int] = (16, 7, 1),
    **train: Any,
) -> Project:
    """Return a project with the drawn pictures.

    sizes: how many to train on, to judge by and to test on
    """
    p, data = shipped.prepare, folder / "data"
    (data / "rules").mkdir(parents=True)
    lexicon = Lexicon(rules.read(demo))
    posts, _ = ingest.read_posts(FolderSource([demo], p.separator), lexicon, p.filters)
    posts, seen = ingest.renumber(groups.group(posts, p.groups), lexicon)
    manifest.write_posts(posts, data / "posts.parquet")
    manifest.write_tags(seen, data / "tags.parquet")
    vocabulary.write([tag for tag in seen if tag.count >= 3], data / "vocabulary.csv")
    ids = manifest.read_posts(data / "posts.parquet", len(seen)).ids
    parts = np.repeat(np.array([0, 1, 2], np.int8), sizes)
    manifest.write_split(ids, parts, data / "split.parquet")
    content = params_content() | {"model": "small", "models": {"small": preset.model_dump()}}
    content["train"] = params.merge(content["train"], {"epochs": 2, "workers": 0} | train)
    made = Project(folder)
    made.write_params(content)
    (folder / "mlflow.db").write_bytes(empty_mlflow_store())
    return made


@cache
def empty_mlflow_store() -> bytes:
    """Return a database of MLflow without experiments, which takes it seconds to make."""
    with TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
        return database.read_bytes()
