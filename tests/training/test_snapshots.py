"""Snapshots are complete or skipped, and belong to one training."""

import logging
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.trainings import (
    BuildTrainer,
    equal_weights,
    small_params,
    train_to_end,
    weights,
)
from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.params import Preset
from tagger.training import setup, snapshots
from tagger.training.snapshots import Snapshots

CONTENT = {
    "state": {"model": {"weight": torch.arange(5000.0)}, "micro_batch": None},
    "position": {"step": 3, "failures": {7: "gone"}, "history": [{"loss": 0.5}]},
}


@pytest.fixture
def saved(tmp_path: Path) -> Snapshots:
    """Two snapshots, of step 1 and step 2."""
    saved = Snapshots(tmp_path / "snapshots")
    for step in (1, 2):
        saved.save(step, CONTENT | {"step": step})
    saved.wait()
    return saved


def step_of(content: dict[str, Any] | None) -> Any:
    return None if content is None else content["step"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# On disk


def test_snapshot_is_read_as_it_was_written(saved: Snapshots) -> None:
    content = saved.load_newest()
    assert content is not None
    assert content["step"] == 2
    assert content["position"] == CONTENT["position"]
    assert torch.equal(content["state"]["model"]["weight"], torch.arange(5000.0))
    names = sorted(path.name for path in saved.folder.iterdir())
    assert names == ["000000001.json", "000000001.pt", "000000002.json", "000000002.pt"]
    assert saved.newest == saved.folder / "000000002.pt"
    hashes = files.read_json(saved.folder / "000000002.json")
    assert hashes == {"sha256": files.sha256_file(saved.newest)}


def test_previous_snapshot_stays_until_the_next_is_complete(saved: Snapshots) -> None:
    listed = []

    class Listing(dict[str, Any]):
        """Content that lists the folder while it is written."""

        def __reduce__(self) -> Any:
            listed.append(sorted(path.name for path in saved.folder.glob("*.pt")))
            return dict, ()

    saved.save(3, {"step": 3, "listing": Listing()})
    saved.wait()
    assert listed == [["000000001.pt", "000000002.pt"]]
    assert sorted(path.stem for path in saved.folder.iterdir()) == [
        *["000000002"] * 2,
        *["000000003"] * 2,
    ]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flip_bit,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "no hash": lambda path: path.with_suffix(".json").unlink(),
    "hash of another": lambda path: path.with_suffix(".json").write_bytes(
        path.with_name("000000001.json").read_bytes().replace(b'": "', b'": "0')
    ),
    "hash truncated": lambda path: os.truncate(path.with_suffix(".json"), 9),
    "hash missing": lambda path: path.with_suffix(".json").write_text("[]"),
    "a folder": become_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_snapshot_is_logged_and_skipped(
    saved: Snapshots, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    newest = saved.folder / "000000002.pt"
    damage(newest)
    assert step_of(saved.load_newest()) == 1
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{newest} is not a valid snapshot: ")
    assert warning.endswith(". Trying the one before.")
    assert "\n" not in warning


def test_no_valid_snapshot_gives_none(saved: Snapshots, caplog: pytest.LogCaptureFixture) -> None:
    for path in saved.folder.glob("*.pt"):
        flip_bit(path)
    assert saved.load_newest() is None
    assert len(warnings(caplog)) == 2
    assert Snapshots(saved.folder / "none").load_newest() is None


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return Path.touch, (self.sign,)


def test_code_in_a_snapshot_is_refused_and_not_run(
    saved: Snapshots, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sign, path = tmp_path / "ran", saved.folder / "000000003.pt"
    snapshots.write(path, {"step": 3, "harm": Harmful(sign)})
    torch.load(path, weights_only=False)
    assert sign.exists()
    sign.unlink()
    with pytest.raises(TaggerError, match=r"000000003\.pt is not a valid snapshot: "):
        snapshots.read(path)
    assert step_of(saved.load_newest()) == 2
    assert not sign.exists()
    assert "\n" not in warnings(caplog)[0]


def test_moved_snapshot_is_valid(saved: Snapshots, tmp_path: Path) -> None:
    target = tmp_path / "new" / "vit.pt"
    saved.move_newest(target)
    assert snapshots.read(target)["step"] == 2
    assert step_of(saved.load_newest()) == 1


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system smaller than a snapshot."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_logged_and_training_continues(
    build_trainer: BuildTrainer, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(snapshot_every="1 step")
    trainer.snapshots.folder = small_disk / "snapshots"
    validations = train_to_end(trainer)
    assert "last" in validations[-1].checkpoints
    messages = warnings(caplog)
    assert len(messages) == 6
    assert all(
        message.startswith("The snapshot cannot be written; training continues: ")
        and "No space left on device" in message
        and " -> " not in message
        for message in messages
    )
    assert not list(trainer.snapshots.folder.iterdir())


def test_snapshot_beyond_the_file_size_limit_is_logged_and_leaves_the_others(
    saved: Snapshots, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        saved.save(3, {"step": 3, "weights": torch.zeros(100_000)})
        saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (warning,) = warnings(caplog)
    assert warning.startswith("The snapshot cannot be written; training continues: ")
    saved.save(4, {"step": 4})
    saved.wait()
    assert step_of(saved.load_newest()) == 4
    assert sorted(path.name for path in saved.folder.glob("*.pt")) == [
        "000000002.pt",
        "000000004.pt",
    ]


# Whose it is


HASHES = {"posts": "a", "vocabulary": "b", "split": "c"}


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"epochs": 3}, True),
        ({"optimizer": "sgd"}, True),
        ({"ema": 0.5}, True),
        ({"loss": {"gamma": 1.0}}, True),
        ({"augment": {"sizes": [48]}}, True),
        ({"precision": "bf16"}, True),
        ({"workers": 7}, False),
        ({"snapshot_every": "7 steps"}, False),
        ({"max_nonfinite_steps": 7}, False),
        ({"max_unreadable": 0.5}, False),
    ],
    ids=str,
)
def test_fingerprint_changes_with_params_that_change_the_model(
    preset: Preset, change: dict[str, Any], other: bool
) -> None:
    usual, changed = small_params(preset), small_params(preset, **change)
    assert usual.train != changed.train
    names = [setup.fingerprint(p, HASHES) for p in (usual, changed)]
    assert (names[0] != names[1]) == other


