"""Read-only checkouts and folders of images: one line names what cannot be written."""

import re
import shutil
from pathlib import Path

import pytest

from support import disks, processes
from support.clones import STAGES

pytestmark = pytest.mark.timeout(300)

NOT_WRITABLE = {  # the first path that each stage fails to write
    "demo": "data/demo",
    "prepare": ".scratch/prepare",
    "vocabulary": "data/vocabulary.csv",
    "split": "data/split.parquet",
    "train": ".scratch/train",
    "evaluate": ".scratch/evaluate",
    "export": "models/export",
}
FORBIDDEN = "error: Read-only file system: {}. Check its owner and mode."


@pytest.fixture(scope="module")
def checkout(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished project, made read-only."""
    folder = tmp_path_factory.mktemp("read_only") / "project"
    shutil.copytree(finished_project, folder, symlinks=True)
    disks.make_read_only(folder)
    return folder


@pytest.fixture
def images(checkout: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((checkout / "data/demo").glob("*.png"))[:3]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_in_a_read_only_checkout_names_what_it_cannot_write(
    checkout: Path, stage: str
) -> None:
    line = processes.run(checkout, f"stages/{stage}.py").error_line
    assert re.fullmatch(FORBIDDEN.format(rf"{NOT_WRITABLE[stage]}\S*"), line)
    assert ".partial" not in line


def test_dvc_in_a_read_only_checkout_says_so_and_ends(checkout: Path) -> None:
    process = processes.run(checkout, "dvc", "repro")
    assert process.exit_code not in (0, None)
    first, *_ = process.output.splitlines()
    assert "Read-only file system" in first and str(checkout / ".dvc") in first
    assert "Traceback" not in process.output


@pytest.mark.parametrize("output", ["txt", "json", "csv"])
@pytest.mark.parametrize("named", [True, False])
def test_infer_in_a_read_only_checkout_tags_images_elsewhere(
    checkout: Path, images: Path, tmp_path: Path, output: str, named: bool
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    where = ["--output-dir", "out"] if named else []
    before = snapshot(checkout)
    process = processes.run(
        work, checkout / "stages/infer.py", images, "--output", output, "--rules", work, *where
    )
    assert process.exit_code == 0, process.output
    assert "tagged: 3 images" in process.output
    target = work / "out" if named else images if output == "txt" else work
    names = {"0000.txt", "0001.txt", "0002.txt"} if output == "txt" else {f"tags.{output}"}
    assert {path.name for path in target.iterdir()} - {"0000.png", "0001.png", "0002.png"} == names
    assert snapshot(checkout) == before


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_infer_names_a_read_only_folder_and_writes_elsewhere(
    checkout: Path, images: Path, tmp_path: Path
) -> None:
    infer = checkout / "stages/infer.py"
    disks.make_read_only(images)
    line = processes.run(tmp_path, infer, images, "--output", "txt").error_line
    assert line == FORBIDDEN.format(images / "0000.txt")
    line = processes.run(images, infer, images, "--output", "csv").error_line
    assert line == FORBIDDEN.format("tags.csv")
    process = processes.run(tmp_path, infer, images, "--output", "txt", "--output-dir", "out")
    assert process.exit_code == 0, process.output
    assert len(list((tmp_path / "out").glob("*.txt"))) == 3
    assert sorted(path.suffix for path in images.iterdir()) == [".png"] * 3
