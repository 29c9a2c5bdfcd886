"""One model, however it is stored and whatever computes it, gives one answer."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tagger.core import thresholds
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.images.decode import Pixels
from tagger.models import backbone, exported, load, runtimes, training_folder
from tagger.models.runtimes import Device, Outputs

CPU = Device("cpu", threads=1)


@pytest.fixture
def squares(split: Split, export_folder: Path) -> Pixels:
    prepared = exported.load(export_folder, "cpu").preprocess
    return np.stack([prepared.to_square(decode.open_rgb(place)) for place in split.locations[:7]])


@pytest.mark.parametrize("embed", [False, True])
def test_a_training_folder_gives_what_its_export_gives(
    model_folder: Path, export_folder: Path, squares: Pixels, embed: bool
) -> None:
    trained_one = load.load_tagger(model_folder, "cpu", CPU)
    export = load.load_tagger(export_folder, "cpu", CPU)
    ours, theirs = trained_one.runtime(squares, embed), export.runtime(squares, embed)
    assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    assert list(trained_one.tags) == list(export.tags)
    assert (ours.embeddings is None) is (theirs.embeddings is None) is (not embed)
    if ours.embeddings is not None:
        assert ours.embeddings == pytest.approx(theirs.embeddings, abs=1e-3)


def test_an_export_computed_by_torch_gives_the_same(export_folder: Path, squares: Pixels) -> None:
    export = exported.load(export_folder, "cpu")
    by_torch = runtimes.on_torch(export_folder, export.preprocess, CPU)
    difference = (
        by_torch(squares, False).probabilities - export.runtime(squares, False).probabilities
    )
    assert np.abs(difference).max() < 1e-5


def test_an_onnx_file_may_bear_another_name(
    export_folder: Path, tmp_path: Path, squares: Pixels
) -> None:
    copy = tmp_path / "export"
    shutil.copytree(export_folder, copy)
    (copy / "model.onnx").rename(copy / "mine.onnx")
    named = load.load_tagger(copy / "mine.onnx", "cpu", CPU)
    expected = exported.load(export_folder, "cpu").runtime(squares, False)
    assert np.array_equal(named.runtime(squares, False).probabilities, expected.probabilities)


def test_thresholds_of_a_training_folder_lie_beside_it(
    model_folder: Path, tags: list[Tag], tmp_path: Path
) -> None:
    copy = tmp_path / "models" / "tagger"
    shutil.copytree(model_folder, copy)
    assert set(training_folder.load(copy, "cpu").thresholds) == {exported.DEFAULT_THRESHOLD}
    row = thresholds.Threshold("all", "", 0.61, 1, 0.5, 0.5, 0.5, "best_f1")
    thresholds.write([row], copy.parent / "thresholds.csv")
    assert set(training_folder.load(copy, "cpu").thresholds) == {0.61}
    limits = np.linspace(0.2, 0.8, len(tags)).tolist()
    own = [
        row._replace(category=CATEGORIES[tag.category], name=tag.name, threshold=limit)
        for tag, limit in zip(tags, limits, strict=True)
    ]
    thresholds.write([row, *own], copy.parent / "thresholds.csv")
    assert training_folder.load(copy, "cpu").thresholds.tolist() == limits
    thresholds.write([row, *own[1:]], copy.parent / "thresholds.csv")
    with pytest.raises(TaggerError, match="of another vocabulary"):
        training_folder.load(copy, "cpu")


def test_what_is_no_model_is_told_with_what_was_looked_for(
    tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(TaggerError) as told:
        load.load_tagger(tmp_path, "cpu", CPU)
    for name in ("model.onnx", "selected_tags.csv", "model.safetensors", "vocabulary.csv"):
        assert name in str(told.value)
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / backbone.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(TaggerError, match="does not load"):
        load.load_tagger(copy, "cpu", CPU)


def test_a_list_of_tags_of_another_length_is_refused(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    lines = (copy / training_folder.VOCABULARY).read_text().splitlines(keepends=True)
    (copy / training_folder.VOCABULARY).write_text("".join(lines[:-1]))
    with pytest.raises(TaggerError, match=r"vocabulary\.csv has \d+ tags, the model \d+ outputs"):
        training_folder.load(copy, "cpu")


class NoRoom(Exception):
    pass


def small(squares: Pixels, embed: bool) -> Outputs:
    """An engine with room for three pictures."""
    if len(squares) > 3:
        raise NoRoom
    sums = squares.reshape(len(squares), -1).sum(axis=1, dtype=np.float32)[:, None]
    return Outputs(sums, sums + 1 if embed else None)


def test_a_batch_without_room_is_halved_and_those_after_it_are_smaller_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    squares = np.arange(10 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3)
    run = runtimes.with_halving(small, NoRoom)
    expected = squares.reshape(10, -1).sum(axis=1, dtype=np.float32)[:, None]
    outputs = run(squares, True)
    assert np.array_equal(outputs.probabilities, expected)
    assert outputs.embeddings is not None
    assert np.array_equal(outputs.embeddings, expected + 1)
    assert caplog.messages == [
        "The GPU has no room for 10 pictures, going on with 5.",
        "The GPU has no room for 5 pictures, going on with 3.",
    ]
    assert run(squares, False).embeddings is None
    assert len(caplog.messages) == 2


def test_no_room_for_a_single_picture_ends_it_in_one_line() -> None:
    def none(squares: Pixels, embed: bool) -> Outputs:
        raise NoRoom

    with pytest.raises(TaggerError, match=r"no room for one picture\. Try --device cpu"):
        runtimes.with_halving(none, NoRoom)(np.zeros((4, 2, 2, 3), np.uint8), False)


def test_the_first_tag_of_an_export_is_there_without_torch_and_without_processes(
    root: Path, export_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    """One picture is tagged at once: nothing is loaded or started that many would need."""
    program = (
        "import runpy, sys, multiprocessing\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not multiprocessing.active_children()\n"
        "loaded = {'torch', 'timm', 'numba', 'pandas', 'multiprocessing.forkserver'}\n"
        "print(sorted(loaded & sys.modules.keys()))\n"
    )
    arguments = [root / "stages" / "infer.py", image_folder / "a.png", "--model", export_folder]
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments), "--device", "cpu"],
        env={"PYTHONPATH": str(root / "stages"), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "[]"
