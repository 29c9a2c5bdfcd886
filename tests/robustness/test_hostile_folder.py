"""A model of someone who means harm, through infer.py: one line, little memory, nothing run."""

import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

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
from tagger.images.dataset import Split

pytestmark = pytest.mark.timeout(120)

MEMORY = 300  # MB that infer.py may take of a folder that it refuses; 85 is what it takes of ours
INFER = Path(__file__).parents[2] / "stages/infer.py"


@pytest.fixture
def hostile(export_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export_folder, tmp_path / "hostile"))


class Ended(NamedTuple):
    code: int
    told: list[str]  # lines on standard error
    memory: int  # MB at most


# What a process starts with counts as its memory, so a small one starts it.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


def tagged(model: Path, part: Split, work: Path) -> Ended:
    """Tag a picture by infer.py in an empty folder of its own."""
    work.mkdir()
    words = (
        part.locations[0].path,
        "--model",
        model,
        "--output",
        "txt",
        "--output-dir",
        work / "out",
    )
    ended = subprocess.run(
        [sys.executable, "-IS", "-c", MEASURED, sys.executable, INFER, *map(str, words)],
        cwd=work,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (10 << 30, 10 << 30)),
    )
    code, memory = map(int, ended.stdout.split())
    return Ended(code, ended.stderr.splitlines(), memory)


REFUSED: dict[str, tuple[Change, str]] = {
    "weights beside the folder": (replace_graph(at="../secret"), "model.onnx does not load"),
    "weights in /etc": (replace_graph(at="../" * 20 + "etc/passwd"), "model.onnx does not load"),
    "weights by a whole path": (weights_outside_folder, "model.onnx does not load"),
    "weights by a link": (weights_by_link, "model.onnx does not load"),
    "weights without an end": (replace_graph(at="/dev/zero"), "model.onnx does not load"),
    "huge weights": (replace_graph(shape=[3, 2**40]), "model.onnx does not load"),
    "weights of less than nothing": (replace_graph(shape=[3, -2]), "model.onnx does not load"),
    "a graph as long as a disk": (make_huge("model.onnx"), "model.onnx does not load"),
    "a graph without an end": (replace_by_link("model.onnx", "/dev/zero"), "lacks model.onnx"),
    "more outputs": (replace_graph(more=1), "tags, the model"),
    "fewer outputs": (replace_graph(more=-1), "tags, the model"),
    "no numbers": (replace_graph(value=np.nan), "the model gives what is no number"),
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
        "preprocess.json is no preprocessing",
    ),
    "a mean that is none": (
        edit_preprocess_stage(-1, mean=[np.nan] * 3),
        "preprocess.json is no preprocessing",
    ),
    "deep nesting": (
        replace_content("preprocess.json", b"[" * 10**6),
        "preprocess.json cannot be read",
    ),
    "JSON as long as a disk": (make_huge("preprocess.json"), "preprocess.json holds 8.6 GB"),
    "tags as long as a disk": (make_huge("selected_tags.csv"), "selected_tags.csv holds 8.6 GB"),
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
def test_a_folder_that_means_harm_is_one_line_and_little_memory(
    hostile: Path, split: Split, tmp_path: Path, harm: str
) -> None:
    change, told = REFUSED[harm]
    change(hostile)
    ended = tagged(hostile, split, tmp_path / "work")
    (line,) = ended.told
    assert ended.code == 2
    assert line.startswith("error: ") and told in line
    assert ended.memory < MEMORY
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "=cmd|' /C calc'!A1", "a" * 1000])
def test_a_name_of_a_tag_is_a_text_and_no_path(
    hostile: Path, split: Split, tmp_path: Path, name: str
) -> None:
    edit_tag_row(name)(hostile)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    ended = tagged(hostile, split, tmp_path / "work")
    assert ended.code == 0, ended.told
    (written,) = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written == tmp_path / "work/out/0000.txt"
    assert name in written.read_text(encoding="utf-8").rstrip("\n").split(", ")
    assert not Path("/etc/x").exists()


def test_links_to_files_of_a_cache_are_followed(
    hostile: Path, export_folder: Path, split: Split, tmp_path: Path
) -> None:
    for name in ("model.onnx", "selected_tags.csv", "preprocess.json"):
        replace_by_link(name, str(export_folder / name))(hostile)
    assert tagged(hostile, split, tmp_path / "work").code == 0


def test_no_numbers_for_a_picture_end_the_tagging_in_one_line(
    hostile: Path, split: Split, tmp_path: Path
) -> None:
    """The square that a model is tried with is black; where there is light, this one overflows."""
    replace_graph(value=3e38, end="Identity")(hostile)
    edit_preprocess_stage(-1, mean=[0, 0, 0], std=[1e-3] * 3)(hostile)
    ended = tagged(hostile, split, tmp_path / "work")
    assert ended.code == 2
    (line,) = ended.told
    assert line.startswith("error: The model gives what is no number for")
    assert not list((tmp_path / "work").rglob("*.txt"))


def test_a_pickle_beside_a_graph_is_never_run(hostile: Path, split: Split, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = pickle.dumps({"state_dict": MaliciousPickle(proof)}) + bytes(BULK)
    for name in ("model.safetensors", "pytorch_model.bin", "model.pth", "preprocess.pkl"):
        (hostile / name).write_bytes(evil)
    assert tagged(hostile, split, tmp_path / "work").code == 0
    assert not proof.exists()
    pickle.loads(evil)
    assert proof.exists()
