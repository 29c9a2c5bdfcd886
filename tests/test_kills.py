"""A pipeline that is killed, at any moment and again and again, ends as if it had never been."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clones
import mlflow
import pytest
from clones import STAGES
from mlflow.entities import Run
from zygote import SOCKET, TIMES, Started, Zygote

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
SETTINGS: dict[str, Any] = {
    "prepare": {"copies": {"side": 24}},
    "train": {"workers": 1, "snapshot_every": "1 step"},
    "evaluate": {"workers": 1},
}


@dataclass(frozen=True)
class Pipeline:
    """A clone in which stages run as dvc runs them, or by dvc."""

    folder: Path
    zygote: Zygote

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def times(self) -> Path:
        return self.folder.with_suffix(".times")

    def start(self, *words: str) -> Started:
        path = f"{self.zygote.programs}{os.pathsep}{os.environ['PATH']}"
        more = {"PATH": path, SOCKET: self.zygote.socket, TIMES: str(self.times)}
        env = clones.environment() | more
        if words[0] != "dvc":
            env["DVC_ROOT"] = str(self.folder)
        with self.log.open("ab") as output:
            output.write(f"\n$ {' '.join(words)}\n".encode())
            output.flush()
            return Started(self.zygote.socket, words, str(self.folder), env, output.fileno())

    def finish(self, *words: str) -> str:
        """Return what a command printed, which must end well."""
        before = self.log.stat().st_size if self.log.exists() else 0
        code = self.start(*words).wait()
        if code and DVCS_OWN in self.told():  # it was killed while it wrote that, and says so
            (self.folder / ".dvc/tmp/rwlock").unlink()
            code = self.start(*words).wait()
        assert code == 0, self.told()
        with self.log.open("rb") as file:
            file.seek(before)
            return file.read().decode()

    def killed(self, seconds: float, *words: str, alone: bool) -> bool:
        """Start something and kill it after some time; return False where it had ended by then.

        alone: leave what it has started to itself, as if the system had picked the largest
        """
        running = self.start(*words)
        code = running.wait(seconds)
        if code is not None:
            assert code == 0, self.told()
            return False
        os.kill(running.pid, signal.SIGKILL)
        until = time.monotonic() + LOADING
        while (others := self.processes()) and not (alone and time.monotonic() > until):
            for other in () if alone else others:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.005)
        code = running.wait()
        assert code in (0, -signal.SIGKILL), self.told()
        return code != 0

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-5000:]

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
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = clones.made(tmp_path_factory.mktemp("kills") / "undisturbed", SETTINGS)
    pipeline = Pipeline(folder, zygote)
    pipeline.finish("dvc", "repro")
    return pipeline


@pytest.fixture(scope="module")
def killed(undisturbed: Pipeline) -> Pipeline:
    """The same pipeline, every stage of which was killed many times before dvc had its way."""
    folder = clones.made(undisturbed.folder.with_name("killed"), SETTINGS)
    pipeline = Pipeline(folder, undisturbed.zygote)
    drawn = random.Random(SEED)
    lasted = {
        Path(script).stem: float(seconds)
        for script, seconds in map(str.split, undisturbed.times.read_text().splitlines())
    }
    for stage in STAGES:
        script, hits = f"stages/{stage}.py", 0
        while hits < KILLS[stage] * TIMES_KILLED:
            clones.forget(folder, stage)
            after, alone = drawn.uniform(0, lasted[stage]), drawn.random() < 0.5
            hit = pipeline.killed(after, script, alone=alone)
            hits += hit
            lasted[stage] = lasted[stage] if hit else after  # one that goes on has less to do
        if stage in WITH_DVC:
            after = drawn.uniform(0, lasted[stage] + 1)
            pipeline.killed(after, "dvc", "repro", TARGETS.get(stage, stage), alone=False)
        pipeline.finish("dvc", "repro", TARGETS.get(stage, stage))
    return pipeline


def test_there_are_fifty_kills_at_least() -> None:
    assert sum(KILLS.values()) >= 50


def test_every_output_is_that_of_a_pipeline_that_was_never_killed(
    undisturbed: Pipeline, killed: Pipeline
) -> None:
    expected, found = clones.written(undisturbed.folder), clones.written(killed.folder)
    assert found.keys() == expected.keys()
    assert len(found) > 200
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
    paced = ("pictures_per_second", "waiting_for_data", "system/")
    assert found.data.params == expected.data.params
    for name, value in expected.data.metrics.items():
        if not name.startswith(paced):
            assert found.data.metrics[name] == value, name
