"""Validations and checkpoints come when asked for, and patience ends a training."""

import re

import numpy as np
import pytest

from support.trainings import BuildTrainer, train_to_end
from tagger.images.dataset import Split
from tagger.params import Preset
from tagger.training.validation import Validation


def steps(validations: list[Validation], checkpoint: str = "") -> list[float]:
    """Return the steps of the validations with a checkpoint of a name, or of all."""
    return [
        validation.metrics["step"]
        for validation in validations
        if any(name.startswith(checkpoint) for name in validation.checkpoints or [""])
    ]


def test_patience_ends_a_training_for_good(build_trainer: BuildTrainer, vit: Preset) -> None:
    constant = vit.model_copy(update={"learning_rate": 1e-30})
    validations = train_to_end(build_trainer(constant, epochs=9, patience=2))
    assert steps(validations) == [3, 6, 9]
    assert [each.checkpoints for each in validations] == [["best"], [], ["last"]]
    resumed = build_trainer(constant, epochs=9, patience=2)  # killed before the stage was complete
    assert resumed.position.step == 9
    assert train_to_end(resumed) == []


@pytest.mark.parametrize("metric", ["macro_ap", "micro_ap", "validation_loss"])
def test_best_checkpoint_has_the_best_metric(build_trainer: BuildTrainer, metric: str) -> None:
    validations = train_to_end(build_trainer(epochs=3, validate_every="1 step", best_metric=metric))
    values = np.array([each.metrics[metric] for each in validations])
    scores = -values if metric == "validation_loss" else values
    best = [number == 0 or score > scores[:number].max() for number, score in enumerate(scores)]
    assert ["best" in each.checkpoints for each in validations] == best
    assert 1 < sum(best) < 9
    for each in validations:
        assert bool(each.weights) == bool(each.checkpoints)


@pytest.mark.parametrize(
    ("validate_every", "keep_every", "validated", "kept"),
    [
        ("1 epoch", None, [3, 6, 9, 12], []),
        ("2 epochs", "4 steps", [4, 6, 8, 12], [4, 8, 12]),
        ("0.5 epochs", "3 epochs", [2, 3, 5, 6, 8, 9, 11, 12], [9]),
        ("5 steps", None, [5, 10, 12], []),
        ("99 epochs", None, [12], []),
    ],
)
def test_validate_every_and_keep_every(
    build_trainer: BuildTrainer,
    validate_every: str,
    keep_every: str | None,
    validated: list[int],
    kept: list[int],
) -> None:
    trainer = build_trainer(epochs=4, validate_every=validate_every, keep_every=keep_every)
    validations = train_to_end(trainer)
    assert steps(validations) == validated
    assert steps(validations, "epoch-") == kept


def test_validation_images_come_from_the_whole_split(
    build_trainer: BuildTrainer, split: Split
) -> None:
    splits = {"train": split, "validation": split}
    trainer = build_trainer(validate_on=3, epochs=1, splits=splits)
    (validation,) = train_to_end(trainer)
    assert [location.path for location in trainer.validator.split.locations] == [
        split.locations[row].path for row in (0, 11, 23)
    ]
    assert len(validation.predictions.scores) == 3


def test_validation_summary_has_loss_gain_and_time_left(build_trainer: BuildTrainer) -> None:
    first, second = train_to_end(build_trainer())
    number = r"[\d,.]+"
    for validation, epoch in ((first, 1), (second, 2)):
        assert re.fullmatch(
            rf"epoch {epoch}/2  loss {number}  macro AP 0\.\d{{3}} \([+-]0\.\d{{3}}\)  "
            rf"{number} images/s  \d+% waiting for data  {number} s left",
            validation.summary,
        )
    gain = second.metrics["macro_ap"] - first.metrics["macro_ap"]
    assert f"({gain:+.3f})" in second.summary
    assert second.summary.endswith("  0 s left")
