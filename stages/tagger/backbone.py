"""Any timm backbone with one output per tag: built, saved, and loaded back."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import PretrainedCfg, get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import nn

from tagger import files, preprocess
from tagger.errors import TaggerError, did_you_mean
from tagger.images import WHITE
from tagger.params import Preset
from tagger.preprocess import Preprocess

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

# What timm, safetensors and torch raise for weights that are away, damaged or of another network.
_NO_WEIGHTS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    AttributeError,
    SafetensorError,
    UnpicklingError,
)


def build(preset: Preset, tags: int) -> nn.Module:
    """Return the backbone with a head of `tags` logits.

    Raises TaggerError for a name that timm does not know, arguments that the backbone does not
    take, and weights that are not to be had.
    """
    arguments: dict[str, Any] = {"drop_path_rate": preset.drop_path, **preset.model_args}
    if _config(preset.backbone).fixed_input_size:
        arguments["img_size"] = preset.image_size
    try:
        model = timm.create_model(preset.backbone, num_classes=tags, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{preset.backbone} cannot be built with image_size {preset.image_size} and "
            f"model_args {preset.model_args}: {_line(error)}."
        ) from error
    _check_patches(model, preset)
    return _pretrained(preset, num_classes=tags, **arguments) if preset.pretrained else model


def _config(name: str) -> PretrainedCfg:
    if not timm.is_model(name):
        hint = did_you_mean(name.split(".")[0], timm.list_models())
        raise TaggerError(f"timm knows no backbone {name!r}.{hint}")
    try:
        return get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        raise TaggerError(f"timm knows no backbone {name!r}: {_line(error)}.") from error


def _check_patches(model: nn.Module, preset: Preset) -> None:
    """Refuse a size of which the border, or everything, would fall outside the patches."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch and (preset.image_size % patch[0] or preset.image_size < 2 * patch[0]):
        nearest = max(2, round(preset.image_size / patch[0])) * patch[0]
        raise TaggerError(
            f"image_size {preset.image_size} is not filled by the {patch[0]} px patches of "
            f"{preset.backbone}. Take {nearest}."
        )


def _pretrained(preset: Preset, **arguments: Any) -> nn.Module:
    """Return the backbone with timm's weights from the hub, or a file's, under a fresh head."""
    overlay: dict[str, Any] = {}
    source = f"the weights of {preset.backbone}"
    if isinstance(preset.pretrained, str):
        source, overlay = preset.pretrained, {"file": preset.pretrained}
        if not Path(source).is_file():
            raise TaggerError(f"`pretrained` names the file {source}, which does not exist.")
    try:
        return timm.create_model(
            preset.backbone, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except _NO_WEIGHTS as error:
        raise TaggerError(
            f"{preset.backbone} cannot load {source}: {_line(error)}. "
            "Give the preset's `pretrained` a file of its weights, or false to train from scratch."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def preprocessing(
    model: nn.Module, preset: Preset, fitting: str = "pad", background: Sequence[int] = WHITE
) -> Preprocess:
    """Return how pictures become inputs of this model, by the constants of its backbone."""
    config: Any = model.pretrained_cfg
    return preprocess.from_config(config, preset.image_size, fitting, background)


def check_sizes(model: nn.Module, sizes: Sequence[int]) -> None:
    """Raise TaggerError where the model takes no pictures of one of the sizes, in pixels."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    for size in sizes:
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 3, size, size, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise TaggerError(
                f"train.sizes: this backbone takes no pictures of {size} px: {_line(error)}. "
                "Leave that size out; vision transformers may want model_args: "
                "{dynamic_img_size: true}."
            ) from error
    model.train(training)


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
    except _NO_WEIGHTS as error:
        raise TaggerError(f"{folder} does not load: {_line(error)}. Train again.") from error


def to_device(model: nn.Module) -> nn.Module:
    """Return the model on CUDA where there is one, in the layout that convolutions prefer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(memory_format=torch.channels_last).to(device)
