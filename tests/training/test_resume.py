"""A training that is killed, at any moment, ends as if it had never been."""

import csv
import os
import random
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import processes
from support.trainings import (
    ROOT,
    Project,
    build_trainer,
    equal_weights,
    make_project,
    small_params,
    torch_state_restored,
    train_to_end,
    wait_until,
)
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.images.dataset import Split
from tagger.params import Params, Preset
from tagger.training import setup
from tagger.training.optimizer import fraction_of_peak

pytestmark = pytest.mark.timeout(400)

EPOCHS, PER_EPOCH = 3, 4  # steps
RANDOM: dict[str, Any] = {
    "ema": 0.9,
    "augment": {"mixup": 0.4},
    "workers": 2,
    "keep_every": "2 epochs",
}


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    with torch_state_restored():
        yield


@pytest.fixture(scope="module")
def fresh(
    tmp_path_factory: pytest.TempPathFactory, default_params: Params, demo: Path, preset: Preset
) -> Project:
    """A project in which nothing is trained yet."""
    folder = tmp_path_factory.mktemp("projects") / "fresh"
    small = preset.model_copy(update={"batch_size": 4, "drop_path": 0.2})
    often: dict[str, Any] = {"epochs": EPOCHS, "snapshot_every": "1 step"}
    return make_project(folder, default_params, demo, small, **RANDOM, **often)


@pytest.fixture(scope="module")
def undisturbed(fresh: Project) -> Project:
    """The same project, trained."""
    trained = fresh.copy(fresh.folder.with_name("undisturbed"))
    trained.train()
    return trained


def reached(project: Project, step: int) -> bool:
    return project.newest_snapshot_step() >= step


def test_a_training_killed_again_and_again_ends_as_one_that_was_not(
    fresh: Project, undisturbed: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "killed")
    drawn = random.Random(7)
    first, second = sorted(drawn.sample(range(1, EPOCHS * PER_EPOCH - 1), 2))
    last = EPOCHS * PER_EPOCH
    for step, alone in ((first, False), (second, True), (last, False)):
        project.train_and_kill(partial(reached, project, step), alone=alone)
        project.remove_outputs()
    project.train_and_kill((project.folder / "models/tagger").exists)
    project.remove_outputs()
    printed = project.train()
    assert f"going on after step {last} of {last}" in printed
    assert project.results() == undisturbed.results()
    assert {"epoch-2.safetensors", "last.safetensors"} < project.results().keys()
    (run,) = project.runs()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "small")
    (other,) = undisturbed.runs()
    assert run.data.params == other.data.params
    assert run.data.metrics["macro_ap"] == other.data.metrics["macro_ap"]
    log = (project.folder / "models/tagger/train.log").read_text(encoding="utf-8")
    begun = [line for line in log.splitlines() if line.startswith("small: test_efficientnet")]
    assert len(begun) == 5
    for epoch in range(1, EPOCHS + 1):
        assert f"epoch {epoch}/{EPOCHS}  loss" in log
    assert (
        left_over(project)
        == left_over(undisturbed)
        == {
            f"small-{EPOCHS}.pt",
            f"small-{EPOCHS}.json",
        }
    )


def left_over(project: Project) -> set[str]:
    return {path.name for path in project.scratch.iterdir() if path.suffix != ".lock"}


def test_the_same_training_twice_at_once_is_refused_in_one_line_and_a_signal_loses_nothing(
    fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "twice")
    project.edit_params(snapshot_every="5 minutes")  # snapshots come with judgements alone
    running = project.start_stage()
    wait_until(lambda: project.newest_snapshot_step() == PER_EPOCH, running)
    os.killpg(running.pid, signal.SIGSTOP)
    refused = project.run_stage()
    assert refused.output.splitlines() == [refused.error_line]
    told = "error: The same is under way in another process, which holds "
    assert refused.error_line.startswith(told)
    assert len(project.runs()) == 1
    os.kill(running.pid, signal.SIGTERM)
    os.killpg(running.pid, signal.SIGCONT)
    ended = running.finish(60)
    assert (ended.exit_code, ended.output.splitlines()[-1]) == (130, "interrupted")
    assert project.newest_snapshot_step() > PER_EPOCH


