"""Resumed training equals uninterrupted training, whenever it was killed."""

import csv
import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import processes
from support.projects import ROOT, Project, make_project, wait_until
from support.trainings import (
    BuildTrainer,
    Splits,
    build_trainer,
    equal_weights,
    small_params,
    train_and_kill,
    train_to_end,
)
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.params import Params, Preset
from tagger.training import setup
from tagger.training.optimizer import fraction_of_peak

pytestmark = pytest.mark.timeout(400)

EPOCHS, STEPS_PER_EPOCH = 3, 4


@pytest.fixture(scope="module")
def untrained(
    tmp_path_factory: pytest.TempPathFactory, default_params: Params, demo: Path, preset: Preset
) -> Project:
    folder = tmp_path_factory.mktemp("projects") / "untrained"
    small = preset.model_copy(update={"batch_size": 4, "drop_path": 0.2})
    train: dict[str, Any] = {
        "epochs": EPOCHS,
        "ema": 0.9,
        "augment": {"mixup": 0.4},
        "workers": 2,
        "keep_every": "2 epochs",
        "snapshot_every": "1 step",
    }
    return make_project(folder, default_params, demo, small, **train)


@pytest.fixture(scope="module")
def uninterrupted(untrained: Project) -> Project:
    """The same project, trained."""
    project = untrained.copy(untrained.folder.with_name("uninterrupted"))
    project.train()
    return project


def reached(project: Project, step: int) -> bool:
    return project.newest_snapshot_step() >= step


def remaining_files(project: Project) -> set[str]:
    return {path.name for path in project.scratch.iterdir() if path.suffix != ".lock"}


def test_training_killed_several_times_equals_uninterrupted(
    untrained: Project, uninterrupted: Project, tmp_path: Path
) -> None:
    project = untrained.copy(tmp_path / "killed")
    last = EPOCHS * STEPS_PER_EPOCH
    first, second = sorted(random.Random(7).sample(range(1, last - 1), 2))
    for step, alone in ((first, False), (second, True), (last, False)):
        project.train_and_kill(partial(reached, project, step), alone=alone)
        project.remove_outputs()
    project.train_and_kill((project.folder / "models/tagger").exists)
    project.remove_outputs()
    printed = project.train()
    assert f"resuming after step {last} of {last}" in printed
    assert project.results() == uninterrupted.results()
    assert {"epoch-2.safetensors", "last.safetensors"} < project.results().keys()
    (run,) = project.runs()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "small")
    (other,) = uninterrupted.runs()
    assert run.data.params == other.data.params
    assert run.data.metrics["macro_ap"] == other.data.metrics["macro_ap"]
    log = (project.folder / "models/tagger/train.log").read_text(encoding="utf-8")
    starts = [line for line in log.splitlines() if line.startswith("small: test_efficientnet")]
    assert len(starts) == 5
    for epoch in range(1, EPOCHS + 1):
        assert f"epoch {epoch}/{EPOCHS}  loss" in log
    expected = {f"small-{EPOCHS}.pt", f"small-{EPOCHS}.json"}
    assert remaining_files(project) == remaining_files(uninterrupted) == expected


def test_second_training_of_the_same_is_refused_and_a_signal_loses_no_step(
    untrained: Project, tmp_path: Path
) -> None:
    """A signal to the main process, while all are stopped."""
    project = untrained.copy(tmp_path / "twice")
    project.edit_params(snapshot_every="5 minutes")  # snapshots after validations alone
    running = project.start_stage()
    wait_until(lambda: project.newest_snapshot_step() == STEPS_PER_EPOCH, running)
    os.killpg(running.pid, signal.SIGSTOP)
    refused = project.run_stage()
    assert refused.output.splitlines() == [refused.error_line]
    start = "error: The same is under way in another process, which holds "
    assert refused.error_line.startswith(start)
    assert len(project.runs()) == 1
    os.kill(running.pid, signal.SIGTERM)
    os.killpg(running.pid, signal.SIGCONT)
    ended = running.finish(60)
    assert (ended.exit_code, ended.output.splitlines()[-1]) == (130, "interrupted")
    assert project.newest_snapshot_step() > STEPS_PER_EPOCH


