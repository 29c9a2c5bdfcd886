"""Training learns, repeats itself to the bit, and stops where it cannot go on."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from tagger import backbone, training
from tagger.dataset import Part
from tagger.errors import TaggerError
from tagger.images import Place
from tagger.params import Params, Preset, Train
from tagger.training import Epoch


@pytest.fixture
def recipe(shipped: Params) -> Train:
    return shipped.train.model_copy(update={"epochs": 3, "workers": 0})


@pytest.fixture(autouse=True)
def generator() -> Iterator[None]:
    """Leave torch's generator as it was."""
    with torch.random.fork_rng():
        yield


@pytest.fixture
def parts(part: Part) -> dict[str, Part]:
    return {"train": part, "validation": part.head(8)}


def train(
    parts: dict[str, Part], preset: Preset, recipe: Train, seed: int = 0
) -> tuple[nn.Module, list[Epoch]]:
    torch.manual_seed(seed)
    model = backbone.build(preset, parts["train"].labels.shape[1])
    prepared = backbone.preprocessing(model, preset)
    return model, list(training.epochs(model, parts, prepared, preset, recipe, seed))


def rates(steps: int, warmup: float) -> list[float]:
    """Return the learning rate of every step, as a share of the peak."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = training.schedule_of(optimizer, steps, warmup)
    used = []
    for _ in range(steps):
        used.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return used


@pytest.mark.parametrize("loss", ["bce", "asymmetric"])
def test_training_on_real_pictures_lowers_the_loss(
    parts: dict[str, Part], preset: Preset, recipe: Train, loss: str
) -> None:
    longer = recipe.model_copy(update={"epochs": 6, "loss": loss})
    model, history = train(parts, preset, longer)
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].loss < 0.6 * history[0].loss
    assert history[-1].macro_ap > 0.3
    assert history[-1].seconds_left == 0
    assert not history[-1].failures
    assert model.training


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_model_to_the_bit(
    parts: dict[str, Part], preset: Preset, recipe: Train, workers: int
) -> None:
    dropping = preset.model_copy(update={"drop_path": 0.2})
    model, history = train(parts, dropping, recipe)
    again, repeated = train(parts, dropping, recipe.model_copy(update={"workers": workers}))
    assert [epoch.numbers() for epoch in history] == [epoch.numbers() for epoch in repeated]
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name


def test_another_seed_gives_another_model(
    parts: dict[str, Part], preset: Preset, recipe: Train
) -> None:
    once = recipe.model_copy(update={"epochs": 1})
    first, second = (train(parts, preset, once, seed)[1][0].loss for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_norms_and_biases_do_not_decay(
    preset: Preset, recipe: Train, name: str, layer_decay: float
) -> None:
    changed = preset.model_copy(
        update={"backbone": name, "image_size": 160, "layer_decay": layer_decay}
    )
    model = backbone.build(changed, 5)
    decay_of = {
        id(weights): group["weight_decay"]
        for group in training.optimizer_of(model, changed, recipe).param_groups
        for weights in group["params"]
    }
    assert decay_of.keys() == {id(weights) for weights in model.parameters()}
    for part, weights in model.named_parameters():
        if weights.ndim < 2:
            assert decay_of[id(weights)] == 0, part
    head = model.get_classifier().weight  # type: ignore[operator]
    assert decay_of[id(head)] == recipe.weight_decay > 0


def test_a_step_moves_each_layer_by_its_own_learning_rate(preset: Preset, recipe: Train) -> None:
    decayed = preset.model_copy(
        update={"backbone": "test_vit", "image_size": 160, "layer_decay": 0.5}
    )
    model = backbone.build(decayed, 5)
    still = recipe.model_copy(update={"weight_decay": 0.0})
    optimizer = training.optimizer_of(model, decayed, still)
    training.schedule_of(optimizer, 1, 0.0)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    for weights in model.parameters():
        weights.grad = torch.ones_like(weights)
    optimizer.step()
    moved = {
        name: float((weights.detach() - before[name]).abs().mean())
        for name, weights in model.named_parameters()
    }
    assert moved["head.weight"] == pytest.approx(decayed.learning_rate, rel=1e-2)
    assert moved["blocks.0.attn.qkv.weight"] < 0.6 * moved["head.weight"]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.15, 0.5, 0.99])
def test_the_learning_rate_rises_then_falls_to_nothing(steps: int, warmup: float) -> None:
    used = rates(steps, warmup)
    peak = int(np.argmax(used))
    assert min(used) >= 0
    assert used[peak] == pytest.approx(1)
    assert all(low < high for low, high in itertools.pairwise(used[: peak + 1]))
    assert all(high > low for high, low in itertools.pairwise(used[peak:]))
    if steps == 100 and warmup < 0.9:
        assert used[-1] < 0.01
        assert peak == max(1, round(warmup * steps)) - 1


def test_the_first_step_learns() -> None:
    assert rates(100, 0.15)[0] > 0
    assert rates(1, 0.0) == [1.0]


def test_a_loss_that_is_no_number_stops_with_the_way_out(
    parts: dict[str, Part], preset: Preset, recipe: Train
) -> None:
    torch.manual_seed(0)
    model = backbone.build(preset, parts["train"].labels.shape[1])
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    prepared = backbone.preprocessing(model, preset)
    with pytest.raises(TaggerError, match=r"The loss is nan after 0 steps\. Lower .*learning_rate"):
        next(training.epochs(model, parts, prepared, preset, recipe, 0))


def test_too_few_pictures_are_refused(
    parts: dict[str, Part], preset: Preset, recipe: Train
) -> None:
    for count in (0, 1):
        with pytest.raises(TaggerError, match=rf"at least 2 pictures, the split gives {count}"):
            train(parts | {"train": parts["train"].head(count)}, preset, recipe)


@pytest.mark.parametrize("size", [2, 5, 1000])
def test_any_batch_size_trains(
    parts: dict[str, Part], preset: Preset, recipe: Train, size: int
) -> None:
    sized = preset.model_copy(update={"batch_size": size})
    _, history = train(parts, sized, recipe.model_copy(update={"epochs": 1}))
    assert np.isfinite(history[0].loss)


def test_unreadable_pictures_are_replaced_and_told(
    parts: dict[str, Part], preset: Preset, recipe: Train, tmp_path: Path
) -> None:
    places = list(parts["train"].places)
    places[3] = Place(str(tmp_path / "gone.png"), 0, 8)
    _, history = train(
        parts | {"train": Part(places, parts["train"].labels)},
        preset.model_copy(update={"batch_size": 24}),
        recipe.model_copy(update={"epochs": 1, "max_unreadable": 0.5}),
    )
    assert len(history[0].failures) == 1
    assert "gone.png: No such file" in history[0].failures[0]


@pytest.mark.parametrize("gone", [2, 24])
def test_more_unreadable_pictures_than_allowed_stop_the_training(
    parts: dict[str, Part], preset: Preset, recipe: Train, tmp_path: Path, gone: int
) -> None:
    places = [Place(str(tmp_path / "gone.png"), 0, 8)] * gone + list(parts["train"].places)[gone:]
    with pytest.raises(TaggerError, match=r"training pictures cannot be read.*gone\.png.*No such"):
        train(
            parts | {"train": Part(places, parts["train"].labels)},
            preset,
            recipe.model_copy(update={"max_unreadable": 1 / 24}),
        )


def test_an_epoch_is_told_as_a_person_would() -> None:
    epoch = Epoch(3, 41.234, 1e-3, 0.4871, 0.6, 1840.4, 720.0, [])
    line = "epoch 3/20  loss 41.23  macro AP 0.487 (+0.021)  1,840 pictures/s  12 min left"
    assert epoch.line(20, 0.0211) == line
    near = Epoch(19, 41.2, 1e-3, 0.4, 0.6, 9, 42, [])
    assert near.line(20, -0.1).endswith("macro AP 0.400 (-0.100)  9 pictures/s  42 s left")


def test_the_optimizer_is_adamw(preset: Preset, recipe: Train) -> None:
    optimizer: Optimizer = training.optimizer_of(backbone.build(preset, 5), preset, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {preset.learning_rate}
