"""Every tool that loads an export gives the model's tags; the first difference is an error."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.emulated_tools import emulated_tools
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.export import compatibility
from tagger.export.compatibility import NamedImage
from tagger.export.formats import KOHYA, TAG_MAPPING, WD14
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import layouts, load_tagger
from tagger.models.runtimes import Device
from tagger.models.tagger import Tagger


@pytest.fixture(scope="module")
def images(split: Split) -> list[NamedImage]:
    return [(location.path, decode.open_rgb(location)) for location in split.locations[:10]]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Tagger:
    return load_tagger(model_folder, Device("cpu"))


@pytest.fixture
def copy(export_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(export_folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_tool_gives_the_tags_of_the_model(
    export_folder: Path, model: Tagger, images: list[NamedImage]
) -> None:
    report = compatibility.check_compatibility(export_folder, images, model, 1e-4)
    assert report.images == 10
    assert list(report.tools) == ["infer", "timm", "imgutils", "wd14", "kohya"]
    for name, agreement in report.tools.items():
        assert agreement.same_tags > (0.9 if agreement.resizes else 0.9999), name
        assert agreement.resizes or agreement.largest_difference < 1e-4
    summary = report.summary(min_agreement=1.1)
    assert summary.startswith("Of the model's tags these tools give: infer 100.0%, timm 100.0%, ")
    assert "5 tools agree with the model on 10 images: confidences within " in summary
    assert "these tools give" not in report.summary(min_agreement=0)


def test_emulated_tools_give_the_tags_of_the_model(
    export_folder: Path, model: Tagger, images: list[NamedImage]
) -> None:
    export, tools = load_tagger(export_folder, Device("cpu")), emulated_tools(export_folder)
    report = compatibility.compare(tools, images, model, export, 1e-4)
    assert len(report.tools) == 3
    for name, agreement in report.tools.items():
        assert agreement.same_tags > 0.9, name


def test_export_without_its_model_is_compared_with_its_own_weights(
    export_folder: Path, copy: Path, images: list[NamedImage]
) -> None:
    reference = compatibility.load_reference(export_folder)
    report = compatibility.check_compatibility(export_folder, images[:2], reference, 1e-4)
    assert report.tools["timm"].largest_difference == 0
    for name in layouts.WEIGHTS:
        (copy / name).unlink()
    reference = compatibility.load_reference(copy)
    report = compatibility.check_compatibility(copy, images[:2], reference, 1e-4)
    assert "timm" not in report.tools
    assert report.tools["infer"].largest_difference == 0


def swap(path: Path, first: str, second: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert first in text and second in text
    text = text.replace(first, "\0").replace(second, first).replace("\0", second)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "tool"), [(f"{WD14}/selected_tags.csv", "wd14"), (f"{KOHYA}/{TAG_MAPPING}", "kohya")]
)
def test_exchanged_tags_are_an_error(
    copy: Path, model: Tagger, images: list[NamedImage], tags: list[Tag], file: str, tool: str
) -> None:
    first, second = [tag.name for tag in tags if tag.category == 0][:2]
    left, right = (",", ",") if file.endswith("csv") else ('"', '"')
    swap(copy / file, f"{left}{first}{right}", f"{left}{second}{right}")
    with pytest.raises(TaggerError, match=rf"\A{tool}: .*has the confidence .* by the model"):
        compatibility.check_compatibility(copy, images, model, 1e-4)


def first_rows_swapped(text: str) -> str:
    header, first, *rows = text.splitlines()
    return "\n".join([header, *rows, first]) + "\n"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (f"{WD14}/selected_tags.csv", lambda text: text.replace("tag_id", "id", 1), "begins with"),
        (f"{WD14}/selected_tags.csv", lambda text: text + "1,more,4,0\n", "outputs"),
        (f"{WD14}/selected_tags.csv", first_rows_swapped, "not four ratings, then general"),
        (f"{WD14}/model.onnx", None, "model.onnx"),
        (f"{KOHYA}/{TAG_MAPPING}", lambda text: text.replace('"General"', '"Odd"'), "no mapping"),
        (f"{KOHYA}/{TAG_MAPPING}", lambda text: "[]", "no mapping"),
        ("categories.json", lambda text: "[]", "lacks the category"),
        ("preprocess.json", lambda text: "{}", "preprocess.json"),
        ("model.safetensors", lambda text: "damaged", "does not load"),
    ],
)
def test_unloadable_file_is_one_error_line(
    copy: Path,
    model: Tagger,
    images: list[NamedImage],
    file: str,
    change: Callable[[str], str] | None,
    message: str,
) -> None:
    if change is None:
        (copy / file).unlink()
    else:
        text = (copy / file).read_bytes().decode("utf-8", "replace")
        (copy / file).write_text(change(text), encoding="utf-8")
    with pytest.raises(TaggerError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        compatibility.check_compatibility(copy, images, model, 1e-4)