def test_fingerprint_changes_with_seed_preset_and_data(preset: Preset) -> None:
    faster = preset.model_copy(update={"learning_rate": 2e-2})
    overriding = preset.model_copy(update={"train": {"ema": 0.5}})
    names = {
        setup.fingerprint(small_params(preset), HASHES),
        setup.fingerprint(small_params(preset, seed=1), HASHES),
        setup.fingerprint(small_params(faster), HASHES),
        setup.fingerprint(small_params(overriding), HASHES),
        setup.fingerprint(small_params(preset), HASHES | {"split": "d"}),
    }
    assert len(names) == 5
    again = small_params(preset).model_copy(update={"evaluate": None})
    assert setup.fingerprint(again, HASHES) in names


@pytest.fixture
def finished(build_trainer: BuildTrainer) -> Path:
    """The last snapshot of a training of one epoch."""
    trainer = build_trainer(folder="finished", epochs=1)
    train_to_end(trainer)
    assert trainer.snapshots.newest
    return trainer.snapshots.newest


OTHER_TAGS: dict[str, Any] = {"tags": []}
MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "another backbone": ("test_vit", {}),
    "other tags": ("test_efficientnet", OTHER_TAGS),
    "another head": ("test_efficientnet", {"head": "query"}),
    "sgd": ("test_efficientnet", {"optimizer": "sgd"}),
    "lion": ("test_efficientnet", {"optimizer": "lion"}),
    "adafactor": ("test_efficientnet", {"optimizer": "adafactor"}),
}


@pytest.mark.parametrize(("backbone", "changes"), MISTAKES.values(), ids=MISTAKES)
def test_snapshot_of_another_model_tags_or_optimizer_is_refused(
    build_trainer: BuildTrainer,
    preset: Preset,
    tags: list[Tag],
    finished: Path,
    backbone: str,
    changes: dict[str, Any],
) -> None:
    other = preset.model_copy(update={"backbone": backbone})
    changes = {"tags": tags[:-1]} if changes == OTHER_TAGS else changes
    with pytest.raises(TaggerError, match=r"of another backbone, vocabulary or optim") as refused:
        build_trainer(other, folder="b", resume_from=finished, **changes)
    assert str(refused.value).endswith("Start from its weights with train.init_from.")
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_missing_snapshot_is_refused(build_trainer: BuildTrainer, tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"none\.pt is not a valid snapshot: .*none"):
        build_trainer(resume_from=tmp_path / "none.pt")


def test_ema_starts_from_the_weights_of_a_snapshot_without_ema(
    build_trainer: BuildTrainer, finished: Path
) -> None:
    trainer = build_trainer(folder="b", ema=0.9, resume_from=finished)
    assert trainer.state.ema is not None
    content = snapshots.read(finished)
    assert equal_weights(trainer.state.ema.module.state_dict(), content["state"]["model"])
    assert equal_weights(weights(trainer), content["state"]["model"])


# Of another version of the code


VERSIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more": (lambda content: content["position"].update(phase=1), "phase"),
    "fewer": (lambda content: content["state"].pop("scaler"), "scaler"),
    "none": (lambda content: content.pop("position"), "position"),
}


@pytest.mark.parametrize(("change", "word"), VERSIONS.values(), ids=VERSIONS)
def test_snapshot_of_another_version_is_refused_with_a_way_out(
    build_trainer: BuildTrainer,
    finished: Path,
    change: Callable[[dict[str, Any]], object],
    word: str,
) -> None:
    content = snapshots.read(finished)
    change(content)
    snapshots.write(finished, content)
    folder = finished.parent
    with pytest.raises(TaggerError, match=rf"\A{folder} is of another version .*{word}") as error:
        build_trainer(folder="finished", epochs=1)
    assert str(error.value).endswith(f"Use that version. Or remove {folder} to start again.")
    with pytest.raises(TaggerError, match=rf"\A{finished} is of another version .*{word}.*\Z"):
        build_trainer(folder="b", resume_from=finished)


def test_own_snapshot_that_does_not_fit_is_refused_with_a_way_out(
    build_trainer: BuildTrainer, finished: Path
) -> None:
    content = snapshots.read(finished)
    content["state"]["model"]["renamed"] = content["state"]["model"].popitem()[1]
    snapshots.write(finished, content)
    with pytest.raises(TaggerError, match=rf"\A.*Or remove {finished.parent} to start again\.\Z"):
        build_trainer(folder="finished", epochs=1)
