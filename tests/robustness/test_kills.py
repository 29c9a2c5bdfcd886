"""A pipeline killed at each atomic write, and at random moments, ends as if never interrupted."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from support import clones, kill_points, processes
from support.clones import STAGES
from support.processes import RunningProcess

pytestmark = pytest.mark.timeout(900)

SEED = int(os.environ.get("KILLS_SEED", "7"))
RANDOM_KILLS = int(os.environ.get("KILLS", "2"))  # of each stage
WRITES = {  # atomic writes of each stage that leave different states behind, at least
    "demo": 2,
    "prepare": 7,
    "vocabulary": 4,
    "split": 4,
    "train": 14,
    "evaluate": 6,
    "export": 2,
}
MOST_WRITES = 30  # of any stage
WITH_DVC = ("prepare", "train", "export")  # stages during which dvc itself is killed as well
LOCK_ERROR = "Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted"
LOADING = 1.0  # seconds that an ordinary Python takes to begin a stage, at least


@dataclass(frozen=True)
class Pipeline:
    """A clone in which stages run as dvc runs them, or by dvc."""

    folder: Path

    def start(self, *command: str, **variables: str) -> RunningProcess:
        if command[0] != "dvc":
            variables |= {"DVC_ROOT": str(self.folder)}
        return processes.start(self.folder, *command, **variables)

    def finish(self, *command: str) -> str:
        """Run a command that must succeed, and return its output."""
        process = self.start(*command).finish()
        if process.exit_code and LOCK_ERROR in process.output:  # dvc was killed while it wrote that
            (self.folder / ".dvc/tmp/rwlock").unlink()
            process = self.start(*command).finish()
        return process.success_output

    def kill_at_each_write(self, stage: str, log: Path) -> int:
        """Run a stage until it survives; it dies at each atomic write once. Return its deaths."""
        for deaths in range(MOST_WRITES + 1):
            clones.remove_outputs(self.folder, stage)
            alone = {kill_points.ALONE: "1"} if deaths % 2 else {}
            variables = {kill_points.LOG: str(log), **alone}
            process = self.start(f"stages/{stage}.py", **variables).finish()
            if process.exit_code != -signal.SIGKILL:
                assert process.success_output
                return deaths
            self.stop_others(alone=bool(alone))
        raise AssertionError(log.read_text(encoding="utf-8"))

    def kill_after(self, seconds: float, *command: str, alone: bool) -> bool:
        """Start a command and kill it after a time; return False if it had ended by then.

        alone: leave its children alone, as if the system had run out of memory
        """
        process = self.start(*command)
        if process.wait(seconds) is not None:
            assert process.finish().success_output
            return False
        os.kill(process.pid, signal.SIGKILL)
        self.stop_others(alone=alone)
        end = process.finish()
        assert end.exit_code in (0, -signal.SIGKILL), end.output
        return end.exit_code != 0

    def stop_others(self, *, alone: bool) -> None:
        """Kill what else works in the clone; if alone, give it the time to end by itself."""
        until = time.monotonic() + LOADING
        while (others := self.processes()) and not (alone and time.monotonic() > until):
            for pid in () if alone else others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def processes(self) -> list[int]:
        """Return the processes that work in the clone."""
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (path / "cwd").readlink().is_relative_to(self.folder):
                    pids.append(int(path.name))
        return pids

    def scratch(self) -> set[str]:
        paths = (self.folder / ".scratch").rglob("*")
        return {path.name for path in paths if path.is_file() and path.suffix != ".lock"}

    def run(self) -> Run:
        """Return the MLflow run that trained the model."""
        content = json.loads((self.folder / "models/tagger/run.json").read_text(encoding="utf-8"))
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        return client.get_run(content["run_id"])


def stage_seconds(folder: Path) -> dict[str, float]:
    """Return how long each stage of a finished pipeline took at most, by the times of its files."""
    ends = {}
    for stage in STAGES:
        outputs = [path for out in clones.output_paths(folder, [stage]) for path in files_in(out)]
        ends[stage] = max(path.stat().st_mtime for path in outputs)
    begins = {after: ends[before] for before, after in pairwise(STAGES)}
    return {stage: ends[stage] - begins.get(stage, ends[stage] - 1) for stage in STAGES}


def files_in(path: Path) -> list[Path]:
    return [inner for inner in (path, *path.rglob("*")) if inner.is_file()]


@pytest.fixture(scope="module")
def undisturbed(finished_project: Path) -> Pipeline:
    return Pipeline(finished_project)


@pytest.fixture(scope="module")
def deaths() -> dict[str, int]:
    """How often each stage was killed at an atomic write."""
    return {}


@pytest.fixture(scope="module")
def killed(
    finished_project: Path, tmp_path_factory: pytest.TempPathFactory, deaths: dict[str, int]
) -> Pipeline:
    """The same pipeline, every stage of which was killed many times."""
    folder = tmp_path_factory.mktemp("kills")
    pipeline = Pipeline(clones.make_clone(folder / "killed", clones.FINISHED_PARAMS))
    seconds = stage_seconds(finished_project)
    generator = random.Random(SEED)
    for stage in STAGES:
        deaths[stage] = pipeline.kill_at_each_write(stage, folder / f"{stage}.log")
        kill_at_random(pipeline, stage, seconds[stage], generator)
        target = clones.TARGETS[stage]
        if stage in WITH_DVC:
            after = generator.uniform(0, seconds[stage] + 1)
            pipeline.kill_after(after, "dvc", "repro", target, alone=False)
            pipeline.finish("dvc", "repro", target)
        else:
            clones.remove_outputs(pipeline.folder, stage)
            pipeline.finish(f"stages/{stage}.py")
            pipeline.finish("dvc", "commit", "--force", target)
    return pipeline


def kill_at_random(
    pipeline: Pipeline, stage: str, seconds: float, generator: random.Random
) -> None:
    hits = 0
    while hits < RANDOM_KILLS:
        clones.remove_outputs(pipeline.folder, stage)
        after, alone = generator.uniform(0, seconds), generator.random() < 0.5
        hit = pipeline.kill_after(after, f"stages/{stage}.py", alone=alone)
        hits += hit
        seconds = seconds if hit else after  # a resumed stage has less to do


@pytest.mark.usefixtures("killed")
def test_every_stage_is_killed_at_each_atomic_write(deaths: dict[str, int]) -> None:
    assert deaths.keys() == WRITES.keys()
    assert {stage: min(deaths[stage], WRITES[stage]) for stage in STAGES} == WRITES, deaths


def test_outputs_of_a_killed_pipeline_equal_those_of_an_uninterrupted_one(
    undisturbed: Pipeline, killed: Pipeline
) -> None:
    expected = clones.read_outputs(undisturbed.folder)
    outputs = clones.read_outputs(killed.folder)
    assert outputs.keys() == expected.keys()
    assert len(outputs) > 190
    assert not [name for name in expected if outputs[name] != expected[name]]


def test_a_killed_pipeline_leaves_no_partial_file_and_no_process(
    undisturbed: Pipeline, killed: Pipeline
) -> None:
    partial = [path for path in killed.folder.rglob("*") if path.suffix in (".partial", ".gone")]
    assert not partial
    assert killed.scratch() == undisturbed.scratch()
    until = time.monotonic() + 15  # workers of torch look every five seconds
    while (pids := killed.processes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not pids


def test_dvc_has_nothing_to_do_after_the_kills(killed: Pipeline) -> None:
    assert "Running stage" not in killed.finish("dvc", "repro")


def test_the_mlflow_run_of_a_killed_training_has_every_parameter_and_metric(
    undisturbed: Pipeline, killed: Pipeline
) -> None:
    expected, run = undisturbed.run(), killed.run()
    assert run.info.status == "FINISHED"
    timings = ("images_per_second", "waiting_for_data", "system/")
    assert run.data.params == expected.data.params
    for name, value in expected.data.metrics.items():
        if not name.startswith(timings):
            assert run.data.metrics[name] == value, name
