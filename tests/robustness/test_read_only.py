"""A checkout, or pictures, that nobody may write to: what cannot be written is told in one line."""

import shutil
from pathlib import Path

import pytest

from support import disks, processes
from support.clones import STAGES

pytestmark = pytest.mark.timeout(300)

WRITES = {  # what each stage says that it cannot write
    "demo": "data/demo",
    "prepare": ".scratch/prepare",
    "vocabulary": "data/vocabulary.csv",
    "split": "data/split.parquet",
    "train": ".scratch/train",
    "evaluate": ".scratch/evaluate",
    "export": "models/export",
}
FORBIDDEN = "Read-only file system. Make it writable, then run again."


@pytest.fixture(scope="module")
def checkout(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project all stages of which have run; then it was made read-only."""
    folder = tmp_path_factory.mktemp("read_only") / "project"
    shutil.copytree(finished_project, folder, symlinks=True)
    disks.make_read_only(folder)
    return folder


@pytest.fixture
def pictures(checkout: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((checkout / "data/demo").glob("*.png"))[:3]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_in_a_read_only_checkout_names_what_it_cannot_write(
    checkout: Path, stage: str
) -> None:
    line = processes.run(checkout, f"stages/{stage}.py").error_line
    assert line.startswith(f"error: {WRITES[stage]}")
    assert line.endswith(f": {FORBIDDEN}")
    assert ".partial" not in line


def test_dvc_in_a_read_only_checkout_says_so_and_ends(checkout: Path) -> None:
    ended = processes.run(checkout, "dvc", "repro")
    assert ended.exit_code not in (0, None)
    first, *_ = ended.output.splitlines()
    assert "Read-only file system" in first and str(checkout / ".dvc") in first
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("output", ["txt", "json", "csv"])
@pytest.mark.parametrize("named", [True, False])
def test_a_read_only_checkout_tags_pictures_elsewhere(
    checkout: Path, pictures: Path, tmp_path: Path, output: str, named: bool
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    where = ["--output-dir", "out"] if named else []
    before = snapshot(checkout)
    ended = processes.run(
        work, checkout / "stages/infer.py", pictures, "--output", output, "--rules", work, *where
    )
    assert ended.exit_code == 0, ended.output
    assert "tagged: 3 images" in ended.output
    target = work / "out" if named else pictures if output == "txt" else work
    names = {"0000.txt", "0001.txt", "0002.txt"} if output == "txt" else {f"tags.{output}"}
    assert {path.name for path in target.iterdir()} - {"0000.png", "0001.png", "0002.png"} == names
    assert snapshot(checkout) == before


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_sidecars_in_a_read_only_folder_are_refused_and_go_elsewhere(
    checkout: Path, pictures: Path, tmp_path: Path
) -> None:
    infer = checkout / "stages/infer.py"
    disks.make_read_only(pictures)
    line = processes.run(tmp_path, infer, pictures, "--output", "txt").error_line
    assert line == f"error: {pictures / '0000.txt'}: {FORBIDDEN}"
    line = processes.run(pictures, infer, pictures, "--output", "csv").error_line
    assert line == f"error: tags.csv: {FORBIDDEN}"
    ended = processes.run(tmp_path, infer, pictures, "--output", "txt", "--output-dir", "out")
    assert ended.exit_code == 0, ended.output
    assert len(list((tmp_path / "out").glob("*.txt"))) == 3
    assert sorted(path.suffix for path in pictures.iterdir()) == [".png"] * 3
