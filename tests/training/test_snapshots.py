"""A snapshot is whole or does not count; what goes on from one is the training it was made of."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.trainings import (
    Splits,
    build_trainer,
    equal_weights,
    small_params,
    torch_state_restored,
    train_to_end,
    weights,
)
from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.images.dataset import Split
from tagger.params import Params, Preset
from tagger.training import setup, snapshots
from tagger.training.snapshots import Snapshots
from tagger.training.trainer import Trainer

CONTENT = {
    "learner": {"model": {"weight": torch.arange(5000.0)}, "micro_batch": None},
    "position": {"step": 3, "failures": {7: "gone"}, "history": [{"loss": 0.5}]},
}

Starter = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    with torch_state_restored():
        yield


@pytest.fixture
def kept(tmp_path: Path) -> Snapshots:
    """Two snapshots, of step 1 and step 2."""
    kept = Snapshots(tmp_path / "snapshots")
    for step in (1, 2):
        kept.save(step, CONTENT | {"step": step})
    kept.wait()
    return kept


@pytest.fixture
def parts(split: Split) -> dict[str, Split]:
    return {"train": split, "validation": split.head(8)}


@pytest.fixture
def begin(
    default_params: Params, preset: Preset, tags: list[Tag], parts: Splits, tmp_path: Path
) -> Starter:
    """Start a training: of `preset`, in a folder named `at`, with keys of `train`."""
    default = preset

    def begin(
        preset: Preset = default, at: str = "a", tags: list[Tag] = tags, **recipe: Any
    ) -> Trainer:
        few = {
            name: Split(part.locations, part.labels[:, : len(tags)]) for name, part in parts.items()
        }
        return build_trainer(
            small_params(default_params, preset, **recipe), tags, few, tmp_path / at
        )

    return begin


def step_of(content: dict[str, Any] | None) -> Any:
    return None if content is None else content["step"]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# On disk


def test_what_is_read_is_what_was_written(kept: Snapshots) -> None:
    content = kept.load_newest()
    assert content is not None
    assert content["step"] == 2
    assert content["position"] == CONTENT["position"]
    assert torch.equal(content["learner"]["model"]["weight"], torch.arange(5000.0))
    names = sorted(path.name for path in kept.folder.iterdir())
    assert names == ["000000001.json", "000000001.pt", "000000002.json", "000000002.pt"]
    assert kept.newest == kept.folder / "000000002.pt"


def test_the_one_before_stays_until_the_next_is_whole(kept: Snapshots) -> None:
    seen = []

    class Slow(dict[str, Any]):
        """What is asked for while it is being written."""

        def __reduce__(self) -> Any:
            seen.append(sorted(path.name for path in kept.folder.glob("*.pt")))
            return dict, ()

    kept.save(3, {"step": 3, "slow": Slow()})
    kept.wait()
    assert seen == [["000000001.pt", "000000002.pt"]]
    assert sorted(path.stem for path in kept.folder.iterdir()) == [
        *["000000002"] * 2,
        *["000000003"] * 2,
    ]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "no seal": lambda path: path.with_suffix(".json").unlink(),
    "seal of another": lambda path: path.with_suffix(".json").write_bytes(
        path.with_name("000000001.json").read_bytes().replace(b'": "', b'": "0')
    ),
    "seal cut": lambda path: os.truncate(path.with_suffix(".json"), 9),
    "seal without": lambda path: path.with_suffix(".json").write_text("[]"),
    "a folder": become_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_told_and_passed_over(
    kept: Snapshots, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    newest = kept.folder / "000000002.pt"
    damage(newest)
    assert step_of(kept.load_newest()) == 1
    (told,) = warned(caplog)
    assert told.startswith(f"{newest} is no whole snapshot: ")
    assert told.endswith(". Going on from the one before.")
    assert "\n" not in told


def test_where_none_is_whole_a_training_starts_anew(
    kept: Snapshots, caplog: pytest.LogCaptureFixture
) -> None:
    for path in kept.folder.glob("*.pt"):
        flip(path)
    assert kept.load_newest() is None
    assert len(warned(caplog)) == 2
    assert Snapshots(kept.folder / "none").load_newest() is None


class Harmful:
    """Makes a file where it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return Path.touch, (self.sign,)


