"""The folder that people download: one model in every layout that a tool wants."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tagger import files
from tagger.arrays import Floats
from tagger.exporting import graphs, listings, onnx_export
from tagger.exporting.graphs import SIDE
from tagger.imaging import preprocess
from tagger.network import backbone
from tagger.network.heads import QueryTagger
from tagger.taggers import exported
from tagger.thresholds import Threshold
from tagger.vocabulary import Tag


class Names(NamedTuple):
    """The tags of a model, and from which confidence on they are given."""

    tags: Sequence[Tag]
    limits: Floats  # (tags,), by the policy chosen
    fitted: Sequence[Threshold]


def write(folder: Path, trained: Path, calibration: Path, names: Names, opset: int) -> None:
    """Write a trained model into a new folder.

    trained: the folder that `train` wrote
    Raises TaggerError where the backbone cannot be written as ONNX.
    """
    folder.mkdir()
    model = backbone.load(trained)
    weights = () if isinstance(model, QueryTagger) else exported.WEIGHTS  # which timm loads
    for path in (*(trained / name for name in (*weights, exported.PREPROCESS)), calibration):
        shutil.copyfile(files.require(path), folder / path.name)
    listings.selected(names.tags, names.limits, folder / exported.SELECTED_TAGS)
    listings.categories(folder / "categories.json")
    listings.thresholds(names.fitted, folder / exported.FITTED)
    prepared = preprocess.read(trained / exported.PREPROCESS)

    onnx_export.plain(model, folder / exported.ONNX, size=prepared.size, opset=opset)

    rows = listings.wd14(names.tags)
    listings.write_wd14(rows, folder / listings.WD14 / exported.SELECTED_TAGS)
    wd14 = graphs.Wd14(model, prepared, [row.column for row in rows], len(names.tags))
    example = torch.zeros(2, SIDE, SIDE, 3)
    outputs = ["predictions_sigmoid", "embedding"]
    onnx_export.write(wd14, folder / listings.WD14 / exported.ONNX, example, outputs, opset=opset)

    listings.mapping(names.tags, folder / listings.KOHYA / listings.MAPPING)
    kohya, example = graphs.Kohya(model, prepared), torch.zeros(2, 3, SIDE, SIDE)
    path = folder / listings.KOHYA / listings.MAPPED
    onnx_export.write(kohya, path, example, ["logits"], opset=opset)
