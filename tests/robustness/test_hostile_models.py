"""Models by someone who means harm: one line, little memory, nothing run, in all that loads them.

Export folders by infer.py; weights and settings of trained models by the loaders of all stages.
"""

import json
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from support import processes
from support.hostile_models import (
    BULK,
    Change,
    MaliciousPickle,
    edit_file,
    edit_preprocess_stage,
    edit_tag_row,
    make_huge,
    replace_by_link,
    replace_content,
    replace_graph,
    weights_by_link,
    weights_outside_folder,
)
from support.processes import FinishedProcess
from tagger.core.errors import TaggerError
from tagger.images.dataset import Split
from tagger.models import backbone, checkpoints, external_preprocess, load_tagger
from tagger.models.runtimes import Device

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
MEMORY = 200  # MB that infer.py may take for a folder that it refuses, beyond its modules


@pytest.fixture
def hostile(export_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export_folder, tmp_path / "hostile"))


@pytest.fixture
def trained(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "trained"))


class Tagging(NamedTuple):
    process: FinishedProcess
    megabytes: int


def tag(model: Path, split: Split, work: Path) -> Tagging:
    """Tag an image by infer.py in an empty folder."""
    work.mkdir()
    script, memory = ROOT / "tests/support/limited_memory.py", work.with_name("memory")
    words = (split.locations[0].path, "--model", model, "--output", "txt")
    command = (script, memory, ROOT / "stages/infer.py", *words, "--output-dir", work / "out")
    process = processes.run(work, *command)
    return Tagging(process, int(memory.read_text()))


def endless_graph(folder: Path) -> None:
    """Make the graph endless, and leave no other weights."""
    replace_by_link("model.onnx", "/dev/zero")(folder)
    (folder / "model.safetensors").unlink()


REFUSED: dict[str, tuple[Change, str]] = {
    "weights beside the folder": (replace_graph(at="../secret"), "model.onnx does not load"),
    "weights in /etc": (replace_graph(at="../" * 20 + "etc/passwd"), "model.onnx does not load"),
    "weights by a whole path": (weights_outside_folder, "model.onnx does not load"),
    "weights by a link": (weights_by_link, "model.onnx does not load"),
    "weights without an end": (replace_graph(at="/dev/zero"), "model.onnx does not load"),
    "huge weights": (replace_graph(shape=[3, 2**40]), "model.onnx does not load"),
    "weights of less than nothing": (replace_graph(shape=[3, -2]), "model.onnx does not load"),
    "a graph as long as a disk": (make_huge("model.onnx"), "model.onnx does not load"),
    "a graph without an end": (endless_graph, "no tagger"),
    "more outputs": (replace_graph(more=1), "tags, the model"),
    "fewer outputs": (replace_graph(more=-1), "tags, the model"),
    "no numbers": (replace_graph(value=np.nan), "the outputs of the model are not finite"),
    "a huge square": (edit_preprocess_stage(0, size=[10**9, 10**9]), "a side of 1000000000 pixels"),
    "a large square": (edit_preprocess_stage(0, size=[10**5, 10**5]), "a side of 100000 pixels"),
    "a square beyond numbers": (
        edit_preprocess_stage(0, size=[10**30, 10**30]),
        "pixels, where 1 to 4096 are",
    ),
    "a square of less than nothing": (
        edit_preprocess_stage(0, size=[-8, -8]),
        "a side of -8 pixels",
    ),
    "no colour": (
        edit_preprocess_stage(0, background_color=[10**9, -1, 0]),
        "a colour (1000000000, -1, 0)",
    ),
    "a division by nothing": (
        edit_preprocess_stage(-1, std=[0, 0, 0]),
        "preprocess.json has steps that are not known here",
    ),
    "a mean that is none": (
        edit_preprocess_stage(-1, mean=[np.nan] * 3),
        "preprocess.json has steps that are not known here",
    ),
    "deep nesting": (
        replace_content("preprocess.json", b"[" * 10**6),
        "preprocess.json cannot be read",
    ),
    "JSON as long as a disk": (make_huge("preprocess.json"), "preprocess.json has 8.6 GB"),
    "tags as long as a disk": (make_huge("selected_tags.csv"), "selected_tags.csv has 8.6 GB"),
    "tags without an end": (
        replace_by_link("selected_tags.csv", "/dev/zero"),
        "lacks selected_tags.csv",
    ),
    "other lines": (
        replace_by_link("selected_tags.csv", "/etc/passwd"),
        "selected_tags.csv: line 2",
    ),
    "no UTF-8": (edit_file("selected_tags.csv", lambda d: d + b"\xff,1\n"), "'utf-8' codec"),
    "a quote without an end": (
        edit_file("selected_tags.csv", lambda d: d + b'1,"'),
        "cannot be read",
    ),
    "a name of a megabyte": (edit_tag_row("a" * 10**6), "field larger than field limit"),
    "a name of two lines": (
        edit_tag_row("smile\n1girl"),
        r"'smile\n1girl', has control characters",
    ),
    "a name that ends a text": (edit_tag_row("smile\0"), r"'smile\x00', has control characters"),
    "a name for a terminal": (edit_tag_row("\x1b[2J"), r"'\x1b[2J', has control characters"),
    "a threshold that is none": (edit_tag_row("smile", "nan"), "no best_threshold on every line"),
}


