"""Make the folder that people download, and prove that it tags as the model does."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tagger import (
    backbone,
    dataset,
    errors,
    exported,
    files,
    images,
    onnx_export,
    params,
    parity,
    preprocess,
    thresholds,
)
from tagger.heads import QueryTagger
from tagger.metrics import Floats, Scores
from tagger.predict import predict
from tagger.vocabulary import Tag

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
THRESHOLDS = Path("models/thresholds.csv")
CALIBRATION = Path("models/calibration.json")
EXPORT = Path("models/export")
REPORT = Path("metrics/export.json")


def main(p: params.Params) -> None:
    tags, parts = dataset.read(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    limits = thresholds.per_tag(thresholds.read(THRESHOLDS), tags, p.evaluate.threshold)
    with files.replacing(EXPORT) as folder:
        write(folder, tags, limits, p.export.opset)
        report = compare(folder, parts["test"].head(p.export.parity_pictures), limits, p)
    files.write_json(REPORT, report)
    print(
        f"{len(tags)} tags -> {EXPORT}; ONNX and torch agree within "
        f"{report['onnx']['largest_difference']:.1e} on {report['pictures']} pictures"
        + ("" if "timm" in report else "; no files for timm, which does not know the query head")
    )


def write(folder: Path, tags: Sequence[Tag], limits: Floats, opset: int) -> None:
    folder.mkdir()
    model = backbone.load(MODEL)
    weights = () if isinstance(model, QueryTagger) else exported.WEIGHTS  # which timm loads
    for name in (*weights, exported.PREPROCESS):
        shutil.copyfile(MODEL / name, folder / name)
    for path in (THRESHOLDS, CALIBRATION):
        shutil.copyfile(files.require(path), folder / path.name)
    exported.write_tags(tags, limits, folder / exported.SELECTED_TAGS)
    size = preprocess.read(folder / exported.PREPROCESS).size
    onnx_export.write(model, folder / exported.ONNX, size=size, opset=opset)


def compare(folder: Path, part: dataset.Part, limits: Floats, p: params.Params) -> dict[str, Any]:
    """Tag real pictures with the model and through each export; raise where they differ."""
    prepared = preprocess.read(MODEL / exported.PREPROCESS)
    loading = p.evaluate.loading
    model = predict(backbone.load(MODEL), part, prepared, **loading)
    tagger = exported.load(folder, "cpu")
    pictures = [images.open_rgb(part.places[row], prepared.background) for row in model.rows]
    paths: dict[str, Scores] = {}
    if (folder / backbone.WEIGHTS).is_file():
        paths["timm"] = predict(backbone.load(folder), part, prepared, **loading).scores
    paths["onnx"] = np.concatenate([tagger([one]) for one in pictures])
    report: dict[str, Any] = {"pictures": len(pictures)}
    for name, scores in paths.items():
        report[name] = parity.check(name, model.scores, scores, limits, p.export.tolerance)
    return report


if __name__ == "__main__":
    with errors.reported():
        main(params.load())
