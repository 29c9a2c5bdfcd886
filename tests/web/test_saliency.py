"""Saliency maps lie where the logit depends on the image, and are drawn onto the image."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tagger.core.errors import TaggerError
from tagger.images.preprocess import Preprocess
from tagger.models import backbone, load_tagger
from tagger.models.heads import Head
from tagger.models.runtimes import Device
from tagger.params import Params
from tagger.web import saliency
from tagger.web.saliency import Heatmap, Saliency

LAPTOP = ("mobilenetv4", "convnext", "vit", "swin", "eva02")
TAGS = 5


@pytest.fixture
def build(default_params: Params) -> Callable[..., nn.Module]:
    """Build a preset's model, with logits as far from 0 as those of a trained one."""

    def build(name: str, size: int | None = None, head: Head = "linear") -> nn.Module:
        preset = default_params.models[name]
        size = size or preset.image_size
        torch.manual_seed(0)
        model = backbone.build_model(
            preset.model_copy(update={"image_size": size}), TAGS, head
        ).eval()
        for weights in model.get_classifier().parameters():  # type: ignore[operator]
            if weights.is_floating_point():
                nn.init.normal_(weights, std=0.5)
        return model

    return build


def noise(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def first_map(model: nn.Module, pixels: Tensor) -> Heatmap:
    """Return the first map that is not 0."""
    maps = (saliency.hirescam(model, pixels, column) for column in range(TAGS))
    return next(heat for heat in maps if heat.any())


@pytest.mark.parametrize("head", ["linear", "query"])
@pytest.mark.parametrize("name", LAPTOP)
def test_every_laptop_preset_has_a_map(
    build: Callable[..., nn.Module], default_params: Params, name: str, head: Head
) -> None:
    heat = first_map(build(name, head=head), noise(default_params.models[name].image_size))
    assert heat.shape == (6, 6)
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() > heat.min()


class Pick(nn.Module):
    """Replace pooling: only one place counts."""

    def __init__(self, row: int, column: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.row, self.column, self.channels_last = row, column, channels_last

    def forward(self, features: Tensor) -> Tensor:
        if self.channels_last:
            return features[:, self.row, self.column]
        return features[:, :, self.row : self.row + 1, self.column : self.column + 1]


def look_at(name: str, model: Any, row: int, column: int) -> None:
    """Let the logits of a model depend on one cell of the deepest map, six a side."""
    if name in ("vit", "eva02"):
        model.pool = lambda tokens, pool_type=None: tokens[:, 1 + 6 * row + column]
    elif name == "mobilenetv4":
        model.global_pool = Pick(row, column)
    else:
        model.head.global_pool = Pick(row, column, channels_last=name == "swin")


@pytest.mark.parametrize("cell", [(1, 4), (5, 0)])
@pytest.mark.parametrize("name", LAPTOP)
def test_map_has_its_maximum_where_the_logit_depends_on_the_image(
    build: Callable[..., nn.Module], name: str, cell: tuple[int, int]
) -> None:
    size = {"vit": 96, "eva02": 84}.get(name, 192)  # six cells at the deepest map
    model = build(name, size)
    look_at(name, model, *cell)
    heat = first_map(model, noise(size))
    assert heat[cell] == heat.max()
    assert (heat > 0).sum() == 1


def test_map_of_a_class_token_uses_a_block_that_the_image_still_enters(
    build: Callable[..., nn.Module],
) -> None:
    model: Any = build("vit")
    assert model.global_pool == "token"  # the only token of the last block that is used
    heat = first_map(model, noise(96))
    assert heat.max() > heat.min()
    for block in model.blocks:  # now the class token does not depend on the image
        block.attn.forward = lambda tokens, **_: tokens
    assert not saliency.hirescam(model, noise(96), 0).any()


def test_model_without_maps_is_an_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, TAGS))
    with pytest.raises(TaggerError, match="Sequential has no map of features"):
        saliency.hirescam(model, noise(8), 0)