def test_signal_to_all_processes_loses_no_step(untrained: Project, tmp_path: Path) -> None:
    project = untrained.copy(tmp_path / "group")
    project.edit_params(snapshot_every="5 minutes")
    running = project.start_stage()
    wait_until(lambda: project.newest_snapshot_step() == STEPS_PER_EPOCH, running)
    os.killpg(running.pid, signal.SIGSTOP)
    os.killpg(running.pid, signal.SIGTERM)
    os.killpg(running.pid, signal.SIGCONT)
    ended = running.finish(60)
    assert (ended.exit_code, ended.output.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in ended.output
    assert STEPS_PER_EPOCH < project.newest_snapshot_step() < EPOCHS * STEPS_PER_EPOCH
    assert f"stopped after step {project.newest_snapshot_step()}" in ended.output


def add_dvc(project: Project) -> None:
    """Give a project the stage of the repository."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "stages", project.folder / "stages", ignore=ignored)
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump({"stages": {"train": content["stages"]["train"]}})
    (project.folder / "dvc.yaml").write_text(text, encoding="utf-8")
    assert processes.run(project.folder, "dvc", "init", "--no-scm").success_output


def test_dvc_repro_resumes_a_training_that_was_killed_with_it(
    untrained: Project, uninterrupted: Project, tmp_path: Path
) -> None:
    project = untrained.copy(tmp_path / "dvc")
    add_dvc(project)
    running = processes.start(project.folder, "dvc", "repro")
    wait_until(partial(reached, project, STEPS_PER_EPOCH + 1), running)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.finish(60).exit_code == -signal.SIGKILL
    assert "resuming after step" in processes.run(project.folder, "dvc", "repro").success_output
    assert project.results() == uninterrupted.results()
    (run,) = project.runs()
    assert run.info.status == "FINISHED"


def curve(project: Project, name: str) -> list[float]:
    with (project.folder / "metrics/train.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_more_epochs_resume_a_finished_training_by_the_new_schedule(
    uninterrupted: Project, tmp_path: Path
) -> None:
    project = uninterrupted.copy(tmp_path / "more")
    snapshot = project.scratch / f"small-{EPOCHS}.pt"
    project.edit_params(epochs=EPOCHS + 2, resume_from=str(snapshot))
    printed = project.train()
    assert f"resuming after 3 epochs with other settings, from {snapshot}" in printed
    assert curve(project, "epoch") == [4, 5]
    steps = (EPOCHS + 2) * STEPS_PER_EPOCH
    rates = [fraction_of_peak("cosine", step - 1, steps, 0.15) * 1e-2 for step in (16, 20)]
    assert curve(project, "learning_rate") == pytest.approx(rates, rel=1e-3)
    assert len(project.runs()) == 2
    assert "epoch-4.safetensors" in project.results()
    assert f"train.resume_from={project.scratch / f'small-{EPOCHS + 2}.pt'}" in printed
    assert snapshot.is_file()


# In this process


def test_changed_learning_rate_starts_anew_and_changed_workers_resume(
    preset: Preset, tags: list[Tag], splits: Splits, tmp_path: Path
) -> None:
    faster = preset.model_copy(update={"learning_rate": 2e-2})
    steps = []
    for p in (
        small_params(preset),
        small_params(faster),
        small_params(preset, workers=1, snapshot_every="1 step"),
    ):
        trainer = build_trainer(p, tags, splits, tmp_path / setup.fingerprint(p, {}))
        steps.append(trainer.position.step)
        train_and_kill(trainer, validations=2 if trainer.position.step == 0 else 1)
    assert steps == [0, 0, 3]


def test_resume_from_needs_more_epochs(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(epochs=2)
    train_to_end(trainer)
    path = trainer.snapshots.newest
    for epochs in (1, 2):
        with pytest.raises(
            TaggerError, match=rf"after 2 epochs\. Raise train\.epochs, which is {epochs}\."
        ):
            build_trainer(folder="b", epochs=epochs, resume_from=path)
    assert build_trainer(folder="b", epochs=3, resume_from=path).position.step == 6


def test_training_with_other_settings_resumes_as_well(build_trainer: BuildTrainer) -> None:
    train: dict[str, Any] = {"snapshot_every": "1 step", "ema": 0.9}
    first = build_trainer(folder="first", epochs=1, **train)
    train_to_end(first)
    train |= {"epochs": 3, "resume_from": first.snapshots.newest}
    expected = train_to_end(build_trainer(folder="whole", **train))
    train_and_kill(build_trainer(folder="killed", **train), validations=1)
    resumed = build_trainer(folder="killed", **train)
    assert resumed.position.step == 5
    validations = train_to_end(resumed)
    assert [each.metrics for each in validations] == [each.metrics for each in expected]
    assert equal_weights(validations[-1].weights, expected[-1].weights)
