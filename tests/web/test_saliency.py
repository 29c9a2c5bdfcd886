"""Where a model looks: the place its answer hangs on, brought back onto the picture."""

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
    """Build a preset's model, its logits as far from 0 as those of a trained one."""

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
    """Return the map of the first tag that anything speaks for."""
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
    """In place of pooling: all but one place is forgotten."""

    def __init__(self, row: int, column: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.row, self.column, self.channels_last = row, column, channels_last

    def forward(self, features: Tensor) -> Tensor:
        if self.channels_last:
            return features[:, self.row, self.column]
        return features[:, :, self.row : self.row + 1, self.column : self.column + 1]


def look_at(name: str, model: Any, row: int, column: int) -> None:
    """Let the answer of a model hang on one cell of the deepest map, six a side."""
    if name in ("vit", "eva02"):
        model.pool = lambda tokens, pool_type=None: tokens[:, 1 + 6 * row + column]
    elif name == "mobilenetv4":
        model.global_pool = Pick(row, column)
    else:
        model.head.global_pool = Pick(row, column, channels_last=name == "swin")


@pytest.mark.parametrize("place", [(1, 4), (5, 0)])
@pytest.mark.parametrize("name", LAPTOP)
def test_the_place_that_an_answer_hangs_on_is_the_maps_maximum(
    build: Callable[..., nn.Module], name: str, place: tuple[int, int]
) -> None:
    size = {"vit": 96, "eva02": 84}.get(name, 192)  # six cells at the deepest map
    model = build(name, size)
    look_at(name, model, *place)
    heat = first_map(model, noise(size))
    assert heat[place] == heat.max()
    assert (heat > 0).sum() == 1


def test_a_class_token_is_seen_through_a_block_that_the_picture_still_enters(
    build: Callable[..., nn.Module],
) -> None:
    model: Any = build("vit")
    assert model.global_pool == "token"  # of the last block, nothing else is used
    heat = first_map(model, noise(96))
    assert heat.max() > heat.min()
    for block in model.blocks:  # now the class token never hears of the picture
        block.attn.forward = lambda tokens, **_: tokens
    assert not saliency.hirescam(model, noise(96), 0).any()


def test_a_model_without_maps_is_told_of() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, TAGS))
    with pytest.raises(TaggerError, match="Sequential has no map of features"):
        saliency.hirescam(model, noise(8), 0)


def one_cell(row: int, column: int) -> Heatmap:
    cells = np.zeros((6, 6), np.float32)
    cells[row, column] = 1
    return cells


def middle(heat: Heatmap) -> tuple[float, float]:
    """Return the row and column around which a map lies."""
    rows, columns = np.indices(heat.shape)
    return float((rows * heat).sum() / heat.sum()), float((columns * heat).sum() / heat.sum())


@pytest.mark.parametrize(
    ("fitting", "place", "expected"),
    [
        ("pad", (2, 4), (33, 150)),  # rows 32 to 48 of the square, of which 24 to 72 are picture
        ("pad", (3, 1), (67, 50)),
        ("crop", (2, 4), (42, 125)),  # the square holds columns 50 to 150
        ("crop", (3, 1), (58, 75)),
        ("stretch", (2, 4), (42, 150)),
    ],
)
def test_a_map_is_brought_back_to_where_the_picture_lay_in_the_square(
    fitting: str, place: tuple[int, int], expected: tuple[float, float]
) -> None:
    prepared = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting=fitting)
    heat = saliency.to_image(one_cell(*place), prepared, 200, 100)
    assert heat.shape == (100, 200)
    assert heat.min() == 0
    assert middle(heat) == pytest.approx(expected, abs=3)


def test_what_the_square_does_not_hold_is_dark() -> None:
    prepared = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting="crop")
    heat = saliency.to_image(np.ones((6, 6), np.float32), prepared, 100, 200)
    assert not heat[:50].any()
    assert not heat[150:].any()
    assert heat[50:150].min() == pytest.approx(1)


@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (97, 96)])
def test_a_picture_of_any_shape_gets_a_map_of_its_shape(
    fitting: str, size: tuple[int, int]
) -> None:
    prepared = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting=fitting)
    heat = saliency.to_image(np.ones((6, 6), np.float32), prepared, *size)
    assert heat.shape == size[::-1]
    assert heat.max() == pytest.approx(1)


def test_the_place_of_a_picture_is_where_it_is_put() -> None:
    for fitting in ("pad", "stretch"):
        prepared = Preprocess(96, (0.5,) * 3, (0.5,) * 3, fitting=fitting)
        for width, height in ((200, 101), (33, 96), (7, 300)):
            square = prepared.to_square(np.zeros((height, width, 3), np.uint8))
            rows, columns = np.nonzero(square[..., 0] == 0)
            left, top, right, bottom = prepared.image_box(width, height)
            assert (columns.min(), columns.max() + 1) == (left, right)
            assert (rows.min(), rows.max() + 1) == (top, bottom)


def test_colours_are_warm_where_a_map_is_high() -> None:
    picture = np.full((20, 20, 3), 128, np.uint8)
    heat = np.zeros((20, 20), np.float32)
    heat[5, 7] = 3
    painted = saliency.overlay(picture, heat).astype(int)
    warmth = painted[..., 0] - painted[..., 2]
    assert warmth[5, 7] == warmth.max() > warmth[5, 8]
    flat = saliency.overlay(picture, np.zeros((20, 20), np.float32))
    assert (flat == flat[0, 0]).all()


def test_an_export_with_weights_has_maps_and_one_without_says_so(
    export_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    tagger = load_tagger(export_folder, Device("cpu"))
    look = saliency.build_saliency(export_folder, tagger)
    assert isinstance(look, Saliency)
    picture = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    heat = look(picture, 0)
    assert heat.shape == (40, 70)
    assert isinstance(saliency.build_saliency(model_folder, tagger), Saliency)
    bare = tmp_path / "bare"
    shutil.copytree(export_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert saliency.build_saliency(bare, tagger) == "weights"
    assert saliency.build_saliency(export_folder / "wd14", tagger) == "weights"


def test_weights_for_other_tags_are_refused(export_folder: Path) -> None:
    prepared = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(TaggerError, match="lists 3"):
        Saliency(export_folder, prepared, 3, cuda=False)(np.zeros((8, 8, 3), np.uint8), 0)