@pytest.mark.parametrize("harm", REFUSED)
def test_infer_refuses_a_hostile_folder_in_one_line_and_little_memory(
    hostile: Path, split: Split, tmp_path: Path, harm: str
) -> None:
    change, message = REFUSED[harm]
    change(hostile)
    tagging = tag(hostile, split, tmp_path / "work")
    assert tagging.process.output.splitlines() == [tagging.process.error_line]
    assert message in tagging.process.error_line
    assert tagging.megabytes < MEMORY
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "=cmd|' /C calc'!A1", "a" * 1000])
def test_a_tag_name_is_text_and_never_a_path(
    hostile: Path, split: Split, tmp_path: Path, name: str
) -> None:
    edit_tag_row(name)(hostile)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert tag(hostile, split, tmp_path / "work").process.success_output
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after - before == {tmp_path / "work/out/0000.txt", tmp_path / "memory"}
    caption = (tmp_path / "work/out/0000.txt").read_text(encoding="utf-8")
    assert name in caption.rstrip("\n").split(", ")
    assert not Path("/etc/x").exists()


def test_links_to_the_files_of_a_cache_are_followed(
    hostile: Path, export_folder: Path, split: Split, tmp_path: Path
) -> None:
    for name in ("model.onnx", "selected_tags.csv", "preprocess.json"):
        replace_by_link(name, str(export_folder / name))(hostile)
    assert tag(hostile, split, tmp_path / "work").process.success_output


def test_non_finite_scores_of_an_image_end_the_tagging_in_one_line(
    hostile: Path, split: Split, tmp_path: Path
) -> None:
    """The model is tried with a black image when it loads; this one overflows on bright ones."""
    replace_graph(value=3e38, end="Identity")(hostile)
    edit_preprocess_stage(-1, mean=[0, 0, 0], std=[1e-3] * 3)(hostile)
    process = tag(hostile, split, tmp_path / "work").process
    assert process.output.splitlines() == [process.error_line]
    assert process.error_line.startswith("error: The outputs of the model for one of")
    assert not list((tmp_path / "work").rglob("*.txt"))


