"""Which weights decay, how far each layer moves, and the learning rate from the first step on."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from tagger.core.errors import TaggerError
from tagger.models import backbone, heads
from tagger.params import Params, Preset, TrainParams
from tagger.training import optimizer
from tagger.training.optimizer import fraction_of_peak


@pytest.fixture
def recipe(default_params: Params) -> TrainParams:
    return default_params.train


def named(preset: Preset, backbone_name: str, layer_decay: float = 1.0) -> Preset:
    changes = {"backbone": backbone_name, "image_size": 160, "layer_decay": layer_decay}
    return preset.model_copy(update=changes)


def settings_of(model: nn.Module, made: Optimizer, key: str) -> dict[str, Any]:
    """Return what the optimizer's groups say of each weight, by name."""
    by_weight = {
        id(weights): group[key] for group in made.param_groups for weights in group["params"]
    }
    assert len(by_weight) == sum(len(group["params"]) for group in made.param_groups)
    return {name: by_weight[id(weights)] for name, weights in model.named_parameters()}


@pytest.mark.parametrize("head", ["linear", "query"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_norms_and_biases_do_not_decay_and_all_else_does(
    preset: Preset, recipe: TrainParams, name: str, layer_decay: float, head: heads.Head
) -> None:
    changed = named(preset, name, layer_decay)
    model: Any = backbone.build_model(changed, 5, head)
    decay = settings_of(model, optimizer.build_optimizer(model, changed, recipe), "weight_decay")
    exempt = set(model.no_weight_decay() if hasattr(model, "no_weight_decay") else ())
    assert recipe.weight_decay > 0
    for part, weights in model.named_parameters():
        wanted = 0 if weights.ndim < 2 or part in exempt else recipe.weight_decay
        assert decay[part] == wanted, part


def test_each_layer_has_the_rate_of_the_next_times_the_decay(
    preset: Preset, recipe: TrainParams
) -> None:
    decayed = named(preset, "test_vit", 0.5)
    model = backbone.build_model(decayed, 5)
    peak = settings_of(model, optimizer.build_optimizer(model, decayed, recipe), "peak")
    blocks = [peak[f"blocks.{number}.attn.qkv.weight"] for number in range(6)]
    assert [low / high for low, high in itertools.pairwise(blocks)] == pytest.approx([0.5] * 5)
    assert peak["head.weight"] == peak["head.bias"] == decayed.learning_rate
    assert blocks[-1] < peak["head.weight"]
    assert peak["patch_embed.proj.weight"] == min(peak.values()) == pytest.approx(blocks[0] / 2)


def test_without_layer_decay_every_layer_has_the_rate_of_the_preset(
    preset: Preset, recipe: TrainParams
) -> None:
    model = backbone.build_model(preset, 5)
    made = optimizer.build_optimizer(model, preset, recipe)
    assert set(settings_of(model, made, "peak").values()) == {preset.learning_rate}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_setting_the_rate_sets_that_of_every_layer_and_tells_the_largest(
    preset: Preset, recipe: TrainParams, share: float
) -> None:
    decayed = named(preset, "test_vit", 0.5)
    model = backbone.build_model(decayed, 5)
    made = optimizer.build_optimizer(model, decayed, recipe)
    for _ in range(2):  # it does not add up
        assert optimizer.set_learning_rate(made, share) == pytest.approx(
            share * decayed.learning_rate
        )
    peak, rate = (settings_of(model, made, key) for key in ("peak", "lr"))
    assert rate == pytest.approx({name: value * share for name, value in peak.items()})


def test_a_step_moves_each_layer_by_its_own_learning_rate(
    preset: Preset, recipe: TrainParams
) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    decayed = named(preset, "test_vit", 0.5)
    model = backbone.build_model(decayed, 5)
    adam = recipe.model_copy(update={"optimizer": "adamw", "weight_decay": 0.0})
    made = optimizer.build_optimizer(model, decayed, adam)
    optimizer.set_learning_rate(made, 0.5)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    for weights in model.parameters():
        weights.grad = torch.ones_like(weights)
    made.step()
    peak = settings_of(model, made, "peak")
    for name, weights in model.named_parameters():
        moved = float((weights.detach() - before[name]).abs().mean())
        assert moved == pytest.approx(0.5 * peak[name], rel=1e-2), name


def test_adamw_is_torchs_fused(preset: Preset, recipe: TrainParams) -> None:
    adam = recipe.model_copy(update={"optimizer": "adamw"})
    made = optimizer.build_optimizer(backbone.build_model(preset, 5), preset, adam)
    assert type(made) is torch.optim.AdamW
    assert {group["fused"] for group in made.param_groups} == {True}


@pytest.mark.parametrize(
    ("name", "kind", "fused"),
    [
        ("adam", "Adam", True),
        ("sgd", "SGD", True),
        ("lamb", "Lamb", False),
        ("lion", "Lion", False),
        ("muon", "Muon", False),
        ("nadamw", "NAdamW", False),
        ("adafactorbv", "AdafactorBigVision", False),
    ],
)
def test_timms_optimizers_lower_a_loss_and_are_fused_where_torch_has_it(
    preset: Preset, recipe: TrainParams, name: str, kind: str, fused: bool
) -> None:
    torch.manual_seed(0)
    model = backbone.build_model(preset, 5)
    rate = {"sgd": 0.05, "lion": 1e-3}.get(name, 5e-3)
    gentle = preset.model_copy(update={"learning_rate": rate})
    made = optimizer.build_optimizer(model, gentle, recipe.model_copy(update={"optimizer": name}))
    assert type(made).__name__ == kind
    assert {bool(group.get("fused")) for group in made.param_groups} == {fused}
    pixels = torch.randn(8, 3, 32, 32)

    losses = []
    for _ in range(9):
        made.zero_grad()
        loss: Tensor = (model(pixels) - 1).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        optimizer.set_learning_rate(made, 1.0)
        made.step()
    assert losses[-1] < 0.8 * losses[0]


def test_an_unknown_optimizer_names_the_nearest_one(preset: Preset, recipe: TrainParams) -> None:
    wrong = recipe.model_copy(update={"optimizer": "adamv"})
    with pytest.raises(TaggerError, match=r"no optimizer 'adamv'\. Did you mean 'adam"):
        optimizer.build_optimizer(backbone.build_model(preset, 5), preset, wrong)


@pytest.mark.parametrize("name", ["bnbadam8bit", "fusedadam", "adahessian"])
def test_optimizers_that_need_what_is_not_there_are_not_offered(
    preset: Preset, recipe: TrainParams, name: str
) -> None:
    """Other packages, or a second derivative, which no step here computes."""
    with pytest.raises(TaggerError, match="no optimizer"):
        optimizer.build_optimizer(
            backbone.build_model(preset, 5), preset, recipe.model_copy(update={"optimizer": name})
        )


def rates(schedule: str, steps: int, warmup: float) -> list[float]:
    return [fraction_of_peak(schedule, step, steps, warmup) for step in range(steps)]


def of_torch(kind: type[LRScheduler], steps: int, **arguments: Any) -> list[float]:
    """Return the rate of every step by a scheduler of torch's, at a peak of 1."""
    made = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(made, **arguments)
    used = []
    for step in range(steps):
        used.append(float(scheduler.get_last_lr()[0]))
        made.step()
        if step < steps - 1:
            scheduler.step()
    return used


STEPS = st.integers(1, 150)
WARMUP = st.floats(0, 0.99)


@given(STEPS, WARMUP)
def test_cosine_is_torchs_linear_rise_and_cosine_fall(steps: int, warmup: float) -> None:
    rising = max(1, round(warmup * steps))
    rise = (
        of_torch(LinearLR, rising, start_factor=1 / rising, total_iters=rising - 1)
        if rising > 1
        else [1.0]
    )
    fall = of_torch(CosineAnnealingLR, steps - rising + 1, T_max=max(1, steps - rising))
    assert rates("cosine", steps, warmup) == pytest.approx([*rise, *fall[1:]], abs=1e-6)


@given(STEPS, WARMUP)
def test_one_cycle_is_torchs(steps: int, warmup: float) -> None:
    assume(warmup * steps >= 2 and (1 - warmup) * steps >= 1)  # else torch divides by nothing
    arguments = {"max_lr": 1.0, "total_steps": steps, "pct_start": warmup}
    torchs = of_torch(OneCycleLR, steps, **arguments, cycle_momentum=False)
    assert rates("one_cycle", steps, warmup) == pytest.approx(torchs, abs=1e-9)


@given(st.sampled_from(["cosine", "one_cycle"]), STEPS, WARMUP)
def test_the_rate_rises_to_the_peak_then_falls_and_the_first_step_learns(
    schedule: str, steps: int, warmup: float
) -> None:
    used = rates(schedule, steps, warmup)
    peak = int(np.argmax(used))
    assert all(0 <= rate <= 1 and math.isfinite(rate) for rate in used)
    assert all(low < high for low, high in itertools.pairwise(used[: peak + 1]))
    assert all(high > low for high, low in itertools.pairwise(used[peak:]))
    assert used[0] > 0
    if steps > 30:
        assert peak == pytest.approx(warmup * steps, abs=2)
        assert used[peak] > 0.9
    if steps * (1 - warmup) > 30:
        assert used[-1] < 0.01


def test_a_single_step_of_the_cosine_is_at_the_peak() -> None:
    assert rates("cosine", 1, 0.0) == rates("cosine", 1, 0.9) == [1.0]
