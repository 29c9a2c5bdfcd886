"""The folder to publish: one model in the layout of every tool."""

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
from tagger.export.graphs import TOOL_SIZE
from tagger.images import preprocess
from tagger.models import backbone, layouts
from tagger.models.heads import QueryTagger


class ExportTags(NamedTuple):
    """The tags of a model and their thresholds."""

    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), of the kind that is used
    fitted_thresholds: Sequence[Threshold]


def write(
    folder: Path, training_folder: Path, calibration_path: Path, export_tags: ExportTags, opset: int
) -> None:
    """Write a trained model into a new folder.

    training_folder: written by `train`
    Raises TaggerError if the backbone cannot be written as ONNX.
    """
    folder.mkdir()
    model = backbone.load_model(training_folder)
    weights = () if isinstance(model, QueryTagger) else layouts.WEIGHTS  # timm loads no query head
    copied = [training_folder / name for name in (*weights, layouts.PREPROCESS)]
    for path in (*copied, calibration_path):
        shutil.copyfile(files.require(path), folder / path.name)
    tags, thresholds, fitted_thresholds = export_tags
    formats.write_selected_tags(tags, thresholds, folder / layouts.SELECTED_TAGS)
    formats.write_categories(folder / "categories.json")
    formats.write_thresholds(fitted_thresholds, folder / layouts.THRESHOLDS)
    squares = preprocess.read(training_folder / layouts.PREPROCESS)
    onnx_graph.write_model(model, folder / layouts.ONNX, size=squares.size, opset=opset)

    rows = formats.wd14_rows(tags)
    formats.write_wd14_tags(rows, folder / formats.WD14 / layouts.SELECTED_TAGS)
    wd14 = graphs.Wd14Graph(model, squares, [row.column for row in rows], len(tags))
    path, example = folder / formats.WD14 / layouts.ONNX, torch.zeros(2, TOOL_SIZE, TOOL_SIZE, 3)
    onnx_graph.write_graph(wd14, path, example, ["predictions_sigmoid", "embedding"], opset=opset)

    formats.write_tag_mapping(tags, folder / formats.KOHYA / formats.TAG_MAPPING)
    kohya = graphs.KohyaGraph(model, squares)
    path, example = (
        folder / formats.KOHYA / formats.KOHYA_ONNX,
        torch.zeros(2, 3, TOOL_SIZE, TOOL_SIZE),
    )
    onnx_graph.write_graph(kohya, path, example, ["logits"], opset=opset)