def one_cell(row: int, column: int) -> Heatmap:
    cells = np.zeros((6, 6), np.float32)
    cells[row, column] = 1
    return cells


def centre_of(heat: Heatmap) -> tuple[float, float]:
    """Return the row and column of the centre of a map."""
    rows, columns = np.indices(heat.shape)
    return float((rows * heat).sum() / heat.sum()), float((columns * heat).sum() / heat.sum())


@pytest.mark.parametrize(
    ("fitting", "cell", "expected"),
    [
        ("pad", (2, 4), (33, 150)),  # rows 32 to 48 of the square, of which 24 to 72 are image
        ("pad", (3, 1), (67, 50)),
        ("crop", (2, 4), (42, 125)),  # the square holds columns 50 to 150
        ("crop", (3, 1), (58, 75)),
        ("stretch", (2, 4), (42, 150)),
    ],
)
def test_map_is_drawn_where_the_image_lay_in_the_square(
    fitting: str, cell: tuple[int, int], expected: tuple[float, float]
) -> None:
    preprocess = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting=fitting)
    heat = saliency.to_image(one_cell(*cell), preprocess, 200, 100)
    assert heat.shape == (100, 200)
    assert heat.min() == 0
    assert centre_of(heat) == pytest.approx(expected, abs=3)


def test_map_is_0_outside_the_square() -> None:
    preprocess = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting="crop")
    heat = saliency.to_image(np.ones((6, 6), np.float32), preprocess, 100, 200)
    assert not heat[:50].any()
    assert not heat[150:].any()
    assert heat[50:150].min() == pytest.approx(1)


@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (97, 96)])
def test_map_has_the_shape_of_its_image(fitting: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting=fitting)
    heat = saliency.to_image(np.ones((6, 6), np.float32), preprocess, *size)
    assert heat.shape == size[::-1]
    assert heat.max() == pytest.approx(1)


def test_image_box_is_where_the_image_is_in_the_square() -> None:
    for fitting in ("pad", "stretch"):
        preprocess = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting=fitting)
        for width, height in ((200, 101), (33, 96), (7, 300)):
            square = preprocess.to_square(np.zeros((height, width, 3), np.uint8))
            rows, columns = np.nonzero(square[..., 0] == 0)
            left, top, right, bottom = preprocess.image_box(width, height)
            assert (columns.min(), columns.max() + 1) == (left, right)
            assert (rows.min(), rows.max() + 1) == (top, bottom)


def test_overlay_is_warm_where_the_map_is_high() -> None:
    image = np.full((20, 20, 3), 128, np.uint8)
    heat = np.zeros((20, 20), np.float32)
    heat[5, 7] = 3
    painted = saliency.overlay(image, heat).astype(int)
    warmth = painted[..., 0] - painted[..., 2]
    assert warmth[5, 7] == warmth.max() > warmth[5, 8]
    flat = saliency.overlay(image, np.zeros((20, 20), np.float32))
    assert (flat == flat[0, 0]).all()


def test_saliency_needs_weights(export_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    tagger = load_tagger(export_folder, Device("cpu"))
    of_export = saliency.build_saliency(export_folder, tagger)
    assert isinstance(of_export, Saliency)
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    heat = of_export(image, 0)
    assert heat.shape == (40, 70)
    assert isinstance(saliency.build_saliency(model_folder, tagger), Saliency)
    bare = tmp_path / "bare"
    shutil.copytree(export_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert saliency.build_saliency(bare, tagger) == "weights"
    assert saliency.build_saliency(export_folder / "wd14", tagger) == "weights"


def test_weights_for_other_tags_are_an_error(export_folder: Path) -> None:
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(TaggerError, match="lists 3"):
        Saliency(export_folder, preprocess, 3, cuda=False)(np.zeros((8, 8, 3), np.uint8), 0)
