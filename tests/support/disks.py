"""Disks of a test's own, full or read-only, that are there for its processes alone."""

import os
import subprocess
from pathlib import Path

import pytest

from support import processes

PAGE = 4096  # bytes, of which a file in memory takes whole ones
_ROOMY = 256 << 20  # bytes


def visible_path(path: Path) -> Path:
    """Return the path by which this process comes to what lies on a disk."""
    return Path(f"/proc/{processes.fork_server_pid()}/root{path}")


def mount_disk(folder: Path) -> None:
    """Put an empty disk, held in memory, in the place of a folder."""
    folder.mkdir(exist_ok=True)
    _inside("mount", "-t", "tmpfs", "-o", f"size={_ROOMY}", "none", folder)
    (visible_path(folder) / "first").write_bytes(b"A size of nothing would be no limit.")


def limit_free_space(folder: Path, free_bytes: int | None) -> None:
    """Leave no more than some bytes of room on a disk; None: as much as anyone wants."""
    found = os.statvfs(visible_path(folder))
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    size = _ROOMY if free_bytes is None else used + free_bytes
    _inside("mount", "-o", f"remount,size={size}", folder)


def make_read_only(folder: Path) -> None:
    """Make a folder and all below it read-only, for root as well."""
    _inside("mount", "--bind", folder, folder)
    _inside("mount", "-o", "remount,bind,ro", folder)


def _inside(*words: str | Path) -> None:
    if not processes.mount_namespace_command():
        pytest.skip("mounting is refused here")
    target = ("--target", str(processes.fork_server_pid()))
    whose = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
    subprocess.run(["nsenter", *target, *whose, "--mount", *words], check=True)
