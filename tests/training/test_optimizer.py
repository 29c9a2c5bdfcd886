"""Weight decay and learning rate of each layer, and the learning rate of each step."""

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

from support.trainings import train_params
from tagger.core.errors import TaggerError
from tagger.models import backbone, heads
from tagger.params import Preset
from tagger.training import optimizer
from tagger.training.optimizer import fraction_of_peak


def with_backbone(preset: Preset, backbone_name: str, layer_decay: float = 1.0) -> Preset:
    changes = {"backbone": backbone_name, "image_size": 160, "layer_decay": layer_decay}
    return preset.model_copy(update=changes)


def settings_of(model: nn.Module, built: Optimizer, key: str) -> dict[str, Any]:
    """Return what the optimizer's groups say of each weight, by name."""
    by_weight = {
        id(weights): group[key] for group in built.param_groups for weights in group["params"]
    }
    assert len(by_weight) == sum(len(group["params"]) for group in built.param_groups)
    return {name: by_weight[id(weights)] for name, weights in model.named_parameters()}


@pytest.mark.parametrize("head", ["linear", "query"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_weight_decay_skips_norms_and_biases(
    preset: Preset, name: str, layer_decay: float, head: heads.Head
) -> None:
    changed = with_backbone(preset, name, layer_decay)
    model: Any = backbone.build_model(changed, 5, head)
    decay = settings_of(
        model, optimizer.build_optimizer(model, changed, train_params()), "weight_decay"
    )
    exempt = set(model.no_weight_decay() if hasattr(model, "no_weight_decay") else ())
    assert train_params().weight_decay > 0
    for part, weights in model.named_parameters():
        expected = 0 if weights.ndim < 2 or part in exempt else train_params().weight_decay
        assert decay[part] == expected, part


def test_layer_decay_scales_the_learning_rate_of_each_layer(preset: Preset) -> None:
    decayed = with_backbone(preset, "test_vit", 0.5)
    model = backbone.build_model(decayed, 5)
    peak = settings_of(model, optimizer.build_optimizer(model, decayed, train_params()), "peak")
    blocks = [peak[f"blocks.{number}.attn.qkv.weight"] for number in range(6)]
    assert [low / high for low, high in itertools.pairwise(blocks)] == pytest.approx([0.5] * 5)
    assert peak["head.weight"] == peak["head.bias"] == decayed.learning_rate
    assert blocks[-1] < peak["head.weight"]
    assert peak["patch_embed.proj.weight"] == min(peak.values()) == pytest.approx(blocks[0] / 2)


def test_without_layer_decay_every_layer_has_the_learning_rate_of_the_preset(
    preset: Preset,
) -> None:
    model = backbone.build_model(preset, 5)
    built = optimizer.build_optimizer(model, preset, train_params())
    assert set(settings_of(model, built, "peak").values()) == {preset.learning_rate}


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_set_learning_rate_scales_every_layer_and_returns_the_largest(
    preset: Preset, fraction: float
) -> None:
    decayed = with_backbone(preset, "test_vit", 0.5)
    model = backbone.build_model(decayed, 5)
    built = optimizer.build_optimizer(model, decayed, train_params())
    for _ in range(2):  # it does not add up
        assert optimizer.set_learning_rate(built, fraction) == pytest.approx(
            fraction * decayed.learning_rate
        )
    peak, rate = (settings_of(model, built, key) for key in ("peak", "lr"))
    assert rate == pytest.approx({name: value * fraction for name, value in peak.items()})


def test_step_changes_each_layer_by_its_own_learning_rate(preset: Preset) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    decayed = with_backbone(preset, "test_vit", 0.5)
    model = backbone.build_model(decayed, 5)
    adam = train_params(optimizer="adamw", weight_decay=0.0)
    built = optimizer.build_optimizer(model, decayed, adam)
    optimizer.set_learning_rate(built, 0.5)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    for weights in model.parameters():
        weights.grad = torch.ones_like(weights)
    built.step()
    peak = settings_of(model, built, "peak")
    for name, weights in model.named_parameters():
        change = float((weights.detach() - before[name]).abs().mean())
        assert change == pytest.approx(0.5 * peak[name], rel=1e-2), name


def test_adamw_is_torchs_and_fused(preset: Preset) -> None:
    adam = train_params(optimizer="adamw")
    built = optimizer.build_optimizer(backbone.build_model(preset, 5), preset, adam)
    assert type(built) is torch.optim.AdamW
    assert {group["fused"] for group in built.param_groups} == {True}


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
def test_timms_optimizers_lower_a_loss_and_are_fused_if_torch_has_it(
    preset: Preset, name: str, kind: str, fused: bool
) -> None:
    torch.manual_seed(0)
    model = backbone.build_model(preset, 5)
    rate = {"sgd": 0.05, "lion": 1e-3}.get(name, 5e-3)
    gentle = preset.model_copy(update={"learning_rate": rate})
    built = optimizer.build_optimizer(model, gentle, train_params(optimizer=name))
    assert type(built).__name__ == kind
    assert {bool(group.get("fused")) for group in built.param_groups} == {fused}
    pixels = torch.randn(8, 3, 32, 32)

    losses = []
    for _ in range(9):
        built.zero_grad()
        loss: Tensor = (model(pixels) - 1).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        optimizer.set_learning_rate(built, 1.0)
        built.step()
    assert losses[-1] < 0.8 * losses[0]


def test_unknown_optimizer_is_refused_with_a_suggestion(preset: Preset) -> None:
    wrong = train_params(optimizer="adamv")
    with pytest.raises(TaggerError, match=r"no optimizer 'adamv'\. Did you mean 'adam"):
        optimizer.build_optimizer(backbone.build_model(preset, 5), preset, wrong)


@pytest.mark.parametrize("name", ["bnbadam8bit", "fusedadam", "adahessian"])
def test_unsupported_optimizers_are_refused(preset: Preset, name: str) -> None:
    """They need other packages, or a second derivative, which no step computes."""
    with pytest.raises(TaggerError, match="no optimizer"):
        optimizer.build_optimizer(
            backbone.build_model(preset, 5), preset, train_params(optimizer=name)
        )


def rates(schedule: str, steps: int, warmup: float) -> list[float]:
    return [fraction_of_peak(schedule, step, steps, warmup) for step in range(steps)]


def torch_rates(kind: type[LRScheduler], steps: int, **arguments: Any) -> list[float]:
    """Return the rate of every step by a scheduler of torch's, at a peak of 1."""
    sgd = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(sgd, **arguments)
    used = []
    for step in range(steps):
        used.append(float(scheduler.get_last_lr()[0]))
        sgd.step()
        if step < steps - 1:
            scheduler.step()
    return used


STEPS = st.integers(1, 150)
WARMUP = st.floats(0, 0.99)


@given(STEPS, WARMUP)
def test_cosine_schedule_is_torchs(steps: int, warmup: float) -> None:
    rising = max(1, round(warmup * steps))
    rise = (
        torch_rates(LinearLR, rising, start_factor=1 / rising, total_iters=rising - 1)
        if rising > 1
        else [1.0]
    )
    fall = torch_rates(CosineAnnealingLR, steps - rising + 1, T_max=max(1, steps - rising))
    assert rates("cosine", steps, warmup) == pytest.approx([*rise, *fall[1:]], abs=1e-6)


@given(STEPS, WARMUP)
def test_one_cycle_schedule_is_torchs(steps: int, warmup: float) -> None:
    assume(warmup * steps >= 2 and (1 - warmup) * steps >= 1)  # else torch divides by nothing
    arguments = {"max_lr": 1.0, "total_steps": steps, "pct_start": warmup}
    torchs = torch_rates(OneCycleLR, steps, **arguments, cycle_momentum=False)
    assert rates("one_cycle", steps, warmup) == pytest.approx(torchs, abs=1e-9)


@given(st.sampled_from(["cosine", "one_cycle"]), STEPS, WARMUP)
def test_learning_rate_rises_to_the_peak_then_falls(
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


def test_single_step_of_the_cosine_schedule_is_at_the_peak() -> None:
    assert rates("cosine", 1, 0.0) == rates("cosine", 1, 0.9) == [1.0]
