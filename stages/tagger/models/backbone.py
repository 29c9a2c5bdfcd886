"""Any timm backbone with one output per tag: built, saved, and loaded back."""

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
    """Return the backbone with a head of `tags` logits: timm's own, or that of `heads`.

    Raises TaggerError for a name that timm does not know, arguments that the backbone does not
    take, and weights that are not to be had.
    """
    classes = tags if head == "linear" else 0
    arguments: dict[str, Any] = dict(preset.model_args)
    if _config(preset.backbone).fixed_input_size:
        arguments["img_size"] = preset.image_size
    try:
        model = _created(preset, num_classes=classes, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise TaggerError(
            f"{preset.backbone} cannot be built with image_size {preset.image_size} and "
            f"model_args {preset.model_args}: {one_line(error)}."
        ) from error
    _check_patches(model, preset)
    if preset.pretrained:
        pretrained.load_pretrained(model, checkpoints.read(preset.pretrained, preset.backbone))
    return QueryTagger(model, tags) if head == "query" else model


def _created(preset: Preset, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(
            preset.backbone, **{"drop_path_rate": preset.drop_path} | arguments
        )
    except TypeError as error:  # some have no branches to leave out; others do unless told not to
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
    """Refuse a size of which the border, or everything, would fall outside the patches."""
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
    """Return how pictures become inputs of this model, by the constants of its backbone."""
    config: Any = model.pretrained_cfg
    return preprocess.from_timm_config(config, preset.image_size, fitting, background)


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
                f"train.augment.sizes: this backbone takes no pictures of {size} px: "
                f"{one_line(error)}. Leave that size out; vision transformers may want "
                "model_args: {dynamic_img_size: true}."
            ) from error
    model.train(training)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Let the model compute twice, in training, what it would keep for the gradient.

    Raises TaggerError for a backbone that cannot.
    """
    timms: Any = model
    try:
        timms.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise TaggerError(
            f"train.gradient_checkpointing: this backbone does not know it: {one_line(error)}. Set "
            "it to false, and lower train.micro_batch where memory does not suffice."
        ) from error


def save_config(model: nn.Module, prepared: Preprocess, folder: Path) -> None:
    """Write timm's config.json; with `save_weights` it makes a folder for timm's `local-dir:`.

    That of a query head describes the backbone alone, and the head under the key `head`.
    """
    more = {"head": model.head_config()} if isinstance(model, QueryTagger) else {}
    body = model.backbone if isinstance(model, QueryTagger) else model
    data = {
        "input_size": (3, prepared.size, prepared.size),
        "mean": prepared.mean,
        "std": prepared.std,
        "interpolation": prepared.interpolation,
        "crop_pct": 1.0,
    }
    with files.atomic_write(folder / CONFIG) as partial:
        save_config_for_hf(body, str(partial), data_config=data, model_config=more)


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    entries = {name: value.detach().contiguous() for name, value in state.items()}
    with files.atomic_write(path) as partial:
        try:
            save_file(entries, partial, metadata={"format": "pt"})
        except SafetensorError as error:  # of the system's, it keeps but the number
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
        with torch.device("meta"):  # which costs no memory, however large the model is
            _check_room(_described(folder, head), folder)
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


def _check_room(model: nn.Module, folder: Path) -> None:
    """Raise TaggerError where the file of weights is too small to hold those of the model."""
    needed, there = sum(p.numel() for p in model.parameters()), (folder / WEIGHTS).stat().st_size
    if needed > there:
        raise TaggerError(
            f"{folder} does not load: {CONFIG} describes a model of {needed:,} weights, which "
            f"cannot all lie in the {there:,} bytes of {WEIGHTS}. Train again."
        )


def to_device(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Return the model on CUDA where there is one, in the layout that convolutions prefer."""
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(memory_format=torch.channels_last).to(where)


@contextmanager
def inference_mode() -> Iterator[None]:
    """Compute what a model says of pictures: without gradients, and in whole float32.

    TF32 would make a picture's confidences depend, by 1e-3, on those it is computed with.
    """
    matmuls, convolutions = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(matmuls)
        cudnn.allow_tf32 = convolutions
