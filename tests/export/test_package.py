"""The export folder holds each layout as its tools expect it, with checksums."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.thresholds import Threshold
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.export import checksums, compatibility, formats, graphs, package
from tagger.export.formats import WD14
from tagger.images import decode, preprocess
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.images.resize import FILTERS
from tagger.inference import threshold_choice
from tagger.models import backbone, load_tagger
from tagger.models.runtimes import Device

ODD = [
    Tag(1, "general", 0, 5),
    Tag(2, 'say_"hi",_you', 0, 5),
    Tag(3, "初音ミク", 3, 5),
    Tag(4, "^_^", 0, 5),
]


@pytest.fixture
def odd_export(tmp_path: Path, model_folder: Path) -> Path:
    """An export of a model without ratings and characters, and with odd names."""
    source = tmp_path / "trained" / "tagger"
    shutil.copytree(model_folder, source)
    model = backbone.load_model(model_folder)
    model.reset_classifier(len(ODD))  # type: ignore[operator]
    nn.init.normal_(model.get_classifier().weight, std=0.5)  # type: ignore[operator]
    backbone.save_config(model, preprocess.read(source / "preprocess.json"), source)
    backbone.save_weights(model.state_dict(), source / backbone.WEIGHTS)
    fitted = [Threshold(name, "", 0.5, "category") for name in CATEGORIES.values()]
    files.write_json(tmp_path / "calibration.json", {})
    export_tags = package.ExportTags(ODD, np.full(len(ODD), 0.5), fitted)
    files.write_csv(source / "vocabulary.csv", Tag._fields, ODD)
    with files.atomic_write(tmp_path / "odd") as folder:
        package.write(folder, source, tmp_path / "calibration.json", export_tags, 17)
    return tmp_path / "odd"


def test_missing_ratings_and_characters_have_rows_that_are_never_given(
    odd_export: Path, split: Split
) -> None:
    rows = files.read_csv(odd_export / WD14 / "selected_tags.csv")
    assert [row["category"] for row in rows] == ["9"] * 4 + ["0"] * 3 + ["4"]
    general = [ODD[index].name for index in (0, 1, 3)]
    assert [row["name"] for row in rows][4:] == [*general, "no_character_tags"]
    images = [(each.path, decode.open_rgb(each)) for each in split.locations[:10]]
    tagger = load_tagger(odd_export / WD14, Device("cpu"))
    probabilities = tagger.probabilities([image for _, image in images])
    assert not probabilities[:, [0, 1, 2, 3, 7]].any()
    assert (probabilities[:, 4:7] > 0).all()
    reference = compatibility.load_reference(odd_export)
    report = compatibility.check_compatibility(odd_export, images, reference, 1e-4)
    assert all(agreement.same_tags > 0.9 for agreement in report.tools.values())


def test_graph_resizes_as_pillow_does(model_folder: Path) -> None:
    constants = preprocess.read(model_folder / "preprocess.json")
    square = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
    pixels = torch.from_numpy(square).permute(2, 0, 1).float()
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        for size in (32, 200, 512):
            squares = Preprocess(size, constants.mean, constants.std, interpolation)
            graph = graphs.PreprocessedModel(nn.Identity(), squares)
            image = Image.fromarray(square).resize((size, size), FILTERS[interpolation])
            expected, actual = np.asarray(image), graph.resized(pixels).permute(1, 2, 0).numpy()
            assert np.abs(actual - expected).max() <= 1
            assert (actual == expected).mean() > 0.99


def test_export_has_thresholds_of_categories(export_folder: Path) -> None:
    tagger = load_tagger(export_folder, Device("cpu"))
    choice = threshold_choice.ThresholdChoice(threshold_choice.CATEGORY)
    assert set(threshold_choice.resolve_thresholds(choice, tagger)) == {0.5}
    assert files.read_csv(export_folder / "thresholds.csv")[0]["category"] == "9"


def test_wd14_rows_are_ratings_then_general_then_characters(tags: list[Tag]) -> None:
    rows = formats.wd14_rows(tags)
    categories = [row.tag.category for row in rows]
    assert categories[:4] == [9] * 4
    assert categories[4:] == sorted(categories[4:])
    assert set(categories[4:]) == {0, 4}
    for row in rows:
        assert row.column is None or tags[row.column].name == row.tag.name


def test_checksums_name_the_first_file_that_has_changed(
    export_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(export_folder, copy)
    checksums.write(copy)
    count = checksums.check(copy)
    assert count == len([path for path in copy.rglob("*") if path.is_file()]) - 1
    files.write_text(copy / checksums.CARD, "mine\n")
    assert checksums.check(copy) == count
    with (copy / WD14 / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TaggerError, match=r"wd14/model\.onnx has changed since the export"):
        checksums.check(copy)
    (copy / WD14 / "model.onnx").unlink()
    with pytest.raises(TaggerError, match=r"is incomplete: wd14/model\.onnx is missing"):
        checksums.check(copy)
    (copy / checksums.SUMS).unlink()
    with pytest.raises(TaggerError, match="lacks SHA256SUMS"):
        checksums.check(copy)
