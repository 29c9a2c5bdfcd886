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
from tagger.export.graphs import TOOL_SIZE
from tagger.images import preprocess
from tagger.models import backbone, layouts
from tagger.models.heads import QueryTagger


class ExportTags(NamedTuple):
    """The tags of a model, and from which confidence on they are given."""

    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), by the policy chosen
    fitted_thresholds: Sequence[Threshold]


def write(
    folder: Path, training_folder: Path, calibration_path: Path, export_tags: ExportTags, opset: int
) -> None:
    """Write a trained model into a new folder.

    trained: the folder that `train` wrote
    Raises TaggerError where the backbone cannot be written as ONNX.
    """
    folder.mkdir()
    model = backbone.load_model(training_folder)
    weights = () if isinstance(model, QueryTagger) else layouts.WEIGHTS  # which timm loads
    for path in (
        *(training_folder / name for name in (*weights, layouts.PREPROCESS)),
        calibration_path,
    ):
        shutil.copyfile(files.require(path), folder / path.name)
    formats.write_selected_tags(
        export_tags.tags, export_tags.thresholds, folder / layouts.SELECTED_TAGS
    )
    formats.write_categories(folder / "categories.json")
    formats.write_thresholds(export_tags.fitted_thresholds, folder / layouts.THRESHOLDS)
    prepared = preprocess.read(training_folder / layouts.PREPROCESS)

    onnx_graph.write_model(model, folder / layouts.ONNX, size=prepared.size, opset=opset)

    rows = formats.wd14_rows(export_tags.tags)
    formats.write_wd14_tags(rows, folder / formats.WD14 / layouts.SELECTED_TAGS)
    wd14 = graphs.Wd14Graph(model, prepared, [row.column for row in rows], len(export_tags.tags))
    example = torch.zeros(2, TOOL_SIZE, TOOL_SIZE, 3)
    outputs = ["predictions_sigmoid", "embedding"]
    onnx_graph.write_graph(
        wd14, folder / formats.WD14 / layouts.ONNX, example, outputs, opset=opset
    )

    formats.write_tag_mapping(export_tags.tags, folder / formats.KOHYA / formats.TAG_MAPPING)
    kohya, example = graphs.KohyaGraph(model, prepared), torch.zeros(2, 3, TOOL_SIZE, TOOL_SIZE)
    path = folder / formats.KOHYA / formats.KOHYA_ONNX
    onnx_graph.write_graph(kohya, path, example, ["logits"], opset=opset)
