"""Small projects in which the real stages run, as DVC runs them."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow.entities import Run

from support import processes
from support.processes import FinishedProcess, RunningProcess
from support.trainings import params_content
from tagger import params
from tagger.core import manifest, vocabulary
from tagger.data import groups, ingest
from tagger.data.sources.folder import FolderSource
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon
from tagger.params import Params, Preset

ROOT = Path(__file__).parents[2]

# The launcher of two processes, each of which is begun as one that a test begins.
TWO_PROCESSES = (
    *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("--no-python", "python"),
)


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
        """Return the output of a training that succeeds."""
        return self.run_stage(by=by).success_output

    def newest_snapshot_step(self) -> int:
        """Return the step of the newest snapshot."""
        return max((int(path.stem) for path in self.scratch.glob("*/snapshots/*.pt")), default=0)

    def train_and_kill(self, ready: Callable[[], bool], *, alone: bool = False) -> None:
        """Start a training and kill it when ready, with its workers unless `alone`."""
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
        """Return the files that must be the same to the bit, by name."""
        paths = [
            *sorted((self.folder / "models" / "tagger").glob("*.safetensors")),
            self.folder / "metrics" / "train.csv",
            self.folder / "metrics" / "train.json",
        ]
        return {path.name: path.read_bytes() for path in paths}

    def runs(self) -> list[Run]:
        """Return the runs in MLflow."""
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments))


def wait_until(ready: Callable[[], bool], running: RunningProcess) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert running.wait(0.002) is None, running.finish().output
        assert time.monotonic() < deadline


def make_project(
    folder: Path,
    default_params: Params,
    demo: Path,
    preset: Preset,
    sizes: Sequence[int] = (16, 7, 1),
    **train: Any,
) -> Project:
    """Return a project with the drawn images; sizes: of the train, validation and test split."""
    p, data = default_params.prepare, folder / "data"
    (data / "rules").mkdir(parents=True)
    lexicon = Lexicon(rules.read(demo))
    posts, _ = ingest.read_posts(FolderSource([demo], p.separator), lexicon, p.filters)
    posts, tags = ingest.renumber(groups.group(posts, p.groups), lexicon)
    manifest.write_posts(posts, data / "posts.parquet")
    manifest.write_tags(tags, data / "tags.parquet")
    vocabulary.write([tag for tag in tags if tag.count >= 3], data / "vocabulary.csv")
    ids = manifest.read_posts(data / "posts.parquet", len(tags)).ids
    splits = np.repeat(np.array([0, 1, 2], np.int8), sizes)
    manifest.write_split(ids, splits, data / "split.parquet")
    content = params_content() | {"model": "small", "models": {"small": preset.model_dump()}}
    content["train"] = params.merge(content["train"], {"epochs": 2, "workers": 0} | train)
    project = Project(folder)
    project.write_params(content)
    (folder / "mlflow.db").write_bytes(empty_mlflow_store())
    return project


@cache
def empty_mlflow_store() -> bytes:
    """Return a database of MLflow without experiments; making one takes seconds."""
    with TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
        return database.read_bytes()
