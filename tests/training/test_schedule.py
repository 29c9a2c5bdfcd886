"""What happens after which step, how many stages are frozen, and what a validation records."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.trainings import train_params
from tagger.params import Interval
from tagger.training.optimizer import fraction_of_peak
from tagger.training.schedule import Position, Schedule


def schedule_of(steps_per_epoch: int = 10, stages: int = 0, **changes: Any) -> Schedule:
    params = train_params().model_copy(update=changes)
    return Schedule(params, steps_per_epoch, batch_size=8, backbone_stages=stages)


def validated(schedule: Schedule) -> list[int]:
    return [step for step in range(1, schedule.steps + 1) if schedule.validates_after(step)]


def kept(schedule: Schedule) -> list[int]:
    return [step for step in range(1, schedule.steps + 1) if schedule.keeps_after(step)]


@pytest.mark.parametrize(
    ("interval", "steps_per_epoch", "due"),
    [
        (Interval(1, "epoch"), 10, [10, 20, 30]),
        (Interval(2, "epoch"), 10, [20]),
        (Interval(0.5, "epoch"), 10, [5, 10, 15, 20, 25, 30]),
        (Interval(1.5, "epoch"), 10, [15, 30]),
        (Interval(0.3, "epoch"), 1, [1, 2, 3]),
        (Interval(12, "step"), 10, [12, 24]),
        (Interval(0.1, "step"), 1, [1, 2, 3]),
        (Interval(100, "epoch"), 10, []),
        (Interval(5, "minute"), 10, []),
        (None, 10, []),
    ],
)
def test_steps_at_which_an_interval_is_due(
    interval: Interval | None, steps_per_epoch: int, due: list[int]
) -> None:
    schedule = schedule_of(steps_per_epoch, epochs=3)
    steps = range(1, schedule.steps + 1)
    assert [step for step in steps if schedule.is_due(interval, step)] == due


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 8))
def test_whole_epochs_end_with_a_validation(steps_per_epoch: int, epochs: int, number: int) -> None:
    every = Interval(number, "epoch")
    schedule = schedule_of(steps_per_epoch, epochs=epochs, validate_every=every)
    ends = [epoch * steps_per_epoch for epoch in range(number, epochs + 1, number)]
    assert validated(schedule) == sorted({*ends, epochs * steps_per_epoch})


INTERVALS = st.builds(Interval, st.floats(0.1, 30), st.sampled_from(["epoch", "step"]))


@given(st.integers(1, 20), st.integers(1, 5), INTERVALS, st.none() | INTERVALS)
def test_kept_weights_and_the_last_are_validated(
    steps_per_epoch: int, epochs: int, validate: Interval, keep: Interval | None
) -> None:
    schedule = schedule_of(steps_per_epoch, epochs=epochs, validate_every=validate, keep_every=keep)
    steps = steps_per_epoch * epochs
    assert schedule.steps == steps
    assert set(kept(schedule)) <= set(validated(schedule))
    assert validated(schedule)[-1] == steps
    others = set(validated(schedule)) - set(kept(schedule)) - {steps}
    assert all(schedule.is_due(validate, step) for step in others)
    assert bool(kept(schedule)) == any(schedule.is_due(keep, step) for step in range(1, steps + 1))


def test_score_rises_with_average_precision_and_falls_with_loss() -> None:
    metrics = {"macro_ap": 0.4, "micro_ap": 0.7, "validation_loss": 30.0}
    for metric in ("macro_ap", "micro_ap"):
        assert schedule_of(best_metric=metric).score(metrics) == metrics[metric]
    schedule = schedule_of(best_metric="validation_loss")
    assert schedule.score(metrics) > schedule.score(metrics | {"validation_loss": 31.0})


def position_after(*scores: float, step: int = 10) -> Position:
    history = [{"macro_ap": score} for score in scores]
    return Position(step=step, steps_per_epoch=10, history=history)


def test_best_validation_is_the_first_among_equals() -> None:
    schedule = schedule_of()
    assert schedule.validations_since_best(position_after(0.3)) == 0
    assert schedule.validations_since_best(position_after(0.3, 0.5, 0.5, 0.4)) == 2
    lower = schedule_of(best_metric="validation_loss")
    history = [{"validation_loss": loss} for loss in (9.0, 7.0, 8.0)]
    assert lower.validations_since_best(Position(history=history)) == 1


@pytest.mark.parametrize(
    ("patience", "scores", "over"),
    [
        (None, [0.5, 0.4, 0.3, 0.2], False),
        (2, [], False),
        (2, [0.5, 0.4], False),
        (2, [0.5, 0.4, 0.3], True),
        (2, [0.5, 0.4, 0.6], False),
        (2, [0.5, 0.5, 0.5], True),
    ],
)
def test_training_is_over_when_patience_runs_out(
    patience: int | None, scores: list[float], over: bool
) -> None:
    schedule = schedule_of(patience=patience, epochs=10)
    assert schedule.is_over(position_after(*scores)) == over
    assert schedule.is_over(position_after(*scores, step=100))  # or after its last step


@given(
    st.just("all") | st.integers(0, 20),
    st.none() | st.integers(1, 5),
    st.integers(0, 12),
    st.integers(1, 6),
)
def test_one_more_stage_trains_after_each_interval(
    freeze: int | str, every: int | None, stages: int, steps_per_epoch: int
) -> None:
    schedule = schedule_of(steps_per_epoch, stages, freeze=freeze, unfreeze_every=every, epochs=30)
    first = stages if freeze == "all" else min(int(freeze), stages)
    unfreezing = []
    for epoch in range(30):
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        expected = max(0, first - epoch // every) if every else first
        assert {schedule.frozen_stages(step) for step in steps} == {expected}
        unfreezing += [step for step in steps if schedule.unfreezes_before(step)]
    last = min(first, 29 // every) if every else 0
    assert unfreezing == [number * (every or 0) * steps_per_epoch for number in range(1, last + 1)]


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_learning_rate_follows_the_params_over_all_steps(name: str) -> None:
    schedule = schedule_of(7, epochs=4, schedule=name, warmup=0.3)
    rates = [schedule.fraction_of_peak(step) for step in range(schedule.steps)]
    assert rates == [fraction_of_peak(name, step, 28, 0.3) for step in range(28)]


def test_validation_records_the_means_since_the_last_one() -> None:
    position = Position(step=15, steps_per_epoch=10, nonfinite_steps=1)
    for loss, norm in ((3.0, 1.0), (1.0, 2.0), (2.0, 6.0)):
        position.add_step(loss, norm, learning_rate=1.23456e-3)
    record = position.add_validation({"macro_ap": 0.12345678, "validation_loss": 40.0})
    assert record == {
        "step": 15,
        "epoch": 1.5,
        "loss": 2.0,
        "learning_rate": 1.235e-3,
        "gradient_norm": 3.0,
        "macro_ap": 0.123457,
        "validation_loss": 40.0,
    }
    position.add_step(7.0, 4.0, learning_rate=1e-4)
    position.step = 20
    again = position.add_validation({"macro_ap": 0.2})
    assert (again["loss"], again["gradient_norm"], again["epoch"]) == (7.0, 4.0, 2.0)
    assert position.history == [record, again]
    assert position.nonfinite_steps == 1


def test_validation_after_skipped_steps_alone_has_finite_metrics() -> None:
    record = Position(step=3, steps_per_epoch=3).add_validation({"macro_ap": 0.1})
    assert record["loss"] == record["gradient_norm"] == 0
    assert all(math.isfinite(value) for value in record.values())
