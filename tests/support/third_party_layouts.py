"""The model of the tests as others would have published it: in the layouts that there are."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tagger.core import files
from tagger.core.vocabulary import Tag
from tagger.images import preprocess
from tagger.models import backbone

STAGES = [
    {"type": "pad_to_size", "size": [40, 40], "interpolation": "bilinear"}
    | {"background_color": "white"},
    {"type": "resize", "size": 32, "interpolation": "bicubic", "max_size": None},
    {"type": "center_crop", "size": [32, 32]},
    {"type": "maybe_to_tensor"},
]


def write_selected_tags(tags: Sequence[Tag], folder: Path) -> None:
    """Write selected_tags.csv as SmilingWolf does."""
    files.write_csv(folder / "selected_tags.csv", ("tag_id", "name", "category", "count"), tags)


class _Keras(nn.Module):
    """Takes what models of TensorFlow take."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.constants = torch.tensor([mean, std]).view(2, 1, 3, 1, 1) * 255

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, size, size, 3), BGR from 0 to 255 -> (batch, tags), probabilities."""
        mean, std = self.constants
        inputs = (pixels.flip(3).permute(0, 3, 1, 2) - mean) / std
        logits: Tensor = self.model(inputs)
        return logits.sigmoid()


def write_wd14_layout(
    model: Path, tags: Sequence[Tag], folder: Path, *, channels_last: bool = True
) -> Path:
    """Write the layout of WD14.

    model: a folder as `train` leaves it, with these tags
    last: whether the channels are the last axis, as they are there
    """
    prepared = preprocess.read(model / "preprocess.json")
    network = _Keras(backbone.load_model(model), prepared.mean, prepared.std).eval()
    pixels = torch.zeros(2, prepared.size, prepared.size, 3)
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network if channels_last else network.model,
            (pixels if channels_last else pixels.permute(0, 3, 1, 2),),
            folder / "model.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["input_1:0"],
            output_names=["predictions_sigmoid"],
            dynamic_axes={"input_1:0": {0: "batch"}, "predictions_sigmoid": {0: "batch"}},
        )
    write_selected_tags(tags, folder)
    return folder


def write_timm_layout(model: Path, tags: Sequence[Tag], folder: Path, *, bgr: bool = False) -> Path:
    """Write the layout of timm, of a model that takes BGR if wanted: nothing says it then."""
    folder.mkdir(parents=True)
    weights, config = load_file(model / backbone.WEIGHTS), files.read_json(model / backbone.CONFIG)
    if bgr:
        first = f"{config['pretrained_cfg']['first_conv']}.weight"
        weights[first] = weights[first].flip(1).contiguous()
        for name in ("mean", "std"):
            config["pretrained_cfg"][name].reverse()
    save_file(weights, folder / backbone.WEIGHTS)
    files.write_json(folder / backbone.CONFIG, config)
    write_selected_tags(tags, folder)
    return folder


def write_imgutils_layout(export: Path, tags: Sequence[Tag], folder: Path) -> Path:
    """Write the layout of imgutils, with a preprocessing that is not ours."""
    folder.mkdir(parents=True)
    shutil.copyfile(export / "model.onnx", folder / "model.onnx")
    constants = files.read_json(export / "preprocess.json")["test"][-1]
    files.write_json(folder / "preprocess.json", {"test": [*STAGES, constants]})
    write_selected_tags(tags, folder)
    return folder


def copy_with_damaged_head(model: Path, folder: Path, rows: Sequence[int]) -> Path:
    """Copy a model whose head has forgotten some tags: it says something else of them."""
    shutil.copytree(model, folder)
    weights = load_file(folder / backbone.WEIGHTS)
    head = weights[
        f"{files.read_json(folder / backbone.CONFIG)['pretrained_cfg']['classifier']}.weight"
    ]
    head[list(rows)] = -head[list(rows)]
    save_file(weights, folder / backbone.WEIGHTS)
    return folder
