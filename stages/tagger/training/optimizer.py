"""The optimizer and its learning rate at each step."""

import inspect
import math
from typing import Any

import timm.optim
from torch import nn
from torch.optim import Optimizer

from tagger.core.errors import TaggerError, did_you_mean
from tagger.params import Preset, TrainParams
from tagger.system import distributed

# Fractions of the peak, as in torch's OneCycleLR.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4

# They need other packages, or second derivatives.
_UNSUPPORTED = ["bnb*", "fused*", "adahessian"]


def build_optimizer(model: nn.Module, preset: Preset, params: TrainParams) -> Optimizer:
    """Return timm's optimizer with layer-wise learning rates, without decay on norms and biases.

    `peak` of each parameter group is its largest learning rate. Raises TaggerError for an unknown
    name.
    """
    names = [str(name) for name in timm.optim.list_optimizers(exclude_filters=_UNSUPPORTED)]
    if params.optimizer not in names:
        hint = did_you_mean(params.optimizer, names)
        raise TaggerError(f"timm has no optimizer {params.optimizer!r}.{hint}")
    accepted = inspect.signature(timm.optim.get_optimizer_class(params.optimizer)).parameters
    # torch's fused SGD does not take sharded weights.
    fused = "fused" in accepted and not distributed.is_sharded(model)
    arguments: dict[str, Any] = {"fused": True} if fused else {}
    optimizer: Optimizer = timm.optim.create_optimizer_v2(
        model,
        opt=params.optimizer,
        lr=preset.learning_rate,
        weight_decay=params.weight_decay,
        layer_decay=preset.layer_decay if preset.layer_decay < 1 else None,
        **arguments,
    )
    for group in optimizer.param_groups:  # only timm's own schedulers apply lr_scale
        group["peak"] = group["lr"] * group.get("lr_scale", 1.0)
    return optimizer


def set_learning_rate(optimizer: Optimizer, fraction: float) -> float:
    """Set every learning rate to a fraction of its peak; return the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * fraction
    return max(float(group["lr"]) for group in optimizer.param_groups)


def fraction_of_peak(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step, counted from 0, as a fraction of the peak.

    `cosine` rises linearly and falls as a cosine; `one_cycle` rises as a cosine, too.
    warmup: the fraction of the steps in which it rises

    Smith and Topin 2017, https://arxiv.org/abs/1708.07120
    """
    rising = max(1, round(warmup * steps))
    if schedule == "one_cycle":
        peak = max(1.0, warmup * steps - 1)
        if step <= peak:
            return _cosine(_ONE_CYCLE_START, 1.0, step / peak)
        return _cosine(1.0, _ONE_CYCLE_END, (step - peak) / max(1.0, steps - 1 - peak))
    if step < rising:
        return (step + 1) / rising
    return _cosine(1.0, 0.0, (step - rising + 1) / max(1, steps - rising))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