def test_a_signal_to_all_processes_of_a_training_loses_nothing_either(
    fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "group")
    project.edit_params(snapshot_every="5 minutes")
    running = project.start_stage()
    wait_until(lambda: project.newest_snapshot_step() == PER_EPOCH, running)
    os.killpg(running.pid, signal.SIGSTOP)
    os.killpg(running.pid, signal.SIGTERM)
    os.killpg(running.pid, signal.SIGCONT)
    ended = running.finish(60)
    assert (ended.exit_code, ended.output.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in ended.output
    assert PER_EPOCH < project.newest_snapshot_step() < EPOCHS * PER_EPOCH
    assert f"stopped after step {project.newest_snapshot_step()}" in ended.output


def into_dvc(project: Project) -> None:
    """Give a project the stage as the repository has it."""
    shutil.copytree(
        ROOT / "stages", project.folder / "stages", ignore=shutil.ignore_patterns("__pycache__")
    )
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump({"stages": {"train": whole["stages"]["train"]}})
    (project.folder / "dvc.yaml").write_text(text, encoding="utf-8")
    assert processes.run(project.folder, "dvc", "init", "--no-scm").success_output


def test_dvc_goes_on_with_a_training_that_was_killed_with_it(
    fresh: Project, undisturbed: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "dvc")
    into_dvc(project)
    running = processes.start(project.folder, "dvc", "repro")
    wait_until(lambda: project.newest_snapshot_step() >= PER_EPOCH + 1, running)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.finish(60).exit_code == -signal.SIGKILL
    assert "going on after step" in processes.run(project.folder, "dvc", "repro").success_output
    assert project.results() == undisturbed.results()
    (run,) = project.runs()
    assert run.info.status == "FINISHED"


def columns(project: Project, name: str) -> list[float]:
    with (project.folder / "metrics/train.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_more_epochs_go_on_from_a_finished_training_by_the_new_schedule(
    undisturbed: Project, tmp_path: Path
) -> None:
    project = undisturbed.copy(tmp_path / "more")
    start = project.scratch / f"small-{EPOCHS}.pt"
    project.edit_params(epochs=EPOCHS + 2, resume_from=str(start))
    printed = project.train()
    assert f"going on after 3 epochs with other settings, from {start}" in printed
    assert columns(project, "epoch") == [4, 5]
    steps = (EPOCHS + 2) * PER_EPOCH
    expected = [fraction_of_peak("cosine", step - 1, steps, 0.15) * 1e-2 for step in (16, 20)]
    assert columns(project, "learning_rate") == pytest.approx(expected, rel=1e-3)
    assert len(project.runs()) == 2
    assert "epoch-4.safetensors" in project.results()
    assert f"train.resume_from={project.scratch / f'small-{EPOCHS + 2}.pt'}" in printed
    assert start.is_file()


# In this process


@pytest.fixture
def parts(split: Split) -> dict[str, Split]:
    return {"train": split, "validation": split.head(8)}


def test_a_changed_learning_rate_starts_anew_and_changed_workers_go_on(
    default_params: Params, preset: Preset, tags: list[Tag], parts: dict[str, Split], tmp_path: Path
) -> None:
    faster = preset.model_copy(update={"learning_rate": 2e-2})
    reached = []
    for p in (
        small_params(default_params, preset),
        small_params(default_params, faster),
        small_params(default_params, preset, workers=1, snapshot_every="1 step"),
    ):
        training = build_trainer(p, tags, parts, tmp_path / setup.fingerprint(p, {}))
        reached.append(training.position.step)
        running = training.train()
        next(running)
        next(running, None)  # by then the first judgement is saved
        training.snapshots.wait()
        del running
    assert reached == [0, 0, 3]


def test_fewer_epochs_than_are_behind_it_are_told(
    default_params: Params, preset: Preset, tags: list[Tag], parts: dict[str, Split], tmp_path: Path
) -> None:
    def begin(at: str, **recipe: Any) -> Any:
        return build_trainer(
            small_params(default_params, preset, **recipe), tags, parts, tmp_path / at
        )

    training = begin("a", epochs=2)
    train_to_end(training)
    path = training.snapshots.last
    for epochs in (1, 2):
        with pytest.raises(
            TaggerError, match=rf"has 2 epochs behind it\. Raise train\.epochs, which is {epochs}\."
        ):
            begin("b", epochs=epochs, resume_from=path)
    assert begin("b", epochs=3, resume_from=path).position.step == 6


def test_a_training_with_other_settings_that_is_killed_goes_on_as_well(
    default_params: Params, preset: Preset, tags: list[Tag], parts: dict[str, Split], tmp_path: Path
) -> None:
    def begin(at: str, **recipe: Any) -> Any:
        p = small_params(default_params, preset, snapshot_every="1 step", ema=0.9, **recipe)
        return build_trainer(p, tags, parts, tmp_path / at)

    first = begin("first", epochs=1)
    train_to_end(first)
    more = {"epochs": 3, "resume_from": first.snapshots.last}
    whole = train_to_end(begin("whole", **more))
    killed = begin("killed", **more)
    running = killed.run()
    next(running)
    del running
    killed.snapshots.wait()
    again = begin("killed", **more)
    assert again.position.step == 5
    rest = train_to_end(again)
    assert [one.metrics for one in rest] == [one.metrics for one in whole]
    assert equal_weights(rest[-1].weights, whole[-1].weights)
