"""Taggers of others say what their models do, whatever they are packed in."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from support import third_party_layouts
from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import UNKNOWN, Tag
from tagger.images import decode, loader
from tagger.images.dataset import Split
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models import external_preprocess, layouts, load
from tagger.models.runtimes import Device

CPU = Device("cpu", threads=1)
Numbers = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave torch with the threads it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def opened(split: Split) -> list[Image.Image]:
    return [decode.open_rgb(place) for place in split.locations[:5]]


@pytest.fixture(scope="module")
def squares(opened: list[Image.Image], preprocessing: Preprocess) -> Pixels:
    return np.stack([preprocessing.to_square(picture) for picture in opened])


def by_torch(model: nn.Module, prepared: Preprocess, squares: Pixels) -> Numbers:
    with torch.inference_mode():
        inputs = loader.normalise_squares(torch.from_numpy(squares), torch.device("cpu"), prepared)
        return np.asarray(model(inputs).sigmoid())


@pytest.fixture(scope="module")
def expected(model: nn.Module, preprocessing: Preprocess, squares: Pixels) -> Numbers:
    return by_torch(model, preprocessing, squares)


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Path,
    export_folder: Path,
    tags: list[Tag],
) -> dict[str, Path]:
    """The same model in each layout."""
    made = tmp_path_factory.mktemp("layouts")
    return {
        "wd14": third_party_layouts.write_wd14_layout(model_folder, tags, made / "wd14"),
        "imgutils": third_party_layouts.write_imgutils_layout(
            export_folder, tags, made / "imgutils"
        ),
        "timm": third_party_layouts.write_timm_layout(model_folder, tags, made / "timm"),
        "bgr": third_party_layouts.write_timm_layout(model_folder, tags, made / "bgr", bgr=True),
        "export": export_folder,
    }


@pytest.mark.parametrize("layout", ["wd14", "imgutils", "timm", "export"])
def test_a_layout_says_what_the_model_says(
    folders: dict[str, Path], tags: list[Tag], squares: Pixels, expected: Numbers, layout: str
) -> None:
    tagger = layouts.load(folders[layout], use=CPU)
    assert [tag.name for tag in tagger.tags] == [tag.name for tag in tags]
    assert [tag.category for tag in tagger.tags] == [tag.category for tag in tags]
    assert tagger.runtime(squares, False).probabilities == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.02  # or any picture would do


@pytest.mark.parametrize("layout", ["wd14", "timm", "export"])
def test_pictures_are_padded_in_white_where_nothing_else_is_said(
    folders: dict[str, Path], opened: list[Image.Image], expected: Numbers, layout: str
) -> None:
    tall = Image.new("RGB", (20, 50), "navy")
    tagger = layouts.load(folders[layout], use=CPU)
    assert tagger(opened) == pytest.approx(expected, abs=1e-5)
    square = tagger.preprocess.to_square(tall)
    assert (square.shape, square[0, 0].tolist()) == ((32, 32, 3), [255, 255, 255])


def test_stages_of_others_are_applied(
    folders: dict[str, Path], opened: list[Image.Image], model: nn.Module, preprocessing: Preprocess
) -> None:
    tagger = layouts.load(folders["imgutils"], use=CPU)
    other = external_preprocess.read(folders["imgutils"] / "preprocess.json")
    squares = np.stack([other.to_square(picture) for picture in opened])
    assert tagger(opened) == pytest.approx(by_torch(model, preprocessing, squares), abs=1e-5)
    assert isinstance(tagger.preprocess, external_preprocess.ExternalPreprocess)


def test_a_tagger_for_bgr_is_right_once_its_channels_are_reversed(
    folders: dict[str, Path], squares: Pixels, expected: Numbers
) -> None:
    tagger = layouts.load(folders["bgr"], use=CPU)
    wrong = tagger.runtime(squares, False).probabilities
    assert np.abs(wrong - expected).max() > 0.01
    right = layouts.with_channels_reversed(tagger).runtime(squares, False).probabilities
    assert right == pytest.approx(expected, abs=1e-5)


def test_only_weights_without_a_word_leave_the_channels_open(folders: dict[str, Path]) -> None:
    says = {name: layouts.says_channels(folder) for name, folder in folders.items()}
    expected = {"wd14": True, "imgutils": True, "timm": False, "bgr": False, "export": True}
    assert says == expected


def test_a_folder_of_wd14_with_weights_beside_is_taken_for_one(
    folders: dict[str, Path], tmp_path: Path, squares: Pixels, expected: Numbers
) -> None:
    """As SmilingWolf's are, whose weights are for BGR, and whose graph is, too."""
    folder = Path(shutil.copytree(folders["bgr"], tmp_path / "both"))
    shutil.copyfile(folders["wd14"] / "model.onnx", folder / "model.onnx")
    tagger = layouts.load(folder, use=CPU)
    assert tagger.runtime(squares, False).probabilities == pytest.approx(expected, abs=1e-5)


def without(source: Path, folder: Path, *names: str) -> Path:
    shutil.copytree(source, folder)
    for name in names:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("layout", "gone", "reason"),
    [
        ("wd14", ["model.onnx"], "has neither model.onnx nor model.safetensors and config.json"),
        ("wd14", ["selected_tags.csv"], "has neither vocabulary.csv nor selected_tags.csv"),
        ("timm", ["model.safetensors"], "has neither model.onnx nor model.safetensors and config"),
        ("timm", ["config.json"], "has neither model.onnx nor model.safetensors and config.json"),
        ("timm", ["selected_tags.csv"], "has neither vocabulary.csv nor selected_tags.csv"),
        ("imgutils", ["selected_tags.csv"], "has neither vocabulary.csv nor selected_tags.csv"),
        ("imgutils", ["preprocess.json"], "not (batch, size, size, 3) as in the WD14 layout"),
        ("imgutils", ["model.onnx"], "has neither model.onnx nor model.safetensors and config"),
    ],
)
def test_what_a_folder_lacks_is_told_in_one_line(
    folders: dict[str, Path], tmp_path: Path, layout: str, gone: list[str], reason: str
) -> None:
    folder = without(folders[layout], tmp_path / layout, *gone)
    assert reason in refused(folder)


