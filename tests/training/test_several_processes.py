"""Several processes train the model that one would, and restart if one of them is killed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from support import clones
from support.projects import ROOT, TWO_PROCESSES, Project, make_project
from support.trainings import (
    Splits,
    small_params,
)
from tagger.core import manifest
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.params import Params, Preset
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import setup

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def untrained(
    tmp_path_factory: pytest.TempPathFactory, default_params: Params, demo: Path, preset: Preset
) -> Project:
    """A project whose last batch of validation images is too small for two processes."""
    folder = tmp_path_factory.mktemp("projects") / "untrained"
    # No batch norm, whose statistics are those of the images of a process; an optimizer that moves
    # in proportion to the gradient, not by its sign; blocks large enough to be sharded one by one.
    arguments = {"depth": 2, "embed_dim": 96, "num_heads": 3}
    small = {"backbone": "test_vit", "batch_size": 4, "learning_rate": 1e-3}
    vit = preset.model_copy(update=small | {"model_args": arguments})
    train: dict[str, Any] = {
        "optimizer": "sgd",
        "ema": 0.9,
        "clip_grad_norm": 10.0,
        "validate_on": 5,
    }
    return make_project(folder, default_params, demo, vit, **train, snapshot_every="1 step")


@pytest.fixture(scope="module")
def single(untrained: Project) -> Project:
    trained = untrained.copy(untrained.folder.with_name("single"))
    trained.train()
    return trained


@pytest.fixture(scope="module")
def two(untrained: Project) -> Project:
    trained = untrained.copy(untrained.folder.with_name("two"))
    trained.train(by=TWO_PROCESSES)
    return trained


def curve(project: Project) -> list[dict[str, float]]:
    with (project.folder / "metrics/train.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def snapshot(project: Project) -> dict[str, dict[str, Tensor]]:
    """Return the weights and their moving average after the last step."""
    (path,) = project.scratch.glob("small-*.pt")
    content = torch.load(path, weights_only=True)["state"]
    return {"model": content["model"], "ema": content["ema"]}


def assert_equal(first: Project, second: Project) -> None:
    """Check that two trainings differ by the order of sums alone."""
    assert len(curve(first)) == len(curve(second)) == 2
    for row, expected in zip(curve(first), curve(second), strict=True):
        # written with four decimals
        assert row == pytest.approx(expected, rel=1e-5, abs=1.01e-4)
    for kind, weights in snapshot(first).items():
        expected_weights = snapshot(second)[kind]
        assert weights.keys() == expected_weights.keys()
        for name, values in weights.items():
            difference = float((values - expected_weights[name]).norm())
            assert difference <= 1e-5 * float(expected_weights[name].norm() + 1), name
    for file in ("model.safetensors", "last.safetensors"):
        shapes = [
            {name: values.shape for name, values in load_file(path / file).items()}
            for path in (first.folder / "models/tagger", second.folder / "models/tagger")
        ]
        assert shapes[0] == shapes[1]


def assert_one_process_wrote(project: Project) -> None:
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    log = (project.folder / "models/tagger/train.log").read_text(encoding="utf-8")
    assert sum(line.startswith("epoch ") for line in log.splitlines()) == 2


def test_two_processes_train_the_same_model_as_one(single: Project, two: Project) -> None:
    moved = snapshot(single)["model"]["blocks.1.attn.qkv.weight"]
    start = load_file(single.folder / "models/tagger/last.safetensors")["blocks.1.attn.qkv.weight"]
    assert not torch.equal(moved, start)  # which has the moving average
    assert_equal(two, single)


def test_only_the_main_process_writes(two: Project) -> None:
    assert_one_process_wrote(two)


def test_fsdp_trains_the_same_model(untrained: Project, single: Project, tmp_path: Path) -> None:
    sharded = untrained.copy(tmp_path / "sharded")
    sharded.edit_params(parallel="fsdp")
    sharded.train(by=TWO_PROCESSES)
    assert_equal(sharded, single)
    assert_one_process_wrote(sharded)


def processes_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Return the process of each rank."""
    pids: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher.pid:
            ranks = [value for value in environment if value.startswith(b"RANK=")]
            pids |= {int(rank.removeprefix(b"RANK=")): int(folder.name) for rank in ranks}
    return pids


def test_all_processes_resume_if_one_is_killed(
    untrained: Project, two: Project, tmp_path: Path
) -> None:
    project = untrained.copy(tmp_path / "killed")
    by = (*TWO_PROCESSES[:-1], "--max-restarts", "1", "python", ROOT / "stages/train.py")
    launcher = subprocess.Popen(  # no stand-ins: it ends the others by SIGTERM
        [sys.executable, *by],
        cwd=project.folder,
        env=clones.environment(DVC_ROOT=str(project.folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while project.newest_snapshot_step() < 3:
            assert launcher.poll() is None, launcher.communicate()[0]
            time.sleep(0.002)
        os.kill(processes_of(launcher)[1], signal.SIGKILL)
        printed, _ = launcher.communicate(timeout=200)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == 0, printed
    assert "resuming after step" in printed
    assert project.results() == two.results()
    assert_one_process_wrote(project)


def test_process_without_a_readable_image_does_not_block_the_others(
    default_params: Params, demo: Path, untrained: Project, tmp_path: Path
) -> None:
    """All validation images that the second process reads of a batch are gone."""
    drawn = tmp_path / "demo"
    shutil.copytree(demo, drawn)
    content = yaml.safe_load((untrained.folder / "params.yaml").read_text(encoding="utf-8"))
    vit = Preset.model_validate(content["models"]["small"])
    train: dict[str, Any] = {"parallel": "fsdp", "validate_on": 5, "epochs": 1, "optimizer": "sgd"}
    project = make_project(tmp_path / "project", default_params, drawn, vit, **train)
    posts = manifest.read_posts(project.folder / "data/posts.parquet", 10_000)
    locations = list(manifest.locations(posts.table))[16:23]
    for row in (1, 4):  # the second and fourth of five that are spread over seven
        Path(locations[row].path).unlink()
    project.train(by=TWO_PROCESSES)
    assert len(curve(project)) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_process_holds_copies_of_the_state(
    preset: Preset, tags: list[Tag], splits: Splits, tmp_path: Path, rank: int
) -> None:
    group = ProcessGroup(World(rank, 2, rank, 2), torch.device("cpu"))
    trainer = setup.build_trainer(small_params(preset, ema=0.9), tags, splits, group, tmp_path)
    content = trainer.state.state_dict()
    copies = [*content["model"].values(), *content["ema"].values()]
    assert {isinstance(copy, Tensor) for copy in copies} == {rank == 0}
    assert bool(trainer.state.full_weights(trainer.model)) == (rank == 0)


@pytest.mark.parametrize("processes", [5, 100])
def test_batch_too_small_for_the_processes_is_refused(
    preset: Preset, tags: list[Tag], splits: Splits, tmp_path: Path, processes: int
) -> None:
    group = ProcessGroup(World(0, processes, 0, processes), torch.device("cpu"))
    message = rf"^A batch of 8 images is too small for {processes} processes: each needs"
    with pytest.raises(TaggerError, match=message):
        setup.build_trainer(small_params(preset), tags, splits, group, tmp_path)
