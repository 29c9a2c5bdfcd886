"""Which parts of a backbone learn."""

from typing import Any

from timm.models import group_parameters
from torch import nn

from tagger.core.errors import TaggerError


def parameters_by_stage(model: nn.Module) -> list[list[str]]:
    """Return the names of the weights of each stage, from the input on, the head left out.

    Raises TaggerError for a backbone that timm does not part into stages.

    Stages are what timm takes for them: the stem, then blocks or groups of blocks.
    """
    backbone: Any = model
    heads = backbone.get_classifier()
    if isinstance(heads, tuple) or not hasattr(backbone, "group_matcher"):
        raise TaggerError(
            f"train.freeze: timm does not say of which stages {type(model).__name__} consists. Set "
            "it to 0."
        )
    head = {id(weights) for weights in heads.parameters()}
    of_head = {name for name, weights in model.named_parameters() if id(weights) in head}
    groups = group_parameters(model, backbone.group_matcher(coarse=True), reverse=True)
    by_stage: dict[int, list[str]] = {}
    for name, stage in groups.items():
        if name not in of_head:
            by_stage.setdefault(stage, []).append(name)
    return [by_stage[stage] for stage in sorted(by_stage)]


def freeze(model: nn.Module, frozen: int) -> None:
    """Let all but the first stages of a model learn, and put it into training mode.

    What does not learn keeps its running statistics, and drops nothing out.
    """
    still = (
        {name for stage in parameters_by_stage(model)[:frozen] for name in stage}
        if frozen
        else set()
    )
    model.train()
    for name, weights in model.named_parameters():
        weights.requires_grad_(name not in still)
    for path, module in model.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if own and still.issuperset(own):
            module.eval()
