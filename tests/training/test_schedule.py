"""What is done after which step, how many stages are frozen, and what is noted of a judgement."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagger.params import Interval, Params, TrainParams
from tagger.training.optimizer import fraction_of_peak
from tagger.training.schedule import Position, Schedule


@pytest.fixture(scope="module")
def recipe(default_params: Params) -> TrainParams:
    return default_params.train


def planned(recipe: TrainParams, per_epoch: int = 10, stages: int = 0, **changes: Any) -> Schedule:
    return Schedule(
        recipe.model_copy(update=changes), per_epoch, batch_size=8, backbone_stages=stages
    )


def when(plan: Schedule, what: str) -> list[int]:
    """Return after which steps something is done."""
    return [step for step in range(1, plan.steps + 1) if getattr(plan, what)(step)]


@pytest.mark.parametrize(
    ("every", "per_epoch", "steps"),
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
def test_what_is_due_every_so_often(
    recipe: TrainParams, every: Interval | None, per_epoch: int, steps: list[int]
) -> None:
    plan = planned(recipe, per_epoch, epochs=3)
    assert [step for step in range(1, plan.steps + 1) if plan.is_due(every, step)] == steps


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 8))
def test_whole_epochs_end_with_a_judgement(
    default_params: Params, per_epoch: int, epochs: int, number: int
) -> None:
    every = Interval(number, "epoch")
    plan = planned(default_params.train, per_epoch, epochs=epochs, validate_every=every)
    ends = [epoch * per_epoch for epoch in range(number, epochs + 1, number)]
    assert when(plan, "judges") == sorted({*ends, epochs * per_epoch})


OFTEN = st.builds(Interval, st.floats(0.1, 30), st.sampled_from(["epoch", "step"]))


@given(st.integers(1, 20), st.integers(1, 5), OFTEN, st.none() | OFTEN)
def test_weights_are_kept_only_where_they_are_judged_and_the_last_always_are(
    default_params: Params, per_epoch: int, epochs: int, validate: Interval, keep: Interval | None
) -> None:
    plan = planned(
        default_params.train, per_epoch, epochs=epochs, validate_every=validate, keep_every=keep
    )
    assert plan.steps == per_epoch * epochs
    judged, kept = when(plan, "judges"), when(plan, "keeps")
    assert set(kept) <= set(judged)
    assert judged[-1] == plan.steps
    assert set(judged) - set(kept) <= {
        step for step in judged if plan.is_due(validate, step) or step == plan.steps
    }
    assert bool(kept) == any(plan.is_due(keep, step) for step in range(1, plan.steps + 1))


def test_a_lower_loss_is_better_and_a_higher_precision(recipe: TrainParams) -> None:
    figures = {"macro_ap": 0.4, "micro_ap": 0.7, "validation_loss": 30.0}
    for best in ("macro_ap", "micro_ap"):
        assert planned(recipe, best_metric=best).score(figures) == figures[best]
    plan = planned(recipe, best_metric="validation_loss")
    assert plan.score(figures) > plan.score(figures | {"validation_loss": 31.0})


def judged(*scores: float, step: int = 10) -> Position:
    return Position(
        step=step, steps_per_epoch=10, history=[{"macro_ap": score} for score in scores]
    )


def test_the_best_is_the_first_of_equals(recipe: TrainParams) -> None:
    plan = planned(recipe)
    assert plan.validations_since_best(judged(0.3)) == 0
    assert plan.validations_since_best(judged(0.3, 0.5, 0.5, 0.4)) == 2
    lower = planned(recipe, best_metric="validation_loss")
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
def test_a_training_is_over_when_patience_has_run_out(
    recipe: TrainParams, patience: int | None, scores: list[float], over: bool
) -> None:
    plan = planned(recipe, patience=patience, epochs=10)
    assert plan.is_over(judged(*scores)) == over
    assert plan.is_over(judged(*scores, step=100))  # or at its last step


@given(
    st.just("all") | st.integers(0, 20),
    st.none() | st.integers(1, 5),
    st.integers(0, 12),
    st.integers(1, 6),
)
def test_one_more_stage_learns_after_every_so_many_epochs(
    default_params: Params, freeze: int | str, every: int | None, stages: int, per_epoch: int
) -> None:
    plan = planned(
        default_params.train, per_epoch, stages, freeze=freeze, unfreeze_every=every, epochs=30
    )
    first = stages if freeze == "all" else min(int(freeze), stages)
    for epoch in range(30):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        expected = max(0, first - epoch // every) if every else first
        assert {plan.frozen_stages(step) for step in steps} == {expected}


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_the_rate_follows_the_recipe_over_all_steps(recipe: TrainParams, schedule: str) -> None:
    plan = planned(recipe, per_epoch=7, epochs=4, schedule=schedule, warmup=0.3)
    rates = [plan.fraction_of_peak(step) for step in range(plan.steps)]
    assert rates == [fraction_of_peak(schedule, step, 28, 0.3) for step in range(28)]


def test_a_judgement_notes_the_means_since_the_last_one() -> None:
    position = Position(step=15, steps_per_epoch=10, nonfinite_steps=1)
    for loss, norm in ((3.0, 1.0), (1.0, 2.0), (2.0, 6.0)):
        position.add_step(loss, norm, rate=1.23456e-3)
    told = position.add_validation({"macro_ap": 0.12345678, "validation_loss": 40.0})
    assert told == {
        "step": 15,
        "epoch": 1.5,
        "loss": 2.0,
        "learning_rate": 1.235e-3,
        "gradient_norm": 3.0,
        "macro_ap": 0.123457,
        "validation_loss": 40.0,
    }
    assert position.history == [told]
    position.add_step(7.0, 4.0, rate=1e-4)
    position.step = 20
    again = position.add_validation({"macro_ap": 0.2})
    assert (again["loss"], again["gradient_norm"], again["epoch"]) == (7.0, 4.0, 2.0)
    assert position.history == [told, again]
    assert position.nonfinite_steps == 1


def test_a_judgement_after_bad_steps_alone_has_figures_all_the_same() -> None:
    told = Position(step=3, steps_per_epoch=3).add_validation({"macro_ap": 0.1})
    assert told["loss"] == told["gradient_norm"] == 0
    assert all(math.isfinite(value) for value in told.values())
