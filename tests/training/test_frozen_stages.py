"""Frozen stages change neither weights nor statistics, and drop nothing out."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from support.trainings import BuildTrainer, changed_names, train_to_end, weights
from tagger.params import Preset

STAGES = ["conv_stem.|bn1.", "blocks.0.", "blocks.1.", "blocks.2.", "blocks.3."]
STAGES += ["blocks.4.|conv_head.|bn2.", "classifier."]


def changed_stages(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[int]:
    """Return which stages of `test_efficientnet` differ anywhere; the head is stage 6."""
    prefixes = [tuple(stage.split("|")) for stage in STAGES]
    assert all(any(name.startswith(prefix) for prefix in prefixes) for name in before)
    names = changed_names(before, after)
    return [
        stage
        for stage, prefix in enumerate(prefixes)
        if any(name.startswith(prefix) for name in names)
    ]


@pytest.mark.parametrize(
    ("freeze", "unfreeze_every", "changed_by_epoch"),
    [
        (0, None, [[0, 1, 2, 3, 4, 5, 6]] * 3),
        (2, None, [[2, 3, 4, 5, 6]] * 3),
        ("all", None, [[6]] * 3),
        (99, None, [[6]] * 3),
        ("all", 1, [[6], [5, 6], [4, 5, 6]]),
        (2, 2, [[2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]),
    ],
)
def test_frozen_stages_keep_weights_and_statistics(
    build_trainer: BuildTrainer,
    freeze: str | int,
    unfreeze_every: int | None,
    changed_by_epoch: list[list[int]],
) -> None:
    trainer = build_trainer(epochs=3, freeze=freeze, unfreeze_every=unfreeze_every)
    states = [weights(trainer)]
    train_to_end(trainer, lambda _: states.append(weights(trainer)))
    assert [changed_stages(*pair) for pair in itertools.pairwise(states)] == changed_by_epoch


def test_frozen_stages_have_no_drop_path(build_trainer: BuildTrainer, vit: Preset) -> None:
    trainer = build_trainer(vit.model_copy(update={"drop_path": 0.5}), freeze="all", epochs=1)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    model: Any = trainer.model
    hook = model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model.blocks.register_forward_hook(lambda *call: outputs.append(call[2].detach()))
    train_to_end(trainer)
    assert len(inputs) == 3 + 1  # steps, and a validation
    hook.remove()
    model.eval()
    with torch.no_grad():
        for images, expected in zip(inputs, list(outputs), strict=True):
            model.forward_features(images)
            assert torch.equal(outputs.pop(), expected)