def test_a_pickle_beside_a_graph_is_never_run(hostile: Path, split: Split, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content = pickle.dumps({"state_dict": MaliciousPickle(proof)}) + bytes(BULK)
    for name in ("model.safetensors", "pytorch_model.bin", "model.pth", "preprocess.pkl"):
        (hostile / name).write_bytes(content)
    assert tag(hostile, split, tmp_path / "work").process.success_output
    assert not proof.exists()
    pickle.loads(content)
    assert proof.exists()


def header(**tensor: Any) -> bytes:
    """Return a safetensors header that describes one tensor."""
    content = json.dumps({"conv_stem.weight": {"dtype": "F32"} | tensor}).encode()
    return struct.pack("<Q", len(content)) + content


WEIGHTS = {
    "a huge header": struct.pack("<Q", 2**62) + b"{}",
    "a large header": struct.pack("<Q", 2**32) + b"{}",
    "a deep header": struct.pack("<Q", 400_002) + b'{"a":' * 80_000 + b"1}",
    "a huge tensor": header(shape=[2**40, 2**20], data_offsets=[0, 2**62]),
    "a tensor of the file's size": header(shape=[2**31, 2**31], data_offsets=[0, BULK]),
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_that_lie_about_their_size_are_refused_by_all_loaders(
    trained: Path, weights: str
) -> None:
    (trained / "model.safetensors").write_bytes(WEIGHTS[weights] + bytes(BULK))
    error_message(lambda: backbone.load_model(trained))
    error_message(lambda: load_tagger(trained, Device("cpu")))


def error_message(load: Callable[[], object]) -> str:
    """Return the error of a loader, which must be one line and take little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TaggerError) as caught:
        load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pickle_under_the_name_of_weights_is_never_run(trained: Path, tmp_path: Path) -> None:
    content = pickle.dumps({"state_dict": MaliciousPickle(tmp_path / "proof")}) + bytes(BULK)
    for name in ("model.safetensors", "pytorch_model.bin", "model.pth"):
        (trained / name).write_bytes(content)
    assert "does not load" in error_message(lambda: backbone.load_model(trained))
    assert "does not load" in error_message(lambda: load_tagger(trained, Device("cpu")))
    assert "model.safetensors is damaged" in error_message(
        lambda: checkpoints.read(trained, "test_vit")
    )
    assert not (tmp_path / "proof").exists()
    pickle.loads(content)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vit_7b_patch16_dinov3"},
        {"architecture": "test_vit", "model_args": {"embed_dim": 2**20}},
        {"head": {"tags": 5, "queries": 10**5, "width": 2**20}},
    ],
)
def test_a_model_too_large_for_its_weights_is_never_built(
    trained: Path, change: dict[str, Any]
) -> None:
    config = json.loads((trained / "config.json").read_text())
    config.pop("model_args")
    (trained / "config.json").write_text(json.dumps(config | change))
    assert "cannot all lie in the" in error_message(lambda: backbone.load_model(trained))


def test_a_deeply_nested_config_is_refused_by_all_loaders(trained: Path) -> None:
    (trained / "config.json").write_text("[" * 10**6)
    (trained / "preprocess.json").unlink()
    assert "config.json cannot be read" in error_message(lambda: backbone.load_model(trained))
    assert "config.json does not say" in error_message(lambda: load_tagger(trained, Device("cpu")))


@pytest.mark.parametrize(
    "stage",
    [
        {"type": "pad_to_size", "size": 10**9},
        {"type": "resize", "size": 10**9},
        {"type": "resize", "size": [10**5, 10**5]},
        {"type": "center_crop", "size": 10**9},
        {"type": "pad_to_size", "size": 8, "background_color": [0, 0, 10**9]},
        {"type": "normalize", "mean": 0, "std": 0},
    ],
)
def test_preprocessing_by_others_makes_no_huge_image(trained: Path, stage: dict[str, Any]) -> None:
    (trained / "preprocess.json").write_text(json.dumps({"test": [stage]}))
    assert "preprocess.json" in error_message(
        lambda: external_preprocess.read(trained / "preprocess.json")
    )
    assert "preprocess.json" in error_message(lambda: load_tagger(trained, Device("cpu")))