def test_one_that_holds_code_is_refused_and_not_run(
    kept: Snapshots, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sign, path = tmp_path / "ran", kept.folder / "000000003.pt"
    snapshots.write(path, {"step": 3, "harm": Harmful(sign)})
    torch.load(path, weights_only=False)
    assert sign.exists()
    sign.unlink()
    with pytest.raises(TaggerError, match=r"000000003\.pt is no whole snapshot: "):
        snapshots.read(path)
    assert step_of(kept.load_newest()) == 2
    assert not sign.exists()
    assert "\n" not in warned(caplog)[0]


def test_one_moved_elsewhere_is_whole_there(kept: Snapshots, tmp_path: Path) -> None:
    target = tmp_path / "new" / "vit.pt"
    assert kept.move(target) == target
    assert snapshots.read(target)["step"] == 2
    assert step_of(kept.load_newest()) == 1


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


def test_a_full_disk_is_told_and_the_training_goes_on(
    begin: Starter, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = begin(snapshot_every="1 step")
    training.snapshots.folder = small_disk / "snapshots"
    history = train_to_end(training)
    assert history[-1].last
    told = warned(caplog)
    assert len(told) == 6
    assert all(
        one.startswith("The snapshot cannot be written, and training goes on without: ")
        and "No space left on device" in one
        and " -> " not in one
        for one in told
    )
    assert not list(training.snapshots.folder.iterdir())


LIMITED = """
import resource, sys
from pathlib import Path
import tagger
import logging, signal, torch
from tagger.training.snapshots import Snapshots
logging.basicConfig(stream=sys.stdout, format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kept = Snapshots(Path(sys.argv[1]))
kept.save(1, {"step": 1})
kept.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
kept.save(2, {"step": 2, "weights": torch.zeros(100_000)})
kept.wait()
kept.save(3, {"step": 3})
kept.wait()
print("step", kept.newest()["step"], sorted(path.name for path in kept.folder.iterdir()))
"""


def test_one_that_grows_too_large_is_told_and_leaves_the_others(root: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(root / "stages"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "kept")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told, rest = result.stdout.splitlines()
    assert told.startswith("The snapshot cannot be written, and training goes on without: ")
    names = [f"00000000{step}.{kind}" for step in (1, 3) for kind in ("json", "pt")]
    assert rest == f"step 3 {names}"


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
def test_a_training_is_another_where_what_comes_of_it_is(
    default_params: Params, preset: Preset, change: dict[str, Any], other: bool
) -> None:
    usual, changed = (
        small_params(default_params, preset),
        small_params(default_params, preset, **change),
    )
    assert usual.effective_train != changed.effective_train
    names = [setup.fingerprint(p, HASHES) for p in (usual, changed)]
    assert (names[0] != names[1]) == other


def test_a_training_is_another_with_other_seed_preset_or_data(
    default_params: Params, preset: Preset
) -> None:
    faster = preset.model_copy(update={"learning_rate": 2e-2})
    overlaid = preset.model_copy(update={"train": {"ema": 0.5}})
    names = {
        setup.fingerprint(small_params(default_params, preset), HASHES),
        setup.fingerprint(small_params(default_params, preset, seed=1), HASHES),
        setup.fingerprint(small_params(default_params, faster), HASHES),
        setup.fingerprint(small_params(default_params, overlaid), HASHES),
        setup.fingerprint(small_params(default_params, preset), HASHES | {"split": "d"}),
    }
    assert len(names) == 5
    again = small_params(default_params, preset).model_copy(update={"evaluate": None})
    assert setup.fingerprint(again, HASHES) in names


@pytest.fixture
def finished(begin: Starter) -> Path:
    """The last snapshot of a training of one epoch."""
    training = begin(at="finished", epochs=1)
    train_to_end(training)
    assert training.snapshots.newest
    return training.snapshots.newest


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "another backbone": ("test_vit", {}),
    "another head": ("test_efficientnet", {"head": "query"}),
    "sgd": ("test_efficientnet", {"optimizer": "sgd"}),
    "lion": ("test_efficientnet", {"optimizer": "lion"}),
    "adafactor": ("test_efficientnet", {"optimizer": "adafactor"}),
}


@pytest.mark.parametrize(("backbone", "recipe"), MISTAKES.values(), ids=MISTAKES)
def test_one_of_another_model_or_optimizer_is_refused(
    begin: Starter, preset: Preset, finished: Path, backbone: str, recipe: dict[str, Any]
) -> None:
    other = preset.model_copy(update={"backbone": backbone})
    with pytest.raises(TaggerError, match=r"of another backbone, vocabulary or optim") as refused:
        begin(other, at="b", resume_from=finished, **recipe)
    assert str(refused.value).endswith("Start from its weights by train.init_from.")
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_one_of_other_tags_is_refused(begin: Starter, tags: list[Tag], finished: Path) -> None:
    with pytest.raises(TaggerError, match=r"of another backbone, vocabulary or optimizer"):
        begin(at="b", tags=tags[:-1], resume_from=finished)


def test_one_that_is_not_there_is_told(begin: Starter, tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"none\.pt is no whole snapshot: .*none"):
        begin(resume_from=tmp_path / "none.pt")


def test_an_average_begins_with_the_weights_where_there_was_none(
    begin: Starter, finished: Path
) -> None:
    training = begin(at="b", ema=0.9, resume_from=finished)
    assert training.state.ema is not None
    content = snapshots.read(finished)
    assert equal_weights(training.state.ema.module.state_dict(), content["learner"]["model"])
    assert equal_weights(weights(training), content["learner"]["model"])


def test_the_seal_is_the_hash_that_everyone_computes(finished: Path) -> None:
    seal = json.loads(finished.with_suffix(".json").read_text(encoding="utf-8"))
    assert seal == {"sha256": files.sha256_file(finished)}


# Of another version of the code


VERSIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more": (lambda content: content["position"].update(phase=1), "phase"),
    "fewer": (lambda content: content["learner"].pop("scaler"), "scaler"),
    "none": (lambda content: content.pop("position"), "position"),
}


@pytest.mark.parametrize(("change", "word"), VERSIONS.values(), ids=VERSIONS)
def test_one_of_another_version_is_told_with_the_way_out(
    begin: Starter, finished: Path, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    content = snapshots.read(finished)
    change(content)
    snapshots.write(finished, content)
    folder = finished.parent
    with pytest.raises(TaggerError, match=rf"\A{folder} is of another version .*{word}") as told:
        begin(at="finished", epochs=1)
    assert str(told.value).endswith(f"Go on with that one. Or remove {folder} to begin anew.")
    with pytest.raises(TaggerError, match=rf"\A{finished} is of another version .*{word}.*\Z"):
        begin(at="b", resume_from=finished)


def test_an_own_one_that_does_not_fit_is_told_with_the_way_out(
    begin: Starter, finished: Path
) -> None:
    content = snapshots.read(finished)
    content["learner"]["model"]["renamed"] = content["learner"]["model"].popitem()[1]
    snapshots.write(finished, content)
    with pytest.raises(TaggerError, match=rf"\A.*Or remove {finished.parent} to begin anew\.\Z"):
        begin(at="finished", epochs=1)
