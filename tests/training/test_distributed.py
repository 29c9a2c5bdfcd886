"""Several processes train the model that one would, and bear that one of them is killed."""

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
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from torch import Tensor

from support import clones
from support.trainings import (
    ROOT,
    SHORT_TRAINING,
    TWO_PROCESSES,
    Project,
    make_project,
    small_params,
    torch_state_restored,
)
from tagger.core import manifest
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.images.dataset import Split
from tagger.params import Params, Preset
from tagger.system import distributed
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import setup

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def fresh(
    tmp_path_factory: pytest.TempPathFactory, default_params: Params, demo: Path, preset: Preset
) -> Project:
    """A project whose last batch of validation pictures is too small for two processes."""
    folder = tmp_path_factory.mktemp("projects") / "fresh"
    # Without batch norm, whose statistics are those of the pictures that a process sees; and with
    # an optimizer that moves in proportion to the gradient, not by its sign. The blocks are large
    # enough to be parted one by one.
    arguments = {"depth": 2, "embed_dim": 96, "num_heads": 3}
    small = {"backbone": "test_vit", "batch_size": 4, "learning_rate": 1e-3}
    vit = preset.model_copy(update=small | {"model_args": arguments})
    recipe: dict[str, Any] = {
        "optimizer": "sgd",
        "ema": 0.9,
        "clip_grad_norm": 10.0,
        "validate_on": 5,
    }
    return make_project(folder, default_params, demo, vit, **recipe, snapshot_every="1 step")


@pytest.fixture(scope="module")
def alone(fresh: Project) -> Project:
    trained = fresh.copy(fresh.folder.with_name("alone"))
    trained.train()
    return trained


@pytest.fixture(scope="module")
def two(fresh: Project) -> Project:
    trained = fresh.copy(fresh.folder.with_name("two"))
    trained.train(by=TWO_PROCESSES)
    return trained


