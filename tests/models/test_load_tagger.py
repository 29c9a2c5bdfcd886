"""`load_tagger` reads every layout, and one model gives the same outputs in all of them."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from support import third_party_layouts
from tagger.core import files, thresholds
from tagger.core.errors import TaggerError
from tagger.core.logits import finite_logit
from tagger.core.vocabulary import CATEGORIES, UNKNOWN, Tag
from tagger.images import decode, loader
from tagger.images.dataset import Split
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models import external_preprocess, heads, layouts, load_tagger
from tagger.models.runtimes import Array, Device

CPU = Device("cpu", threads=1)
LAYOUTS = ("export", "training", "wd14", "imgutils", "timm")


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Leave torch with the threads it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(split: Split) -> list[Image.Image]:
    return [decode.open_rgb(location) for location in split.locations[:5]]


@pytest.fixture(scope="module")
def squares(images: list[Image.Image], preprocessing: Preprocess) -> Pixels:
    return np.stack([preprocessing.to_square(image) for image in images])


def run_torch(model: nn.Module, preprocess: Preprocess, squares: Pixels) -> tuple[Array, Array]:
    """Return logits and embeddings."""
    with torch.inference_mode():
        cpu = torch.device("cpu")
        pixels = loader.normalise_squares(torch.from_numpy(squares), cpu, preprocess)
        logits, embeddings = heads.logits_and_embeddings(model, pixels)
        return logits.numpy(), embeddings.numpy()


@pytest.fixture(scope="module")
def logits(model: nn.Module, preprocessing: Preprocess, squares: Pixels) -> Array:
    """What the model gives, (images, tags)."""
    logits = run_torch(model, preprocessing, squares)[0]
    assert np.ptp(logits, axis=0).max() > 0.1  # or any image would do
    return logits


def sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Path,
    export_folder: Path,
    tags: list[Tag],
) -> dict[str, Path]:
    """The same model in each layout."""
    root = tmp_path_factory.mktemp("layouts")
    write_timm = third_party_layouts.write_timm_layout
    return {
        "export": export_folder,
        "training": model_folder,
        "wd14": third_party_layouts.write_wd14_layout(model_folder, tags, root / "wd14"),
        "imgutils": third_party_layouts.write_imgutils_layout(export_folder, tags, root / "im"),
        "timm": write_timm(model_folder, tags, root / "timm"),
        "bgr": write_timm(model_folder, tags, root / "bgr", bgr=True),
    }


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy the folder of a layout, to change it; its parent holds nothing else."""
    return lambda layout: Path(shutil.copytree(folders[layout], tmp_path / "copy" / layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_outputs_of_the_model(
    folders: dict[str, Path], tags: list[Tag], squares: Pixels, logits: Array, layout: str
) -> None:
    tagger = load_tagger(folders[layout], CPU)
    assert [(tag.name, tag.category) for tag in tagger.tags] == [
        (tag.name, tag.category) for tag in tags
    ]
    probabilities, tagger_logits = tagger.run(squares, "probabilities", "logits")
    assert probabilities == pytest.approx(sigmoid(logits), abs=1e-5)
    assert tagger_logits == pytest.approx(logits, abs=1e-3)
    alone = np.concatenate([tagger.run(square[None], "logits")[0] for square in squares])
    assert alone == pytest.approx(tagger_logits, abs=1e-3)


@pytest.mark.parametrize("layout", ["export", "training", "imgutils", "timm"])
def test_every_layout_gives_the_embeddings_of_the_model(
    folders: dict[str, Path],
    model: nn.Module,
    preprocessing: Preprocess,
    squares: Pixels,
    layout: str,
) -> None:
    (embeddings,) = load_tagger(folders[layout], CPU).run(squares, "embeddings")
    expected = run_torch(model, preprocessing, squares)[1]
    assert embeddings == pytest.approx(expected, abs=1e-3)


def test_a_graph_without_an_output_is_refused_or_its_logits_computed(
    folders: dict[str, Path], squares: Pixels
) -> None:
    tagger = load_tagger(folders["wd14"], CPU)
    with pytest.raises(TaggerError, match="has no output for embeddings"):
        tagger.run(squares, "embeddings")
    logits, probabilities = tagger.run(squares, "logits", "probabilities")
    assert np.array_equal(logits, finite_logit(probabilities).astype(np.float32))


def test_an_export_run_by_torch_gives_what_its_graph_gives(
    folders: dict[str, Path], squares: Pixels
) -> None:
    by_torch, by_onnx = (
        load_tagger(folders["export"], CPU, runtime=runtime).run(squares, "probabilities")[0]
        for runtime in ("torch", "onnx")
    )
    assert by_torch == pytest.approx(by_onnx, abs=1e-5)
    assert not np.array_equal(by_torch, by_onnx)


def test_an_export_has_the_ids_and_counts_of_its_tags(
    folders: dict[str, Path], tags: list[Tag]
) -> None:
    assert list(load_tagger(folders["export"], CPU).tags) == tags


def test_an_onnx_file_may_have_another_name(
    copy: Callable[[str], Path], folders: dict[str, Path], squares: Pixels
) -> None:
    folder = copy("export")
    (folder / "model.onnx").rename(folder / "mine.onnx")
    named, usual = (
        load_tagger(path, CPU).run(squares, "probabilities")[0]
        for path in (folder / "mine.onnx", folders["export"])
    )
    assert np.array_equal(named, usual)


@pytest.mark.parametrize("layout", ["wd14", "timm", "export"])
def test_images_are_padded_in_white_if_the_files_name_no_other_colour(
    folders: dict[str, Path], images: list[Image.Image], logits: Array, layout: str
) -> None:
    tagger = load_tagger(folders[layout], CPU)
    assert tagger.probabilities(images) == pytest.approx(sigmoid(logits), abs=1e-5)
    square = tagger.preprocess.to_square(Image.new("RGB", (20, 50), "navy"))
    assert (square.shape, square[0, 0].tolist()) == ((32, 32, 3), [255, 255, 255])


def test_preprocessing_steps_of_imgutils_are_applied(
    folders: dict[str, Path],
    images: list[Image.Image],
    model: nn.Module,
    preprocessing: Preprocess,
) -> None:
    tagger = load_tagger(folders["imgutils"], CPU)
    steps = external_preprocess.read(folders["imgutils"] / "preprocess.json")
    squares = np.stack([steps.to_square(image) for image in images])
    expected = sigmoid(run_torch(model, preprocessing, squares)[0])
    assert tagger.probabilities(images) == pytest.approx(expected, abs=1e-5)
    assert isinstance(tagger.preprocess, external_preprocess.ExternalPreprocess)


def test_a_model_of_bgr_is_right_once_it_is_given_bgr(
    folders: dict[str, Path], squares: Pixels, logits: Array
) -> None:
    tagger = load_tagger(folders["bgr"], CPU)
    assert np.abs(tagger.run(squares, "logits")[0] - logits).max() > 0.05
    (reversed_channels,) = replace(tagger, takes_bgr=True).run(squares, "logits")
    assert reversed_channels == pytest.approx(logits, abs=1e-3)


def test_only_a_timm_folder_does_not_state_its_channel_order(folders: dict[str, Path]) -> None:
    stated = {
        name: load_tagger(folder, CPU).states_channel_order for name, folder in folders.items()
    }
    assert [name for name, states in stated.items() if not states] == ["timm", "bgr"]


def test_weights_beside_a_wd14_graph_are_not_used(
    copy: Callable[[str], Path], folders: dict[str, Path], squares: Pixels, logits: Array
) -> None:
    """SmilingWolf's weights are for BGR, and so is the graph."""
    folder = copy("bgr")
    shutil.copyfile(folders["wd14"] / "model.onnx", folder / "model.onnx")
    assert load_tagger(folder, CPU).run(squares, "logits")[0] == pytest.approx(logits, abs=1e-3)


def test_an_export_without_its_graph_is_run_by_torch(
    copy: Callable[[str], Path], squares: Pixels, logits: Array
) -> None:
    folder = copy("export")
    (folder / "model.onnx").unlink()
    assert load_tagger(folder, CPU).run(squares, "logits")[0] == pytest.approx(logits, abs=1e-3)


def test_an_export_has_its_thresholds_and_others_the_default(
    folders: dict[str, Path], tags: list[Tag]
) -> None:
    linear = np.linspace(0.3, 0.7, len(tags)).tolist()
    assert load_tagger(folders["export"], CPU).thresholds.tolist() == linear
    for layout in ("wd14", "timm"):
        tagger = load_tagger(folders[layout], CPU)
        assert set(tagger.thresholds) == {layouts.DEFAULT_THRESHOLD}


def test_thresholds_of_a_training_folder_lie_beside_it(
    copy: Callable[[str], Path], tags: list[Tag]
) -> None:
    folder = copy("training")
    path = folder.parent / "thresholds.csv"
    assert set(load_tagger(folder, CPU).thresholds) == {layouts.DEFAULT_THRESHOLD}
    row = thresholds.Threshold("all", "", 0.61, "global")
    thresholds.write([row], path)
    assert set(load_tagger(folder, CPU).thresholds) == {0.61}
    per_tag = [
        thresholds.Threshold(CATEGORIES[tag.category], tag.name, threshold, "tag")
        for tag, threshold in zip(tags, np.linspace(0.2, 0.8, len(tags)).tolist(), strict=True)
    ]
    thresholds.write([row, *per_tag], path)
    tag_thresholds = load_tagger(folder, CPU).thresholds.tolist()
    assert tag_thresholds == [threshold.threshold for threshold in per_tag]
    thresholds.write([row, *per_tag[1:]], path)
    with pytest.raises(TaggerError, match="of another vocabulary"):
        load_tagger(folder, CPU)


def error_of(folder: Path) -> str:
    """Return the one line that says why a folder holds no tagger."""
    with pytest.raises(TaggerError) as raised:
        load_tagger(folder, CPU)
    (line,) = str(raised.value).splitlines()
    assert str(folder) in line
    return line


def test_a_folder_without_a_tagger_is_refused_with_the_missing_files(tmp_path: Path) -> None:
    expected = (
        "an export lacks model.onnx, selected_tags.csv, preprocess.json; a trained model lacks "
        "model.safetensors, config.json, preprocess.json, vocabulary.csv."
    )
    for folder in (tmp_path, tmp_path / "none"):
        assert expected in error_of(folder)


@pytest.mark.parametrize(
    ("layout", "name", "reason"),
    [
        ("wd14", "model.onnx", "an export lacks model.onnx, preprocess.json;"),
        ("wd14", "selected_tags.csv", "an export lacks selected_tags.csv, preprocess.json;"),
        ("timm", "model.safetensors", "a trained model lacks model.safetensors, "),
        ("timm", "config.json", "a trained model lacks config.json, "),
        ("timm", "selected_tags.csv", "an export lacks model.onnx, selected_tags.csv, "),
        ("training", "vocabulary.csv", "a trained model lacks vocabulary.csv."),
        ("imgutils", "selected_tags.csv", "an export lacks selected_tags.csv;"),
        ("imgutils", "model.onnx", "an export lacks model.onnx;"),
        ("imgutils", "preprocess.json", "no preprocess.json lies beside it"),
        ("export", "preprocess.json", "no preprocess.json lies beside it"),
    ],
)
def test_a_missing_file_is_named(
    copy: Callable[[str], Path], layout: str, name: str, reason: str
) -> None:
    folder = copy(layout)
    (folder / name).unlink()
    assert reason in error_of(folder)


def without_last_line(content: bytes) -> bytes:
    return b"\n".join(content.rstrip().split(b"\n")[:-1])


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGE: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("wd14", "model.onnx", half, "does not load: "),
    ("imgutils", "model.onnx", lambda _: b"<html>", "does not load: "),
    ("export", "model.onnx", lambda _: b"", "model.onnx"),
    ("timm", "model.safetensors", half, "does not load: "),
    ("training", "model.safetensors", lambda _: b"no weights", "does not load: "),
    (
        *("timm", "config.json"),
        lambda b: json.dumps({"architecture": json.loads(b)["architecture"]}).encode(),
        "does not say what the model takes (KeyError('pretrained_cfg'))",
    ),
    ("timm", "config.json", lambda _: b"[]", "does not say what the model takes"),
    ("timm", "config.json", lambda _: b"{", "does not say what the model takes"),
    ("wd14", "selected_tags.csv", without_last_line, "selected_tags.csv has"),
    ("export", "selected_tags.csv", without_last_line, "selected_tags.csv has"),
    ("training", "vocabulary.csv", without_last_line, "vocabulary.csv has"),
    ("timm", "selected_tags.csv", lambda b: b.split(b"\n")[0], "lists no tags"),
    ("wd14", "selected_tags.csv", lambda _: b"id\n1\n2\n", "line 2 has no 'name'"),
    (
        *("export", "selected_tags.csv"),
        lambda b: b.replace(b"best_threshold", b"threshold"),
        "selected_tags.csv: no best_threshold",
    ),
    (
        *("export", "selected_tags.csv"),
        lambda b: b.replace(b",0.3\n", b",low\n"),
        "selected_tags.csv: no best_threshold",
    ),
    (
        *("export", "selected_tags.csv"),
        lambda b: b.replace(b",0.3\n", b",\n"),
        "selected_tags.csv: no best_threshold",
    ),
    ("export", "preprocess.json", lambda _: b"{}", "preprocess.json has steps"),
    (
        *("imgutils", "preprocess.json"),
        lambda b: b.replace(b"center_crop", b"five_crop"),
        "'five_crop' is none of",
    ),
    (
        *("imgutils", "preprocess.json"),
        lambda b: b.replace(b"32", b"33"),
        "the model does not take squares of 33 px",
    ),
]


@pytest.mark.parametrize(("layout", "name", "change", "reason"), DAMAGE)
def test_a_damaged_file_is_refused_by_name(
    copy: Callable[[str], Path],
    layout: str,
    name: str,
    change: Callable[[bytes], bytes],
    reason: str,
) -> None:
    folder = copy(layout)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))
    assert (folder / name).read_bytes() != content
    assert reason in error_of(folder)


