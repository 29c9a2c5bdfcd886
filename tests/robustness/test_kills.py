"""A pipeline that is killed, at any moment and again and again, ends as if it had never been."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from support import clones, processes
from support.clones import STAGES
from support.processes import RunningProcess

pytestmark = pytest.mark.timeout(900)

SEED = int(os.environ.get("KILLS_SEED", "7"))
TIMES_KILLED = int(os.environ.get("KILLS", "1"))  # of the numbers below
KILLS = {
    "demo": 4,
    "prepare": 9,
    "vocabulary": 7,
    "split": 7,
    "train": 13,
    "evaluate": 5,
    "export": 5,
}
WITH_DVC = ("prepare", "train", "export")  # stages in which dvc itself is killed once, too
TARGETS = {"demo": "data/dvc.yaml:demo"}
DVCS_OWN = "Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted"
LOADING = 1.0  # seconds that python takes at least, without a zygote, until a stage begins


@dataclass(frozen=True)
class Pipeline:
    """A clone in which stages run as dvc runs them, or by dvc."""

    folder: Path

    def start(self, *words: str) -> RunningProcess:
        root = {} if words[0] == "dvc" else {"DVC_ROOT": str(self.folder)}
        return processes.start(self.folder, *words, **root)

    def finish(self, *words: str) -> str:
        """Return what a command printed, which must end well."""
        ended = self.start(*words).finish()
        if ended.exit_code and DVCS_OWN in ended.output:  # killed while it wrote that, as it says
            (self.folder / ".dvc/tmp/rwlock").unlink()
            ended = self.start(*words).finish()
        return ended.success_output

    def killed(self, seconds: float, *words: str, alone: bool) -> bool:
        """Start something and kill it after some time; return False where it had ended by then.

        alone: leave what it has started to itself, as if the system had picked the largest
        """
        running = self.start(*words)
        if running.wait(seconds) is not None:
            assert running.finish().success_output
            return False
        os.kill(running.pid, signal.SIGKILL)
        until = time.monotonic() + LOADING
        while (others := self.processes()) and not (alone and time.monotonic() > until):
            for other in () if alone else others:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.005)
        ended = running.finish()
        assert ended.exit_code in (0, -signal.SIGKILL), ended.output
        return ended.exit_code != 0

    def processes(self) -> list[int]:
        """Return the processes that work in the clone."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (path / "cwd").readlink().is_relative_to(self.folder):
                    found.append(int(path.name))
        return found

    def scratch(self) -> set[str]:
        paths = (self.folder / ".scratch").rglob("*")
        return {path.name for path in paths if path.is_file() and path.suffix != ".lock"}

    def run(self) -> Run:
        """Return the run in MLflow that the model is of; one begun anew after its end has more."""
        run = json.loads((self.folder / "models/tagger/run.json").read_text(encoding="utf-8"))
        client = mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        return client.get_run(run["run_id"])


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> Pipeline:
    return Pipeline(finished)


@pytest.fixture(scope="module")
def killed(
    run_once: tuple[Path, dict[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> Pipeline:
    """The same, every stage of which was killed many times before dvc had its way."""
    pipeline = Pipeline(
        clones.make_clone(tmp_path_factory.mktemp("kills") / "killed", clones.FINISHED_PARAMS)
    )
    drawn = random.Random(SEED)
    for stage in STAGES:
        script, hits, lasts = f"stages/{stage}.py", 0, run_once[1][stage]
        while hits < KILLS[stage] * TIMES_KILLED:
            clones.remove_outputs(pipeline.folder, stage)
            after, alone = drawn.uniform(0, lasts), drawn.random() < 0.5
            hit = pipeline.killed(after, script, alone=alone)
            hits += hit
            lasts = lasts if hit else after  # one that goes on has less to do
        if stage in WITH_DVC:
            after = drawn.uniform(0, lasts + 1)
            pipeline.killed(after, "dvc", "repro", TARGETS.get(stage, stage), alone=False)
        pipeline.finish("dvc", "repro", TARGETS.get(stage, stage))
    return pipeline


def test_there_are_fifty_kills_at_least() -> None:
    assert sum(KILLS.values()) >= 50


def test_every_output_is_that_of_a_pipeline_that_was_never_killed(
    undisturbed: Pipeline, killed: Pipeline
) -> None:
    expected, found = clones.read_outputs(undisturbed.folder), clones.read_outputs(killed.folder)
    assert found.keys() == expected.keys()
    assert len(found) > 190
    assert not [name for name in expected if found[name] != expected[name]]


def test_nothing_half_written_and_nobody_at_work_is_left(
    undisturbed: Pipeline, killed: Pipeline
) -> None:
    left = [path for path in killed.folder.rglob("*") if path.suffix in (".partial", ".gone")]
    assert not left
    assert killed.scratch() == undisturbed.scratch()
    until = time.monotonic() + 15  # workers of torch look every five seconds
    while (processes := killed.processes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes


def test_dvc_has_nothing_to_do_then(killed: Pipeline) -> None:
    assert "Running stage" not in killed.finish("dvc", "repro")


def test_the_run_has_every_parameter_and_figure(undisturbed: Pipeline, killed: Pipeline) -> None:
    expected, found = undisturbed.run(), killed.run()
    assert found.info.status == "FINISHED"
    paced = ("images_per_second", "waiting_for_data", "system/")
    assert found.data.params == expected.data.params
    for name, value in expected.data.metrics.items():
        if not name.startswith(paced):
            assert found.data.metrics[name] == value, name
