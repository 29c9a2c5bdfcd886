"""The folder that people download: one model in every layout that a tool wants."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tagger.core import files
from tagger.core.arrays import Floats
from tagger.core.thresholds import Threshold
from tagger.core.vocabulary import Tag
from tagger.export import formats, graphs, onnx_graph
from tagger.export.graphs import SIDE
from tagger.images import preprocess
from tagger.models import backbone, exported
from tagger.models.heads import QueryTagger


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
    formats.selected(names.tags, names.limits, folder / exported.SELECTED_TAGS)
    formats.categories(folder / "categories.json")
    formats.thresholds(names.fitted, folder / exported.FITTED)
    prepared = preprocess.read(trained / exported.PREPROCESS)

    onnx_graph.plain(model, folder / exported.ONNX, size=prepared.size, opset=opset)

    rows = formats.wd14(names.tags)
    formats.write_wd14(rows, folder / formats.WD14 / exported.SELECTED_TAGS)
    wd14 = graphs.Wd14(model, prepared, [row.column for row in rows], len(names.tags))
    example = torch.zeros(2, SIDE, SIDE, 3)
    outputs = ["predictions_sigmoid", "embedding"]
    onnx_graph.write(wd14, folder / formats.WD14 / exported.ONNX, example, outputs, opset=opset)

    formats.mapping(names.tags, folder / formats.KOHYA / formats.MAPPING)
    kohya, example = graphs.Kohya(model, prepared), torch.zeros(2, 3, SIDE, SIDE)
    path = folder / formats.KOHYA / formats.MAPPED
    onnx_graph.write(kohya, path, example, ["logits"], opset=opset)
