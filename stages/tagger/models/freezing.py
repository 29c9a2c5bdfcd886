"""Freeze the first stages of a backbone."""

from typing import Any

from timm.models import group_parameters
from torch import nn

from tagger.core.errors import TaggerError


def parameters_by_stage(model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each stage, from the input on, without the head.

    Stages are timm's: the stem, then blocks or groups of blocks.
    Raises TaggerError for a backbone that timm does not split into stages.
    """
    backbone: Any = model
    head = backbone.get_classifier()
    if isinstance(head, tuple) or not hasattr(backbone, "group_matcher"):
        raise TaggerError(
            f"train.freeze: timm defines no stages for {type(model).__name__}. Set it to 0."
        )
    head_ids = {id(parameter) for parameter in head.parameters()}
    in_head = {name for name, parameter in model.named_parameters() if id(parameter) in head_ids}
    groups = group_parameters(model, backbone.group_matcher(coarse=True), reverse=True)
    by_stage: dict[int, list[str]] = {}
    for name, stage in groups.items():
        if name not in in_head:
            by_stage.setdefault(stage, []).append(name)
    return [by_stage[stage] for stage in sorted(by_stage)]


def freeze(model: nn.Module, frozen: int) -> None:
    """Put a model into training mode, but for its first stages.

    Frozen modules keep their running statistics, and have no dropout.
    """
    names = (
        {name for stage in parameters_by_stage(model)[:frozen] for name in stage}
        if frozen
        else set()
    )
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    for path, module in model.named_modules():
        inside = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if inside and names.issuperset(inside):
            module.eval()
