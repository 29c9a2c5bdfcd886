"""Training survives non-finite steps, unreadable images and little memory, or says why not."""

import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.trainings import BuildTrainer, Splits, equal_weights, train_to_end, weights
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.images.dataset import Split
from tagger.params import Preset
from tagger.system import distributed
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import snapshots
from tagger.training.trainer import Trainer
from tagger.training.validation import Validation


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# Non-finite steps


def make_loss_nan(trainer: Trainer, steps: set[int]) -> None:
    """Make the loss NaN in some steps, counted from 1."""
    usual = trainer.loss

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return usual(logits, targets) * (math.nan if trainer.position.step + 1 in steps else 1.0)

    trainer.loss = loss


def test_step_with_nan_loss_is_logged_and_changes_nothing(
    build_trainer: BuildTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(epochs=2, ema=0.9, keep_every="1 step")
    make_loss_nan(trainer, {3})
    rows = [batch.rows for batch in trainer.batches]
    states: list[dict[str, Tensor]] = []
    validations = train_to_end(trainer, lambda _: states.append(weights(trainer)))
    equal = [equal_weights(*pair) for pair in itertools.pairwise(states)]
    assert equal == [False, True, False, False, False]
    assert equal_weights(validations[1].weights, validations[2].weights)
    assert validations[2].metrics["loss"] == 0  # the mean over no finite step
    assert trainer.position.nonfinite_steps == 1
    (warning,) = warnings(caplog)
    assert warning.startswith("step 3 is skipped: its loss (nan) or gradient is not finite.")
    paths = [trainer.split.locations[row].path for row in rows[2]]
    assert warning.endswith(f"Images: {', '.join(paths)}")


def test_step_with_infinite_gradient_changes_nothing(
    build_trainer: BuildTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(epochs=1, keep_every="1 step")
    parameter: Any = next(trainer.model.parameters())
    hook = parameter.register_hook(lambda gradient: gradient * math.inf)
    states = [weights(trainer)]

    def watch(_: Validation) -> None:
        hook.remove()
        states.append(weights(trainer))

    train_to_end(trainer, watch)
    assert equal_weights(states[0], states[1])
    assert not equal_weights(states[1], states[2])
    assert len(warnings(caplog)) == trainer.position.nonfinite_steps == 1


def test_skipped_step_lists_a_few_images(
    build_trainer: BuildTrainer, preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(preset.model_copy(update={"batch_size": 12}), epochs=1)
    make_loss_nan(trainer, {1})
    train_to_end(trainer)
    (warning,) = warnings(caplog)
    assert warning.endswith(" and 4 more")
    assert warning.count(".png") == 8


def test_too_many_nonfinite_steps_stop_with_a_snapshot_to_resume_from(
    build_trainer: BuildTrainer, preset: Preset
) -> None:
    trainer = build_trainer(epochs=3, max_nonfinite_steps=2)
    make_loss_nan(trainer, {3, 4, 5})
    with pytest.raises(TaggerError, match=r"^3 steps .*, more than .* \(2\)\. Lower") as stopped:
        train_to_end(trainer)
    assert trainer.position.step == 4  # the fifth is not done
    path = Path(str(stopped.value).split("train.resume_from: ")[1])
    content = snapshots.read(path)
    assert content["position"]["step"] == 4
    assert equal_weights(content["state"]["model"], weights(trainer))
    calmer = preset.model_copy(update={"learning_rate": 1e-3})
    resumed = build_trainer(calmer, folder="b", epochs=3, resume_from=path)
    assert resumed.position.step == 4
    assert equal_weights(weights(resumed), weights(trainer))
    assert train_to_end(resumed)[-1].metrics["epoch"] == 3


def test_diverging_learning_rate_stops_the_training(
    build_trainer: BuildTrainer, preset: Preset
) -> None:
    wild = preset.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(TaggerError, match=r"Lower the preset's learning_rate"):
        train_to_end(build_trainer(wild, epochs=3, optimizer="sgd", max_nonfinite_steps=3))


# Memory


class SmallMemory:
    """A device that holds only so many images: the middle of the network fails beyond."""

    def __init__(self, trainer: Trainer, images: int) -> None:
        self.tried: list[int] = []
        self.images = images
        model: Any = trainer.model
        model.blocks[2].register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training:
            self.tried.append(len(output))
            if len(output) > self.images:
                raise torch.OutOfMemoryError("CUDA out of memory.")


def test_out_of_memory_repeats_the_batch_in_micro_batches(
    build_trainer: BuildTrainer, preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    dropping = preset.model_copy(update={"drop_path": 0.2})
    random = {"ema": 0.9, "augment": {"mixup": 0.4}}
    trainer = build_trainer(dropping, **random)
    memory = SmallMemory(trainer, 3)
    validations = train_to_end(trainer)
    assert memory.tried == [8, 4] + [2] * 4 * 6
    assert [line.split(": ")[1][:19] for line in warnings(caplog)] == [
        "4 images at a time ",
        "2 images at a time ",
    ]
    reference = build_trainer(dropping, folder="b", micro_batch=2, **random)
    expected = train_to_end(reference)
    assert [each.metrics for each in validations] == [each.metrics for each in expected]
    assert equal_weights(validations[-1].weights, expected[-1].weights)
    assert equal_weights(weights(trainer), weights(reference))
    assert trainer.state.micro_batch.size == 2
    assert build_trainer(dropping, **random).state.micro_batch.size == 2


def test_memory_too_small_for_two_images_stops_the_training(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer()
    SmallMemory(trainer, 1)
    with pytest.raises(TaggerError, match=r"not suffice for 2 images .*gradient_checkpointing"):
        train_to_end(trainer)


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_find_the_micro_batch_before_they_start_unless_sharded(
    build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    trainer = build_trainer()
    memory, before = SmallMemory(trainer, 3), weights(trainer)
    monkeypatch.setattr(distributed, "is_sharded", lambda model: sharded)
    if sharded:  # the others wait in the middle of the model
        with pytest.raises(TaggerError, match=r" 8 images at a time\. Lower train\.micro_batch"):
            trainer.find_micro_batch()
        assert memory.tried == [8]
        return
    trainer.find_micro_batch()
    assert (memory.tried, trainer.state.micro_batch.size) == ([8, 4, 2, 2, 2, 2], 2)
    assert equal_weights(before, weights(trainer))


def test_micro_batch_is_found_only_for_several_gpus_and_not_for_cached_embeddings(
    build_trainer: BuildTrainer,
) -> None:
    gpus = ProcessGroup(World(0, 2, 0, 2), torch.device("cuda"))
    cached = build_trainer(folder="b", freeze="all", cache_embeddings=True)
    images = build_trainer()
    assert not images.computes_in_step()
    images.group = cached.group = gpus
    assert images.computes_in_step()
    assert not cached.computes_in_step()


# Unreadable images


def without_files(split: Split, rows: range | list[int], folder: Path) -> Split:
    """Return a split in which some images do not exist."""
    locations = list(split.locations)
    for row in rows:
        locations[row] = Location(str(folder / f"gone{row}.png"), 0, 8)
    return Split(locations, split.labels)


def test_unreadable_images_are_replaced_and_recorded(
    build_trainer: BuildTrainer, splits: Splits, tmp_path: Path
) -> None:
    train = without_files(splits["train"], [3], tmp_path)
    trainer = build_trainer(splits={**splits, "train": train}, max_unreadable=1 / 24, epochs=1)
    rows = sorted(row for batch in trainer.batches for row in batch.rows)
    assert rows == sorted([*range(3), 4, *range(4, 24)])
    (validation,) = train_to_end(trainer)
    assert validation.metrics["step"] == 3
    assert trainer.unreadable == len(trainer.position.failures) == 1
    assert "No such file" in trainer.position.failures[3]
    snapshot = trainer.snapshots.load_newest()
    assert snapshot is not None
    assert snapshot["position"]["failures"] == trainer.position.failures


@pytest.mark.parametrize("gone", [2, 24])
def test_too_many_unreadable_images_stop_the_training(
    build_trainer: BuildTrainer, splits: Splits, tmp_path: Path, gone: int
) -> None:
    train = without_files(splits["train"], range(gone), tmp_path)
    message = r"of 24 training images cannot be read, .*gone\d+\.png first: .*No such"
    with pytest.raises(TaggerError, match=message):
        train_to_end(build_trainer(splits={**splits, "train": train}, max_unreadable=1 / 24))


@pytest.mark.parametrize("gone", [1, 8])
def test_unreadable_validation_images_are_skipped(
    build_trainer: BuildTrainer, splits: Splits, tmp_path: Path, gone: int
) -> None:
    validation_split = without_files(splits["validation"], range(gone), tmp_path)
    trainer = build_trainer(splits={**splits, "validation": validation_split}, epochs=1)
    (validation,) = train_to_end(trainer)
    assert validation.predictions.rows == list(range(gone, 8))
    assert math.isfinite(validation.metrics["validation_loss"])


def test_no_validation_images_give_metrics_of_0(
    build_trainer: BuildTrainer, splits: Splits
) -> None:
    empty = {**splits, "validation": splits["validation"].head(0)}
    (validation,) = train_to_end(build_trainer(splits=empty, epochs=1))
    assert validation.metrics["macro_ap"] == 0
    assert validation.weights


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_training_images_are_refused(
    build_trainer: BuildTrainer, splits: Splits, count: int
) -> None:
    few = {**splits, "train": splits["train"].head(count)}
    with pytest.raises(TaggerError, match=rf"at least 2 images, the split has {count}\."):
        build_trainer(splits=few)
