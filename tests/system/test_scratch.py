"""Scratch folders belong to one process at a time, and outlive only a failure."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.system import scratch

HOLD = """
import os, sys, time
from pathlib import Path
from tagger.core import files
from tagger.system import scratch
with scratch.locked(Path(sys.argv[1])):
    child = os.fork() if "child" in sys.argv else 0
    if child or "child" not in sys.argv:
        print("in", child, flush=True)
    time.sleep(60)
"""

Hold = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def hold(root: Path) -> Iterator[Hold]:
    """Start a process that holds a folder; return it, and the number of its child."""
    pids: list[int] = []

    def hold(folder: Path, *how: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *how],
            env={**os.environ, "PYTHONPATH": str(root / "stages")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        word, child = process.stdout.readline().split()
        assert word == "in"
        pids.extend(number for number in (process.pid, int(child)) if number)
        processes.append(process)
        return process, int(child)

    processes: list[subprocess.Popen[str]] = []
    yield hold
    for number in pids:
        if alive(number):
            os.kill(number, signal.SIGKILL)
    for process in processes:
        process.communicate()


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def entered(folder: Path) -> bool:
    try:
        with scratch.locked(folder):
            return True
    except TaggerError:
        return False


def test_a_locked_folder_is_refused_by_name(tmp_path: Path, hold: Hold) -> None:
    folder = tmp_path / "train" / "a1b2"
    process, _ = hold(folder)
    with pytest.raises(TaggerError, match=r"under way in another process, .*a1b2\.lock\. Wait"):
        scratch.locked(folder).__enter__()
    assert entered(tmp_path / "train" / "c3d4")
    assert process.poll() is None


def test_a_lock_ends_with_its_process_though_its_children_live(tmp_path: Path, hold: Hold) -> None:
    """As after `kill -9`, when workers that read images are not yet gone."""
    folder = tmp_path / "a1b2"
    process, child = hold(folder, "child")
    assert not entered(folder)
    process.kill()
    process.wait()
    assert alive(child)
    assert entered(folder)


def test_a_lock_ends_after_the_work_and_after_an_error(tmp_path: Path, hold: Hold) -> None:
    folder = tmp_path / "a1b2"
    with scratch.locked(folder):
        pass
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(RuntimeError), scratch.locked(folder):
        raise RuntimeError
    hold(folder)
    assert not entered(folder)


def test_a_locked_folder_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a1b2"
    with scratch.locked(folder):
        (folder / "snapshots").mkdir(parents=True)
        scratch.remove_folder(folder)
        scratch.remove_folder(folder)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_stage_folders_are_in_the_project_not_in_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert scratch.stage_folder("train") == Path(".scratch/train")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert scratch.stage_folder("train") == tmp_path / ".scratch" / "train"
    assert scratch.project_root() == tmp_path


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two working copies of one project, as DVC makes them for experiments."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    made = tmp_path / "copies" / "one", tmp_path / "copies" / "two"
    for copy in made:
        copy.mkdir(parents=True)
    monkeypatch.chdir(made[0])
    return made


def test_a_temporary_folder_is_empty_at_first_and_gone_afterwards(
    copies: tuple[Path, Path], tmp_path: Path
) -> None:
    with scratch.temporary_folder("evaluate") as folder:
        assert folder.parent == tmp_path / ".scratch" / "evaluate"
        assert not folder.exists()
        folder.mkdir()
        (folder / "test.logits").write_bytes(b"123")
    with pytest.raises(KeyboardInterrupt), scratch.temporary_folder("evaluate") as again:
        assert again == folder
        assert not folder.exists()
        (folder / "inner").mkdir(parents=True)
        raise KeyboardInterrupt
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_working_copies_have_temporary_folders_of_their_own(
    copies: tuple[Path, Path], hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch.temporary_folder("evaluate") as folder:
        pass
    hold(folder)
    with (
        pytest.raises(TaggerError, match="The same is under way in another process"),
        scratch.temporary_folder("evaluate"),
    ):
        raise AssertionError
    monkeypatch.chdir(copies[1])
    with (
        scratch.temporary_folder("evaluate") as other,
        scratch.temporary_folder("another") as third,
    ):
        assert len({folder, other, third}) == 3


def test_a_temporary_folder_of_a_killed_process_is_emptied(copies: tuple[Path, Path]) -> None:
    with scratch.temporary_folder("evaluate") as folder:
        pass
    folder.mkdir()
    (folder / "test.logits").write_bytes(b"left")
    with scratch.temporary_folder("evaluate") as again:
        assert not (again / "test.logits").exists()


def test_a_resumable_folder_outlives_a_failure_and_not_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(ZeroDivisionError), scratch.resumable_folder("prepare") as folder:
        files.write_text(folder / "chunk", "1")
        raise ZeroDivisionError
    with scratch.resumable_folder("prepare") as again:
        assert again == folder
        assert (again / "chunk").read_text() == "1"
    assert not folder.exists()


def test_working_copies_have_resumable_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "copy").mkdir()
    with scratch.resumable_folder("prepare") as folder:
        files.write_text(folder / "chunk", "1")
        monkeypatch.chdir(tmp_path / "copy")
        with scratch.resumable_folder("prepare") as other:
            assert other != folder
        assert (folder / "chunk").exists()


def test_a_folder_that_goes_away_with_a_copy_of_the_project_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    scratch.check_persistent("prepare.copies.folder", Path("data/shards"))
    monkeypatch.setenv("DVC_ROOT", "/")
    scratch.check_persistent("prepare.copies.folder", tmp_path)
    with pytest.raises(TaggerError, match=r"^prepare\.copies\.folder is data/shards, .*absolute"):
        scratch.check_persistent("prepare.copies.folder", Path("data/shards"))


def test_a_copy_of_the_project_gets_links_to_image_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copy = tmp_path / "project", tmp_path / "project/.dvc/tmp/exps/copy"
    for name in ("data/shards/0.tar", "data/danbooru/tags.csv", "data/danbooru/images/1.tar"):
        files.write_text(project / name, "the project's")
    files.write_text(copy / "data/danbooru/tags.csv", "the copy's")  # which DVC has brought
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(copy)
    for _ in range(2):
        scratch.link_project_folders(
            Path("data/shards"), Path("data/danbooru"), Path("data/none"), Path("/etc")
        )
        assert Path("data/shards/0.tar").read_text() == "the project's"
        assert Path("data/danbooru/images/1.tar").read_text() == "the project's"
        assert Path("data/danbooru/tags.csv").read_text() == "the copy's"
        assert not Path("data/none").exists()
    scratch.check_persistent("prepare.copies.folder", Path("data/shards"))
    monkeypatch.chdir(project)
    scratch.link_project_folders(Path("data/shards"))
    assert not Path("data/shards").is_symlink()


def test_a_disk_without_locks_is_logged_once_and_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    for _ in range(2):
        with scratch.locked(tmp_path / "held"):
            pass
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(f"{tmp_path} has no locks (")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_of_another_process_is_an_error_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with (
        pytest.raises(TaggerError, match="under way in another process"),
        scratch.locked(tmp_path / "held"),
    ):
        pass
