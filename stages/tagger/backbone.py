"""Any timm backbone with one output per tag: built, saved, and loaded back."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import nn

from tagger import files, preprocess
from tagger.errors import TaggerError, did_you_mean
from tagger.params import Preset
from tagger.preprocess import Preprocess

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def build(preset: Preset, tags: int) -> nn.Module:
    """Return the backbone with a head of `tags` logits.

    Raises TaggerError for a name that timm does not know, arguments that the backbone does not
    take, and weights that are not to be had.
    """
    if not timm.is_model(preset.backbone):
        name = preset.backbone.split(".")[0]
        hint = did_you_mean(name, timm.list_models())
        raise TaggerError(f"timm knows no backbone {preset.backbone!r}.{hint}")
    arguments: dict[str, Any] = {"drop_path_rate": preset.drop_path, **preset.model_args}
    config = get_pretrained_cfg(preset.backbone)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = preset.image_size
    try:
        return timm.create_model(
            preset.backbone, num_classes=tags, **_weights(preset.pretrained), **arguments
        )
    except OSError as error:
        raise TaggerError(
            f"The weights of {preset.backbone} are not to be had: {_line(error)}. "
            "Give the preset's `pretrained` a weights file, or false to train from scratch."
        ) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{preset.backbone} cannot be built with image_size {preset.image_size} and "
            f"model_args {preset.model_args}: {_line(error)}."
        ) from error


def _weights(pretrained: bool | str) -> dict[str, Any]:
    if isinstance(pretrained, bool):
        return {"pretrained": pretrained}
    if not Path(pretrained).is_file():
        raise TaggerError(f"`pretrained` names the file {pretrained}, which does not exist.")
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": pretrained}}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def preprocessing(model: nn.Module, preset: Preset) -> Preprocess:
    """Return how pictures become inputs of this model, by the constants of its backbone."""
    config: Any = model.pretrained_cfg
    return preprocess.from_config(config, preset.image_size)


def save_config(model: nn.Module, prepared: Preprocess, folder: Path) -> None:
    """Write timm's config.json; with `save_weights` it makes a folder for timm's `local-dir:`."""
    data = {
        "input_size": (3, prepared.size, prepared.size),
        "mean": prepared.mean,
        "std": prepared.std,
        "interpolation": prepared.interpolation,
        "crop_pct": 1.0,
    }
    with files.replacing(folder / CONFIG) as partial:
        save_config_for_hf(model, str(partial), data_config=data)


def save_weights(model: nn.Module, path: Path) -> None:
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with files.replacing(path) as partial:
        save_file(weights, partial, metadata={"format": "pt"})


def load(folder: Path) -> nn.Module:
    """Return the model of a folder that `save_config` and `save_weights` wrote, in eval mode."""
    files.require(folder / WEIGHTS)
    files.require(folder / CONFIG)
    try:
        return timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise TaggerError(f"{folder} does not load: {_line(error)}. Train again.") from error


def to_device(model: nn.Module) -> nn.Module:
    """Return the model on CUDA where there is one, in the layout that convolutions prefer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(memory_format=torch.channels_last).to(device)
