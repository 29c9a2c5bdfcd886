"""Every tool that loads an export gives the tags of the model, or it is told which does not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.thresholds import Threshold
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.export import checksums, compatibility, formats, graphs, package, quantize, tools
from tagger.export.compatibility import NamedImage
from tagger.export.formats import KOHYA, TAG_MAPPING, WD14
from tagger.images import decode, preprocess
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.images.resize import FILTERS
from tagger.inference import limits
from tagger.models import backbone, layouts, load_tagger, runtimes
from tagger.models.runtimes import Device


@pytest.fixture
def some(split: Split) -> list[NamedImage]:
    return [(place.path, decode.open_rgb(place)) for place in split.locations[:10]]


@pytest.fixture
def copy(export_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(export_folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_tool_gives_the_tags_of_the_model(
    export_folder: Path, model_folder: Path, some: list[NamedImage]
) -> None:
    found = compatibility.check_compatibility(
        export_folder, some, load_tagger(model_folder, Device("cpu")), 1e-4
    )
    assert found.images == 10
    assert set(found.tools) == {client.name for client in tools.TOOLS}
    for name, one in found.tools.items():
        assert one.same_tags > (0.9 if one.resizes else 0.9999), name
        assert one.resizes or one.largest_difference < 1e-4


def test_an_export_is_measured_by_its_own_weights_where_there_is_nothing_else(
    export_folder: Path, copy: Path, some: list[NamedImage]
) -> None:
    found = compatibility.check_compatibility(
        export_folder, some, compatibility.load_reference(export_folder), 1e-4
    )
    assert found.tools["timm"].largest_difference == 0
    for name in layouts.WEIGHTS:
        (copy / name).unlink()
    found = compatibility.check_compatibility(copy, some, compatibility.load_reference(copy), 1e-4)
    assert "timm" not in found.tools
    assert found.tools["infer"].largest_difference == 0


def swap(path: Path, first: str, second: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert first in text and second in text
    text = text.replace(first, "\0").replace(second, first).replace("\0", second)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (f"{WD14}/selected_tags.csv", "imgutils wd14"),
        (f"{KOHYA}/{TAG_MAPPING}", "sd-scripts kohya"),
    ],
)
def test_two_tags_in_each_others_place_are_noticed(
    copy: Path, model_folder: Path, some: list[NamedImage], tags: list[Tag], file: str, told: str
) -> None:
    one, other = [tag.name for tag in tags if tag.category == 0][:2]
    left, right = (",", ",") if file.endswith("csv") else ('"', '"')
    swap(copy / file, f"{left}{one}{right}", f"{left}{other}{right}")
    with pytest.raises(TaggerError, match=rf"\A{told}.*has the confidence .* by the model"):
        compatibility.check_compatibility(
            copy, some, load_tagger(model_folder, Device("cpu")), 1e-4
        )


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (f"{WD14}/selected_tags.csv", lambda text: text.replace("tag_id", "id", 1), "begins with"),
        (f"{WD14}/selected_tags.csv", lambda text: text + "1,more,4,0\n", "outputs"),
        (f"{WD14}/model.onnx", None, "model.onnx"),
        (
            f"{KOHYA}/{TAG_MAPPING}",
            lambda text: text.replace('"General"', '"Common"'),
            "no mapping",
        ),
        (f"{KOHYA}/{TAG_MAPPING}", lambda text: "[]", "no mapping"),
        ("categories.json", lambda text: "[]", "lacks the category"),
        ("preprocess.json", lambda text: "{}", "preprocess.json"),
        ("model.safetensors", lambda text: "damaged", "does not load"),
    ],
)
def test_what_a_tool_would_not_load_is_one_line(
    copy: Path,
    model_folder: Path,
    some: list[NamedImage],
    file: str,
    change: Callable[[str], str] | None,
    told: str,
) -> None:
    if change is None:
        (copy / file).unlink()
    else:
        text = (copy / file).read_bytes().decode("utf-8", "replace")
        (copy / file).write_text(change(text), encoding="utf-8")
    with pytest.raises(TaggerError, match=rf"\A[^\n]*{told}[^\n]*\Z"):
        compatibility.check_compatibility(
            copy, some, load_tagger(model_folder, Device("cpu")), 1e-4
        )


ODD = [
    Tag(1, "general", 0, 5),
    Tag(2, 'say_"hi",_you', 0, 5),
    Tag(3, "初音ミク", 3, 5),
    Tag(4, "^_^", 0, 5),
]


@pytest.fixture
def odd(tmp_path: Path, model_folder: Path) -> Path:
    """An export of a model without ratings and characters, and with odd names."""
    source = tmp_path / "trained" / "tagger"
    shutil.copytree(model_folder, source)
    model = backbone.load_model(model_folder)
    model.reset_classifier(len(ODD))  # type: ignore[operator]
    nn.init.normal_(model.get_classifier().weight, std=0.5)  # type: ignore[operator]
    prepared = preprocess.read(source / "preprocess.json")
    backbone.save_config(model, prepared, source)
    backbone.save_weights(model.state_dict(), source / backbone.WEIGHTS)
    fitted = [Threshold(n, "", 0.5, 1, 0.5, 0.5, 0.5, "f1") for n in CATEGORIES.values()]
    files.write_json(tmp_path / "calibration.json", {})
    names = package.ExportTags(ODD, np.full(len(ODD), 0.5), fitted)
    files.write_csv(source / "vocabulary.csv", Tag._fields, ODD)
    with files.atomic_write(tmp_path / "odd") as folder:
        package.write(folder, source, tmp_path / "calibration.json", names, 17)
    return tmp_path / "odd"


def test_without_ratings_and_characters_tools_are_given_rows_that_are_never_there(
    odd: Path, some: list[NamedImage]
) -> None:
    rows = files.read_csv(odd / WD14 / "selected_tags.csv")
    assert [row["category"] for row in rows] == ["9"] * 4 + ["0"] * 3 + ["4"]
    own = [ODD[place].name for place in (0, 1, 3)]
    assert [row["name"] for row in rows][4:] == [*own, "no_character_tags"]
    tagger = load_tagger(odd / WD14, Device("cpu"))
    found = tagger.probabilities([picture for _, picture in some])
    assert not found[:, [0, 1, 2, 3, 7]].any()
    assert (found[:, 4:7] > 0).all()
    told = compatibility.check_compatibility(odd, some, compatibility.load_reference(odd), 1e-4)
    assert all(one.same_tags > 0.9 for one in told.tools.values())


def test_the_graph_resizes_as_pillow_does(model_folder: Path) -> None:
    prepared = preprocess.read(model_folder / "preprocess.json")

    square = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        for size in (32, 200, 512):
            one = Preprocess(size, prepared.mean, prepared.std, interpolation)
            graph = graphs.PreprocessedModel(nn.Identity(), one)
            expected = np.asarray(
                Image.fromarray(square).resize((size, size), FILTERS[interpolation])
            )
            pixels = torch.from_numpy(square).permute(2, 0, 1).float()
            found = graph.resized(pixels).permute(1, 2, 0).numpy()
            assert np.abs(found - expected).max() <= 1
            assert (found == expected).mean() > 0.99


def test_the_threshold_of_a_category_is_read_from_an_export(export_folder: Path) -> None:
    tagger = load_tagger(export_folder, Device("cpu"))
    assert set(limits.resolve_thresholds(limits.ThresholdChoice(limits.CATEGORY), tagger)) == {0.5}
    assert files.read_csv(export_folder / "thresholds.csv")[0]["category"] == "9"


def test_a_folder_that_is_not_whole_or_not_as_it_was_is_told_by_file(copy: Path) -> None:
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


def test_rows_of_the_wd14_layout_are_in_its_order(tags: list[Tag]) -> None:
    rows = formats.wd14_rows(tags)
    codes = [row.tag.category for row in rows]
    assert codes[:4] == [9] * 4
    assert codes[4:] == sorted(codes[4:])
    assert set(codes[4:]) == {0, 4}
    for row in rows:
        assert row.column is None or tags[row.column].name == row.tag.name


def test_lighter_weights_are_smaller_and_say_about_the_same(
    export_folder: Path, tmp_path: Path, some: list[NamedImage]
) -> None:
    source = export_folder / "model.onnx"
    tagger = load_tagger(export_folder, Device("cpu"))
    inputs = np.stack([tagger.preprocess(picture) for _, picture in some])

    def write(name: str) -> bytes:
        path = tmp_path / f"model_{name}.onnx"
        if name == "fp16":
            quantize.to_fp16(source, path)
        else:
            quantize.to_int8(source, path, [inputs])
        return path.read_bytes()

    for name, most in (("fp16", 0.01), ("int8", 0.2)):
        path, first = tmp_path / f"model_{name}.onnx", write(name)
        assert write(name) == first
        assert len(first) < source.stat().st_size
        graph = onnx.load(path)
        assert max(entry.version for entry in graph.opset_import if not entry.domain) <= 17
        for count in (1, 3, 8):
            session = runtimes.open_session(path, Device("cpu"))
            found = session.run(["prediction"], {"input": inputs[:count]})[0]
            full = tagger.probabilities([picture for _, picture in some[:count]])
            assert np.abs(found - full).mean() < most
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model_fp16.onnx",
        "model_int8.onnx",
    ]
    with pytest.raises(TaggerError, match="no validation image"):
        quantize.to_int8(source, tmp_path / "none.onnx", [])
    assert not (tmp_path / "none.onnx").exists()
    assert set(quantize.measure_throughput({"a": source}, inputs, 1, rounds=1)) == {"a"}