def test_a_config_for_oblong_images_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("timm")
    config = files.read_json(folder / "config.json")
    config["pretrained_cfg"]["input_size"] = [3, 32, 48]
    files.write_json(folder / "config.json", config)
    assert "48 x 32 pixels" in error_of(folder)


def test_a_graph_with_channels_first_is_no_wd14(
    model_folder: Path, tags: list[Tag], tmp_path: Path
) -> None:
    folder = third_party_layouts.write_wd14_layout(
        model_folder, tags, tmp_path / "first", channels_last=False
    )
    expected = "takes ['batch', 3, 32, 32], not (batch, size, size, 3) as in the WD14 layout"
    assert expected in error_of(folder)


def test_without_cuda_the_cpu_is_used_with_a_warning(
    folders: dict[str, Path],
    squares: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = load_tagger(folders["export"], Device("cuda"))
    assert "CUDA is not available, going on with the CPU." in caplog.messages
    expected = load_tagger(folders["export"], Device("cpu")).run(squares, "probabilities")
    assert np.array_equal(on_cpu.run(squares, "probabilities"), expected)
    assert on_cpu.device == "cpu"


TagsOf = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def tags_of(run_infer: Callable[..., int], image_folder: Path) -> TagsOf:
    """Return the tags that infer.py gives to image a.png, by category."""

    def tags_of(model: Path, threshold: float) -> dict[str, dict[str, float]]:
        options = ("--output", "json", "--model", model, "--threshold", threshold)
        assert run_infer(image_folder / "a.png", *options) == 0
        (content,) = json.loads(Path("tags.json").read_text(encoding="utf-8"))
        tags: dict[str, dict[str, float]] = content["tags"]
        return tags

    return tags_of


@pytest.mark.parametrize("path", ["wd14", "wd14/model.onnx", "timm", "training"])
def test_infer_tags_alike_with_every_layout(
    tags_of: TagsOf, folders: dict[str, Path], path: str
) -> None:
    layout, _, name = path.partition("/")
    expected = tags_of(folders["export"], 0.45)
    layout_tags = tags_of(folders[layout] / name, 0.45)
    assert sum(map(len, expected.values())) > 5
    assert layout_tags.keys() == expected.keys()
    for category, inside in expected.items():
        assert layout_tags[category] == pytest.approx(inside, abs=1e-4)


def test_tags_without_a_known_category_are_general(
    tags_of: TagsOf, copy: Callable[[str], Path], tags: list[Tag]
) -> None:
    folder = copy("wd14")
    files.write_csv(folder / "selected_tags.csv", ("name",), [(tag.name,) for tag in tags])
    assert {tag.category for tag in layouts.read_tags(folder)} == {UNKNOWN}
    assert tags_of(folder, 0)["general"].keys() == {tag.name for tag in tags}
