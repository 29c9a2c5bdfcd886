"""A disk that is full, at the start or half way: one line, nothing half-written, and a way on."""

import re
import shutil
from pathlib import Path

import pytest

from support import clones, disks, processes
from support.clones import STAGES
from support.projects import empty_mlflow_store

pytestmark = pytest.mark.timeout(300)

FILLED = dict.fromkeys(STAGES, (0.0, 0.5)) | {
    "demo": (0.5,),
    "prepare": (0.5,),
}  # shares of what is written
FULL = r"error: (.+): No space left on device\. Make room, then run again\."
NO_ROOM = rf"{FULL}|error: \S+ has .+ free, and .+ are needed\. Make room, .+"
NO_MLFLOW = "MLflow cannot be written, going on without it: "


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on a disk of its own, all stages of which have run."""
    folder = tmp_path_factory.mktemp("full") / "project"
    disks.mount_disk(folder)
    shutil.copytree(finished_project, disks.visible_path(folder), symlinks=True, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, bytes]:
    return clones.read_outputs(disks.visible_path(project))


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name or path.suffix == ".gone"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk_says_so_and_ends_well_once_there_is_room(
    project: Path, undisturbed: dict[str, bytes], stage: str
) -> None:
    here = disks.visible_path(project)
    expected = clones.read_outputs(here, [stage])
    needed = sum(-(-len(content) // disks.PAGE) * disks.PAGE for content in expected.values())
    for share in FILLED[stage]:
        disks.limit_free_space(project, None)
        clones.remove_outputs(here, stage)
        shutil.rmtree(here / ".scratch", ignore_errors=True)
        disks.limit_free_space(project, int(share * needed))
        ended = processes.run(project, f"stages/{stage}.py")
        assert re.fullmatch(NO_ROOM, ended.error_line)
        assert ended.output.count(NO_MLFLOW) <= 1
        found = clones.read_outputs(here, [stage])
        assert len(found) < len(expected)
        assert found.items() <= expected.items()
        assert not unfinished(here)
    disks.limit_free_space(project, None)
    assert processes.run(project, f"stages/{stage}.py").success_output
    assert clones.read_outputs(here) == undisturbed


@pytest.mark.parametrize(
    ("stages", "room"), [(["train"], 0), (["train", "evaluate"], 20 * disks.PAGE)]
)
def test_a_full_disk_under_mlflow_costs_one_warning_and_no_training(
    project: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    stages: list[str],
    room: int,
) -> None:
    store = tmp_path / "store"
    disks.mount_disk(store)
    (disks.visible_path(store) / "mlflow.db").write_bytes(empty_mlflow_store())
    disks.limit_free_space(store, room)
    told = ""
    for stage in stages:
        uri = f"sqlite:///{store}/mlflow.db"
        printed = processes.run(
            project, f"stages/{stage}.py", MLFLOW_TRACKING_URI=uri
        ).success_output
        assert printed.count(NO_MLFLOW) <= 1
        told += printed
    assert f"{NO_MLFLOW}(sqlite3.OperationalError) database or disk is full\n" in told
    assert "Traceback" not in told
    expected = undisturbed | {"models/tagger/run.json": b""}  # holds no number of a run, perhaps
    found = clones.read_outputs(disks.visible_path(project)) | {"models/tagger/run.json": b""}
    assert {name for name in expected if found[name] != expected[name]} <= {"metrics/report.html"}


@pytest.fixture
def pictures(project: Path, tmp_path: Path) -> Path:
    """Half a dozen pictures, and one that cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(disks.visible_path(project / "data/demo").glob("*.png"))[:6]:
        shutil.copy(path, folder)
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("output", ["txt", "json", "jsonl", "csv", "parquet"])
def test_tags_on_a_full_disk_are_whole_or_not_there(
    project: Path, pictures: Path, tmp_path: Path, output: str
) -> None:
    full = tmp_path / "out"
    disks.mount_disk(full)
    disks.limit_free_space(full, 2 * disks.PAGE if output == "txt" else 0)
    words = (project / "stages/infer.py", pictures, "--output", output, "--output-dir", full)
    found = re.fullmatch(FULL, processes.run(pictures, *words).error_line)
    there = {path.name for path in disks.visible_path(full).iterdir()} - {"first"}
    if output == "txt":
        assert there == {"0000.txt", "0001.txt"}
        assert found and found[1] == str(full / "0002.txt")
        assert all(
            path.read_bytes().endswith(b"\n") for path in disks.visible_path(full).glob("*.txt")
        )
    else:
        assert there == set()
        assert found and found[1] == str(full / f"tags.{output}")
    disks.limit_free_space(full, None)
    ended = processes.run(pictures, *words, "--skip-existing")
    assert ended.exit_code == 1, ended.output
    assert ("skipped: 2" in ended.output) == (output == "txt")
    written = {path.name for path in disks.visible_path(full).iterdir()} - {
        "first",
        "infer_failures.csv",
    }
    assert written == ({f"000{n}.txt" for n in range(6)} if output == "txt" else {f"tags.{output}"})


@pytest.mark.parametrize("form", ["npz", "parquet"])
@pytest.mark.parametrize("full", ["embeddings", "tags"])
def test_embeddings_and_a_table_leave_nothing_where_one_finds_no_room(
    project: Path, pictures: Path, tmp_path: Path, form: str, full: str
) -> None:
    disks.mount_disk(tmp_path / "full")
    disks.limit_free_space(tmp_path / "full", 0)
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    vectors = (tmp_path / "full" if full == "embeddings" else roomy) / f"vectors.{form}"
    folder = roomy if full == "embeddings" else tmp_path / "full"
    words = ("--output", "csv", "--output-dir", folder, "--embeddings", vectors)
    ended = processes.run(pictures, project / "stages/infer.py", pictures, *words)
    found = re.fullmatch(FULL, ended.error_line)
    assert found and found[1] == str(vectors if full == "embeddings" else folder / "tags.csv")
    assert {path.name for path in roomy.iterdir()} <= {"infer_failures.csv"}
    assert {path.name for path in disks.visible_path(tmp_path / "full").iterdir()} == {"first"}
