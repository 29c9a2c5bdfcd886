"""Any timm backbone with one output per tag: build, save and load it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import PretrainedCfg, get_pretrained_cfg
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch.backends import cudnn

from tagger.core import files
from tagger.core.colours import WHITE
from tagger.core.errors import TaggerError, did_you_mean, one_line
from tagger.images import preprocess
from tagger.images.preprocess import Preprocess
from tagger.models import checkpoints, pretrained
from tagger.models.checkpoints import UNREADABLE_ERRORS
from tagger.models.heads import Head, QueryTagger
from tagger.params import Preset

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def build_model(preset: Preset, tags: int, head: Head = "linear") -> nn.Module:
    """Return the backbone with a head of `tags` logits: timm's linear one, or a query head.

    Raises TaggerError for a name that timm does not know, arguments that the backbone does not
    take, and weights that cannot be read or downloaded.
    """
    classes = tags if head == "linear" else 0
    arguments: dict[str, Any] = dict(preset.model_args)
    if _config(preset.backbone).fixed_input_size:
        arguments["img_size"] = preset.image_size
    try:
        model = _create(preset, num_classes=classes, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{preset.backbone} cannot be built with image_size {preset.image_size} and "
            f"model_args {preset.model_args}: {one_line(error)}."
        ) from error
    _check_patches(model, preset)
    if preset.pretrained:
        pretrained.load_pretrained(model, checkpoints.read(preset.pretrained, preset.backbone))
    return QueryTagger(model, tags) if head == "query" else model


def _create(preset: Preset, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(
            preset.backbone, **{"drop_path_rate": preset.drop_path} | arguments
        )
    except (
        TypeError
    ) as error:  # not every backbone has drop_path_rate, and some have another default than 0
        if preset.drop_path or "drop_path_rate" not in str(error):
            raise
        return timm.create_model(preset.backbone, **arguments)


def _config(name: str) -> PretrainedCfg:
    if not timm.is_model(name):
        hint = did_you_mean(name.split(".")[0], timm.list_models())
        raise TaggerError(f"timm knows no backbone {name!r}.{hint}")
    try:
        return get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        raise TaggerError(f"timm knows no backbone {name!r}: {one_line(error)}.") from error


def _check_patches(model: nn.Module, preset: Preset) -> None:
    """Raise TaggerError for an image size whose border, or everything, lies outside the patches."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch and (preset.image_size % patch[0] or preset.image_size < 2 * patch[0]):
        nearest = max(2, round(preset.image_size / patch[0])) * patch[0]
        raise TaggerError(
            f"image_size {preset.image_size} is not filled by the {patch[0]} px patches of "
            f"{preset.backbone}. Take {nearest}."
        )


def build_preprocess(
    model: nn.Module, preset: Preset, fitting: str = "pad", background: Sequence[int] = WHITE
) -> Preprocess:
    """Return the preprocessing of images for this model, with the constants of its backbone."""
    config: Any = model.pretrained_cfg
    return preprocess.from_timm_config(config, preset.image_size, fitting, background)


def check_sizes(model: nn.Module, sizes: Sequence[int]) -> None:
    """Raise TaggerError if the model takes no images of one of the sizes, in pixels."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    for size in sizes:
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 3, size, size, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise TaggerError(
                f"train.augment.sizes: this backbone takes no images of {size} px: "
                f"{one_line(error)}. Leave that size out; vision transformers may want "
                "model_args: {dynamic_img_size: true}."
            ) from error
    model.train(training)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass, to save memory.

    Raises TaggerError for a backbone that cannot.
    """
    timm_model: Any = model
    try:
        timm_model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise TaggerError(
            f"train.gradient_checkpointing: this backbone does not support it: {one_line(error)}. "
            "Set it to false, and lower train.micro_batch if memory does not suffice."
        ) from error


def save_config(model: nn.Module, prepared: Preprocess, folder: Path) -> None:
    """Write timm's config.json; with `save_weights` it makes a folder for timm's `local-dir:`.

    With a query head it describes the backbone alone, and the head under the key `head`.
    """
    head_config = {"head": model.head_config()} if isinstance(model, QueryTagger) else {}
    body = model.backbone if isinstance(model, QueryTagger) else model
    data = {
        "input_size": (3, prepared.size, prepared.size),
        "mean": prepared.mean,
        "std": prepared.std,
        "interpolation": prepared.interpolation,
        "crop_pct": 1.0,
    }
    with files.atomic_write(folder / CONFIG) as partial:
        save_config_for_hf(body, str(partial), data_config=data, model_config=head_config)


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    entries = {name: value.detach().contiguous() for name, value in state.items()}
    with files.atomic_write(path) as partial:
        try:
            save_file(entries, partial, metadata={"format": "pt"})
        except SafetensorError as error:  # of an error of the system it keeps only the number
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error), str(path)) from None


def load_model(folder: Path) -> nn.Module:
    """Return the model of a folder that `save_config` and `save_weights` wrote, in eval mode."""
    files.require(folder / WEIGHTS)
    files.require(folder / CONFIG)
    try:
        head = files.read_json(folder / CONFIG).get("head")
        with torch.device("meta"):  # no memory, however large the model is
            _check_size(_described(folder, head), folder)
        model = _described(folder, head, pretrained=head is None)
        if head is not None:
            model.load_state_dict(load_file(folder / WEIGHTS))
        return model.eval()
    except UNREADABLE_ERRORS as error:
        raise TaggerError(f"{folder} does not load: {one_line(error)}. Train again.") from error


def _described(folder: Path, head: dict[str, Any] | None, pretrained: bool = False) -> nn.Module:
    """Return the model that config.json describes."""
    model: nn.Module = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=pretrained)
    return model if head is None else QueryTagger(model, **head)


def _check_size(model: nn.Module, folder: Path) -> None:
    """Raise TaggerError if the file of weights is too small for the model of the config."""
    weights, size = sum(p.numel() for p in model.parameters()), (folder / WEIGHTS).stat().st_size
    if weights > size:
        raise TaggerError(
            f"{folder} does not load: {CONFIG} describes a model of {weights:,} weights, which "
            f"cannot all lie in the {size:,} bytes of {WEIGHTS}. Train again."
        )


def to_device(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Return the model on CUDA if there is a GPU, in the layout that convolutions prefer."""
    target = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(memory_format=torch.channels_last).to(target)


@contextmanager
def inference_mode() -> Iterator[None]:
    """Compute without gradients, and in full float32.

    With TF32 the confidences of an image depend, by 1e-3, on the other images of its batch.
    """
    precision, allow_tf32 = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        cudnn.allow_tf32 = allow_tf32