def figures(project: Project) -> list[dict[str, float]]:
    with (project.folder / "metrics/train.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def snapshot(project: Project) -> dict[str, dict[str, Tensor]]:
    """Return the weights and their average after the last step."""
    (path,) = project.scratch.glob("small-*.pt")
    content = torch.load(path, weights_only=True)["learner"]
    return {"model": content["model"], "average": content["average"]}


def agree(one: Project, other: Project) -> None:
    """Check that two trainings are the same but for the order of sums."""
    assert len(figures(one)) == len(figures(other)) == 2
    for row, expected in zip(figures(one), figures(other), strict=True):
        # written with four decimals
        assert row == pytest.approx(expected, rel=1e-5, abs=1.01e-4)
    for kind, weights in snapshot(one).items():
        expected_weights = snapshot(other)[kind]
        assert weights.keys() == expected_weights.keys()
        for name, values in weights.items():
            difference = float((values - expected_weights[name]).norm())
            assert difference <= 1e-5 * float(expected_weights[name].norm() + 1), name
    for file in ("model.safetensors", "last.safetensors"):
        shapes = [
            {name: values.shape for name, values in load_file(path / file).items()}
            for path in (one.folder / "models/tagger", other.folder / "models/tagger")
        ]
        assert shapes[0] == shapes[1]


def only_one_told(project: Project) -> None:
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    log = (project.folder / "models/tagger/train.log").read_text(encoding="utf-8")
    assert sum(line.startswith("epoch ") for line in log.splitlines()) == 2


def test_two_processes_train_the_model_that_one_does(alone: Project, two: Project) -> None:
    moved = snapshot(alone)["model"]["blocks.1.attn.qkv.weight"]
    start = load_file(alone.folder / "models/tagger/last.safetensors")["blocks.1.attn.qkv.weight"]
    assert not torch.equal(moved, start)  # the average is something else
    agree(two, alone)


def test_only_one_of_the_processes_writes(two: Project) -> None:
    only_one_told(two)


def test_weights_in_parts_train_to_the_same(fresh: Project, alone: Project, tmp_path: Path) -> None:
    parts = fresh.copy(tmp_path / "parts")
    parts.edit_params(parallel="fsdp")
    parts.train(by=TWO_PROCESSES)
    agree(parts, alone)
    only_one_told(parts)


def processes_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Return the process of each rank."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher.pid:
            ranks = [one for one in environment if one.startswith(b"RANK=")]
            found |= {int(one.removeprefix(b"RANK=")): int(folder.name) for one in ranks}
    return found


def test_where_one_is_killed_all_go_on_from_the_last_snapshot(
    fresh: Project, two: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "killed")
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
    assert "going on after step" in printed
    assert project.results() == two.results()
    only_one_told(project)


@pytest.mark.parametrize("processes", [5, 100])
def test_a_batch_too_small_for_the_processes_is_told(
    default_params: Params,
    preset: Preset,
    tags: list[Tag],
    split: Split,
    tmp_path: Path,
    processes: int,
) -> None:
    group = ProcessGroup(World(0, processes, 0, processes), torch.device("cpu"))
    parts = {"train": split, "validation": split}
    with (
        torch_state_restored(),
        pytest.raises(
            TaggerError,
            match=rf"^A batch of 8 pictures is too small for {processes} processes: each needs",
        ),
    ):
        setup.build_trainer(
            small_params(default_params, preset, **SHORT_TRAINING), tags, parts, group, tmp_path
        )


def test_a_process_without_a_readable_picture_keeps_nobody_waiting(
    default_params: Params, demo: Path, fresh: Project, tmp_path: Path
) -> None:
    """Of the pictures to judge by, those of a batch that the second process reads are gone."""
    drawn = tmp_path / "demo"
    shutil.copytree(demo, drawn)
    content = yaml.safe_load((fresh.folder / "params.yaml").read_text(encoding="utf-8"))
    vit = Preset.model_validate(content["models"]["small"])
    recipe: dict[str, Any] = {"parallel": "fsdp", "validate_on": 5, "epochs": 1, "optimizer": "sgd"}
    made = make_project(tmp_path / "project", default_params, drawn, vit, **recipe)
    posts = manifest.read_posts(made.folder / "data/posts.parquet", 10_000)
    places = list(manifest.locations(posts.table))[16:23]
    for row in (1, 4):  # the second and fourth of five that are spread over seven
        Path(places[row].path).unlink()
    made.train(by=TWO_PROCESSES)
    assert len(figures(made)) == 1


# In this process


def test_what_is_told_on_gpus_goes_through_the_memory_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "_store", lambda place: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for cuda in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        with distributed.process_group() as group:
            assert group.device == torch.device("cuda", 1) if cuda else torch.device("cpu")
    assert asked == ["cpu:gloo,cuda:nccl", "gloo"]


def test_a_copy_has_nothing_in_common_with_what_it_is_of() -> None:
    """Some optimizers hold lists of tensors, as long as a weight has dimensions."""
    state: Any = {0: {"Q": [torch.ones(2), torch.ones(3)], "step": 7}, 1: {"Q": [], "pair": (1, 2)}}
    copy = distributed.full_state_dict(state)
    for values in state[0]["Q"]:
        values += 1
    assert [values.tolist() for values in copy[0]["Q"]] == [[1, 1], [1, 1, 1]]
    assert (copy[0]["step"], copy[1]) == (7, {"Q": [], "pair": (1, 2)})
    again = distributed.full_state_dict(state, copy)
    assert [values.tolist() for values in again[0]["Q"]] == [[2, 2], [2, 2, 2]]
    for one, other in zip(copy[0]["Q"], again[0]["Q"], strict=True):
        assert one.data_ptr() == other.data_ptr()
    shorter = distributed.full_state_dict({0: {"Q": [torch.zeros(2)]}}, copy)
    assert [values.tolist() for values in shorter[0]["Q"]] == [[0, 0]]


def test_all_put_parts_together_and_one_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Parted:
        def __init__(self, number: int) -> None:
            self.number = number

        def full_tensor(self) -> Tensor:
            asked.append(self.number)
            return torch.ones(2)

    monkeypatch.setattr(distributed, "DTensor", Parted)
    state = {"model": {"a": Parted(0), "b": torch.zeros(1)}, "moments": [Parted(1)], "step": 3}
    nothing = {"model": {"a": None, "b": None}, "moments": [None], "step": 3}
    assert distributed.full_state_dict(state, needed=False) == nothing
    assert asked == [0, 1]
    assert distributed.full_state_dict(state)["moments"][0].tolist() == [1, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_leading_process_holds_copies(
    default_params: Params, preset: Preset, tags: list[Tag], split: Split, tmp_path: Path, rank: int
) -> None:
    group = ProcessGroup(World(rank, 2, rank, 2), torch.device("cpu"))
    with torch_state_restored():
        p = small_params(default_params, preset, ema=0.9)
        training = setup.build_trainer(
            p, tags, {"train": split, "validation": split}, group, tmp_path
        )
    content = training.state.state_dict()
    copies = [*content["model"].values(), *content["average"].values()]
    assert {isinstance(copy, Tensor) for copy in copies} == {rank == 0}
    assert bool(training._weights()) == (rank == 0)
