"""Frozen stages keep weights and statistics to the bit; the others learn."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tagger.models import backbone, freezing, heads
from tagger.params import Params, Preset
from tagger.training import losses, optimizer
from tagger.training.schedule import Schedule

TAGS = 5
SMALL = ["test_efficientnet", "test_vit", "test_convnext", "test_resnet", "test_byobnet"]


def head_parameters(model: Any) -> set[str]:
    parameters = {id(weights) for weights in model.get_classifier().parameters()}
    return {name for name, weights in model.named_parameters() if id(weights) in parameters}


@pytest.fixture
def model(preset: Preset) -> nn.Module:
    torch.manual_seed(0)
    return backbone.build_model(preset, TAGS)


def train(model: nn.Module, preset: Preset, default_params: Params, steps: int = 2) -> None:
    """Take training steps with weight decay on random pixels."""
    optimizer_ = optimizer.build_optimizer(model, preset, default_params.train)
    for _ in range(steps):
        optimizer_.zero_grad()
        pixels, targets = torch.randn(8, 3, 32, 32), torch.randint(0, 2, (8, TAGS))
        loss = losses.binary_cross_entropy(model(pixels), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer_.step()


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed_entries(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


def with_statistics(model: nn.Module, weights: set[str]) -> set[str]:
    """Return names of weights, and of the statistics of the batch norms that they belong to."""
    norms = {path for path, module in model.named_modules() if isinstance(module, _BatchNorm)} & {
        name.rpartition(".")[0] for name in weights
    }
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return weights | {f"{path}.{name}" for path in norms for name in statistics}


@pytest.mark.parametrize("head", ["linear", "query"])
@pytest.mark.parametrize("name", ["mobilenetv4", "convnext", "vit", "swin", "eva02", *SMALL])
def test_stages_have_every_parameter_but_the_heads_once(
    default_params: Params, preset: Preset, name: str, head: heads.Head
) -> None:
    update = {"backbone": name, "image_size": 160}
    chosen = default_params.models.get(name) or preset.model_copy(update=update)
    with torch.device("meta"):
        model = backbone.build_model(chosen, TAGS, head)
    stages = freezing.parameters_by_stage(model)
    names = [weights for stage in stages for weights in stage]
    assert len(stages) >= 5
    assert all(stages)
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in model.named_parameters()} - head_parameters(model)
    stem = next(name for name, weights in model.named_parameters() if weights.ndim == 4)
    assert stem in stages[0]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_stages_are_in_the_order_of_the_network(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=TAGS)
    place = {
        weights: stage
        for stage, names in enumerate(freezing.parameters_by_stage(model))
        for weights in names
    }
    blocks = [place[weights] for weights, _ in model.named_parameters() if weights in place]
    assert blocks == sorted(blocks)


@pytest.mark.parametrize("frozen", [0, 1, 3, 6])
def test_frozen_weights_and_statistics_stay_and_all_others_change(
    model: nn.Module, preset: Preset, default_params: Params, frozen: int
) -> None:
    stages = freezing.parameters_by_stage(model)
    assert len(stages) == 6
    frozen_names = with_statistics(model, {name for stage in stages[:frozen] for name in stage})
    before = copy_state(model)
    freezing.freeze(model, frozen)
    train(model, preset, default_params)
    assert changed_entries(model, before) == before.keys() - frozen_names


def test_a_frozen_model_gives_the_same_features_in_training(preset: Preset) -> None:
    dropping = preset.model_copy(update={"drop_path": 0.5, "model_args": {"drop_rate": 0.5}})
    model: Any = backbone.build_model(dropping, TAGS)
    pixels = torch.randn(8, 3, 32, 32)
    freezing.freeze(model, len(freezing.parameters_by_stage(model)))
    features = model.forward_features(pixels)
    assert torch.equal(features, model.forward_features(pixels))
    assert torch.equal(features, model.eval().forward_features(pixels))
    freezing.freeze(model, 0)
    assert not torch.equal(features, model.forward_features(pixels))


@pytest.mark.parametrize("head", ["linear", "query"])
def test_the_head_learns_if_all_stages_are_frozen(
    preset: Preset, default_params: Params, head: heads.Head
) -> None:
    torch.manual_seed(0)
    model = backbone.build_model(preset, TAGS, head)
    freezing.freeze(model, 1000)
    before = copy_state(model)
    train(model, preset, default_params)
    assert changed_entries(model, before) == head_parameters(model)


def test_freezing_no_stage_unfreezes_all(model: nn.Module) -> None:
    freezing.freeze(model, 6)
    freezing.freeze(model, 0)
    assert all(weights.requires_grad for weights in model.parameters())
    assert all(module.training for module in model.modules())


def test_gradual_unfreezing_starts_at_the_head(
    model: nn.Module, preset: Preset, default_params: Params
) -> None:
    """The optimizer is made once, before anything is frozen: it moves what is freed later."""
    stages = freezing.parameters_by_stage(model)
    recipe = default_params.train.model_copy(update={"freeze": 2, "unfreeze_every": 1, "epochs": 3})
    plan = Schedule(recipe, steps_per_epoch=2, batch_size=8, backbone_stages=len(stages))
    optimizer_ = optimizer.build_optimizer(model, preset, recipe)
    for step in range(plan.steps):
        freezing.freeze(model, plan.frozen_stages(step))
        before = copy_state(model)
        optimizer_.zero_grad()
        targets = torch.randint(0, 2, (8, TAGS))
        loss = losses.binary_cross_entropy(model(torch.randn(8, 3, 32, 32)), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer_.step()
        frozen = {0: 2, 1: 1, 2: 0}[step // 2]
        frozen_names = {name for stage in stages[:frozen] for name in stage}
        assert changed_entries(model, before) == before.keys() - with_statistics(
            model, frozen_names
        )


def test_only_wholly_frozen_modules_are_in_eval_mode(model: nn.Module) -> None:
    freezing.freeze(model, 3)
    frozen_names = {name for stage in freezing.parameters_by_stage(model)[:3] for name in stage}
    for path, module in model.named_modules():
        parameters = {f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters()}
        if parameters:
            assert module.training == bool(parameters - frozen_names), path