def test_a_folder_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    assert "is no tagger: it has neither" in refused(tmp_path / "none")
    assert "is no tagger: it has neither" in refused(tmp_path)


def refused(folder: Path) -> str:
    """Return the one line that tells why a folder is no tagger."""
    with pytest.raises(TaggerError) as raised:
        layouts.load(folder, use=CPU)
    (line,) = str(raised.value).splitlines()
    assert str(folder) in line
    return line


DAMAGE: dict[str, tuple[str, str, Callable[[bytes], bytes], str]] = {
    "half a graph": ("wd14", "model.onnx", lambda b: b[: len(b) // 2], "does not load: "),
    "no graph": ("imgutils", "model.onnx", lambda _: b"<html>", "does not load: "),
    "half the weights": (
        *("timm", "model.safetensors"),
        lambda b: b[: len(b) // 2],
        "does not load: ",
    ),
    "no constants": (
        *("timm", "config.json"),
        lambda b: json.dumps({"architecture": json.loads(b)["architecture"]}).encode(),
        "does not say what the model takes (KeyError('pretrained_cfg'))",
    ),
    "a list": ("timm", "config.json", lambda _: b"[]", "does not say what the model takes"),
    "no json": ("timm", "config.json", lambda _: b"{", "does not say what the model takes"),
    "a tag less": (
        *("wd14", "selected_tags.csv"),
        lambda b: b"\n".join(b.rstrip().split(b"\n")[:-1]),
        "outputs",
    ),
    "no tags": ("timm", "selected_tags.csv", lambda b: b.split(b"\n")[0], "lists no tags"),
    "no names": ("wd14", "selected_tags.csv", lambda _: b"id\n1\n2\n", "line 2 has no 'name'"),
    "strange stages": (
        *("imgutils", "preprocess.json"),
        lambda b: b.replace(b"center_crop", b"five_crop"),
        "'five_crop' is none of",
    ),
    "another size": (
        *("imgutils", "preprocess.json"),
        lambda b: b.replace(b"32", b"33"),
        "the model does not take squares of 33 px",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_told_in_one_line(
    folders: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    layout, name, change, reason = DAMAGE[damage]
    folder = Path(shutil.copytree(folders[layout], tmp_path / layout))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))
    assert (folder / name).read_bytes() != content
    assert reason in refused(folder)


def test_a_config_for_oblong_pictures_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["timm"], tmp_path / "timm"))
    config = files.read_json(folder / "config.json")
    config["pretrained_cfg"]["input_size"] = [3, 32, 48]
    files.write_json(folder / "config.json", config)
    assert "48 x 32 pixels" in refused(folder)


Said = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def said(run_infer: Callable[..., int], image_folder: Path) -> Said:
    """Return what infer.py says of picture a.png, by category."""

    def said(model: Path, *arguments: object) -> dict[str, dict[str, float]]:
        assert (
            run_infer(image_folder / "a.png", "--output", "json", "--model", model, *arguments) == 0
        )
        (content,) = json.loads(Path("tags.json").read_text(encoding="utf-8"))
        found: dict[str, dict[str, float]] = content["tags"]
        return found

    return said


@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_infer_tags_with_a_folder_of_wd14_as_with_our_export(
    said: Said, folders: dict[str, Path], name: str
) -> None:
    ours = said(folders["export"], "--threshold", 0.45)
    theirs = said(folders["wd14"] / name, "--threshold", 0.45)
    assert sum(map(len, ours.values())) > 5
    assert {key: list(inside) for key, inside in theirs.items()} == {
        key: list(inside) for key, inside in ours.items()
    }
    for category, inside in ours.items():
        assert theirs[category] == pytest.approx(inside, abs=1e-4)


def test_infer_gives_general_tags_where_categories_are_not_known(
    said: Said, folders: dict[str, Path], tags: list[Tag], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["wd14"], tmp_path / "wd14"))
    files.write_csv(folder / "selected_tags.csv", ("name",), [(tag.name,) for tag in tags])
    assert {tag.category for tag in layouts.load(folder, use=CPU).tags} == {UNKNOWN}
    assert {tag.category for tag in load.load_tagger(folder, "cpu", CPU).tags} == {0}
    found = said(folder, "--threshold", 0)
    assert found["general"].keys() == {tag.name for tag in tags}


def test_a_graph_with_channels_first_is_no_wd14(
    model_folder: Path, tags: list[Tag], tmp_path: Path
) -> None:
    folder = third_party_layouts.write_wd14_layout(
        model_folder, tags, tmp_path / "first", channels_last=False
    )
    told = refused(folder)
    assert "takes ['batch', 3, 32, 32], not (batch, size, size, 3) as in the WD14 layout." in told


def test_a_graph_of_wd14_has_no_embeddings(folders: dict[str, Path], squares: Pixels) -> None:
    tagger = layouts.load(folders["wd14"], use=CPU)
    with pytest.raises(TaggerError, match="has no output for embeddings"):
        tagger.runtime(squares, True)
