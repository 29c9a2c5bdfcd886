"""A full disk, at the start or halfway: one line, no partial file, and the next run succeeds."""

import re
import shutil
from pathlib import Path

import pytest

from support import clones, disks, processes
from support.clones import STAGES
from support.projects import empty_mlflow_store

pytestmark = pytest.mark.timeout(300)

# Where the disk is full, as fractions of what the stage writes.
FRACTIONS = dict.fromkeys(STAGES, (0.0, 0.5)) | {"demo": (0.5,), "prepare": (0.5,)}
FULL = r"error: No space left on device: (.+)\. Free some space\."
NO_ROOM = rf"{FULL}|error: \S+ has .+ free, and .+ are needed\. Make room, .+"
NO_MLFLOW = "MLflow cannot be written, going on without it: "


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished project on a disk of its own."""
    folder = tmp_path_factory.mktemp("full") / "project"
    disks.mount_disk(folder)
    shutil.copytree(finished_project, disks.visible_path(folder), symlinks=True, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, bytes]:
    return clones.read_outputs(disks.visible_path(project))


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name or path.suffix == ".gone"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk_says_so_and_succeeds_once_there_is_room(
    project: Path, undisturbed: dict[str, bytes], stage: str
) -> None:
    folder = disks.visible_path(project)
    expected = clones.read_outputs(folder, [stage])
    needed = sum(-(-len(content) // disks.PAGE) * disks.PAGE for content in expected.values())
    for fraction in FRACTIONS[stage]:
        disks.limit_free_space(project, None)
        clones.remove_outputs(folder, stage)
        shutil.rmtree(folder / ".scratch", ignore_errors=True)
        disks.limit_free_space(project, int(fraction * needed))
        process = processes.run(project, f"stages/{stage}.py")
        assert re.fullmatch(NO_ROOM, process.error_line)
        assert process.output.count(NO_MLFLOW) <= 1
        outputs = clones.read_outputs(folder, [stage])
        assert len(outputs) < len(expected)
        assert outputs.items() <= expected.items()
        assert not partial_files(folder)
    disks.limit_free_space(project, None)
    assert processes.run(project, f"stages/{stage}.py").success_output
    assert clones.read_outputs(folder) == undisturbed


@pytest.mark.parametrize(
    ("stages", "free_bytes"), [(["train"], 0), (["train", "evaluate"], 20 * disks.PAGE)]
)
def test_a_full_disk_under_mlflow_costs_one_warning_and_no_training(
    project: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    stages: list[str],
    free_bytes: int,
) -> None:
    store = tmp_path / "store"
    disks.mount_disk(store)
    (disks.visible_path(store) / "mlflow.db").write_bytes(empty_mlflow_store())
    disks.limit_free_space(store, free_bytes)
    printed = ""
    for stage in stages:
        uri = f"sqlite:///{store}/mlflow.db"
        process = processes.run(project, f"stages/{stage}.py", MLFLOW_TRACKING_URI=uri)
        assert process.success_output.count(NO_MLFLOW) <= 1
        printed += process.output
    assert f"{NO_MLFLOW}(sqlite3.OperationalError) database or disk is full\n" in printed
    assert "Traceback" not in printed
    without_run = {"models/tagger/run.json": b""}  # its run id is that of no stored run
    expected = undisturbed | without_run
    outputs = clones.read_outputs(disks.visible_path(project)) | without_run
    changed = {name for name in expected if outputs[name] != expected[name]}
    assert changed <= {"metrics/report.html"}


@pytest.fixture
def images(project: Path, tmp_path: Path) -> Path:
    """A folder of six images and an unreadable one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(disks.visible_path(project / "data/demo").glob("*.png"))[:6]:
        shutil.copy(path, folder)
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("output", ["txt", "json", "jsonl", "csv", "parquet"])
def test_captions_on_a_full_disk_are_whole_or_missing(
    project: Path, images: Path, tmp_path: Path, output: str
) -> None:
    full = tmp_path / "out"
    disks.mount_disk(full)
    disks.limit_free_space(full, 2 * disks.PAGE if output == "txt" else 0)
    command = (project / "stages/infer.py", images, "--output", output, "--output-dir", full)
    error = re.fullmatch(FULL, processes.run(images, *command).error_line)
    names = {path.name for path in disks.visible_path(full).iterdir()} - {"first"}
    if output == "txt":
        assert names == {"0000.txt", "0001.txt"}
        assert error and error[1] == str(full / "0002.txt")
        sidecars = disks.visible_path(full).glob("*.txt")
        assert all(path.read_bytes().endswith(b"\n") for path in sidecars)
    else:
        assert names == set()
        assert error and error[1] == str(full / f"tags.{output}")
    disks.limit_free_space(full, None)
    process = processes.run(images, *command, "--skip-existing")
    assert process.exit_code == 1, process.output
    assert ("skipped: 2" in process.output) == (output == "txt")
    names = {path.name for path in disks.visible_path(full).iterdir()}
    captions = {f"000{n}.txt" for n in range(6)} if output == "txt" else {f"tags.{output}"}
    assert names - {"first", "infer_failures.csv"} == captions


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("full", ["embeddings", "tags"])
def test_embeddings_and_tags_leave_nothing_if_one_of_them_finds_no_room(
    project: Path, images: Path, tmp_path: Path, suffix: str, full: str
) -> None:
    disks.mount_disk(tmp_path / "full")
    disks.limit_free_space(tmp_path / "full", 0)
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    embeddings = (tmp_path / "full" if full == "embeddings" else roomy) / f"vectors.{suffix}"
    folder = roomy if full == "embeddings" else tmp_path / "full"
    options = ("--output", "csv", "--output-dir", folder, "--embeddings", embeddings)
    process = processes.run(images, project / "stages/infer.py", images, *options)
    error = re.fullmatch(FULL, process.error_line)
    assert error and error[1] == str(embeddings if full == "embeddings" else folder / "tags.csv")
    assert {path.name for path in roomy.iterdir()} <= {"infer_failures.csv"}
    assert {path.name for path in disks.visible_path(tmp_path / "full").iterdir()} == {"first"}
