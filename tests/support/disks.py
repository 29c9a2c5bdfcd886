"""Full or read-only disks, mounted for the processes of a test alone."""

import os
import subprocess
from pathlib import Path

import pytest

from support import processes

PAGE = 4096  # bytes; a file on a disk in memory takes whole pages
_CAPACITY = 256 << 20  # bytes


def visible_path(path: Path) -> Path:
    """Return the path by which this process reaches a file on such a disk."""
    return Path(f"/proc/{processes.fork_server_pid()}/root{path}")


def mount_disk(folder: Path) -> None:
    """Mount an empty disk, held in memory, over a folder."""
    folder.mkdir(exist_ok=True)
    _run_in_namespace("mount", "-t", "tmpfs", "-o", f"size={_CAPACITY}", "none", folder)
    (visible_path(folder) / "first").write_bytes(b"A disk of size 0 would have no limit.")


def limit_free_space(folder: Path, free_bytes: int | None) -> None:
    """Leave this many bytes free on a disk; None: all of it."""
    usage = os.statvfs(visible_path(folder))
    used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    size = _CAPACITY if free_bytes is None else used + free_bytes
    _run_in_namespace("mount", "-o", f"remount,size={size}", folder)


def make_read_only(folder: Path) -> None:
    """Make a folder and all below it read-only, for root as well."""
    _run_in_namespace("mount", "--bind", folder, folder)
    _run_in_namespace("mount", "-o", "remount,bind,ro", folder)


def _run_in_namespace(*command: str | Path) -> None:
    if not processes.mount_namespace_command():
        pytest.skip("mounting is not allowed here")
    target = ("--target", str(processes.fork_server_pid()))
    user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
    subprocess.run(["nsenter", *target, *user, "--mount", *command], check=True)
