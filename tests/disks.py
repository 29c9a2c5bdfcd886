"""Disks of a test's own, full or read-only, that are there for the processes of a zygote alone."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import clones
import pytest
from zygote import SOCKET, Started, Zygote

PAGE = 4096  # bytes, of which a file in memory takes whole ones
_ROOMY = 256 << 20  # bytes


@cache
def apart() -> tuple[str, ...]:
    """Return the command that gives another mounts of its own, nothing where this is refused."""
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *as_root, "--mount")
    trial = (*command, "mount", "-t", "tmpfs", "none", "/mnt")
    allowed = shutil.which("unshare") and not subprocess.run(trial, capture_output=True).returncode
    return command if allowed else ()


def _require() -> None:
    if not apart():
        pytest.skip("mounting is refused here")


class Ended(NamedTuple):
    code: int | None
    output: str  # and errors

    @property
    def mistake(self) -> str:
        """The one line that tells of a mistake, after all that was told before it."""
        assert self.code == 2, self.output
        assert "Traceback" not in self.output, self.output
        assert self.output.count("error: ") == 1, self.output
        line = self.output.splitlines()[-1]
        assert line.startswith("error: "), self.output
        return line


class Running(NamedTuple):
    started: Started
    output: IO[bytes]

    def ended(self) -> Ended:
        """Wait for the end."""
        with self.output:
            code = self.started.wait()
            self.output.seek(0)
            return Ended(code, self.output.read().decode())


class Disks:
    """Runs stages and mounts disks, both where nobody else sees these."""

    def __init__(self, folder: Path) -> None:
        self._zygote = Zygote(folder, *apart())

    def end(self) -> None:
        self._zygote.end()

    def seen(self, path: Path) -> Path:
        """Return the path by which this process comes to what lies on a disk."""
        return Path(f"/proc/{self._zygote.pid}/root{path}")

    def mount(self, folder: Path) -> None:
        """Put an empty disk, held in memory, in the place of a folder."""
        folder.mkdir(exist_ok=True)
        _require()
        self._inside("mount", "-t", "tmpfs", "-o", f"size={_ROOMY}", "none", folder)
        (self.seen(folder) / "first").write_bytes(b"A size of nothing would be no limit.")

    def limit(self, folder: Path, room: int | None) -> None:
        """Leave no more than some bytes of room on a disk; None: as much as anyone wants."""
        found = os.statvfs(self.seen(folder))
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        size = _ROOMY if room is None else used + room
        self._inside("mount", "-o", f"remount,size={size}", folder)

    def forbid(self, folder: Path) -> None:
        """Make a folder and all below it read-only, for root as well."""
        _require()
        self._inside("mount", "--bind", folder, folder)
        self._inside("mount", "-o", "remount,bind,ro", folder)

    def _inside(self, *words: str | Path) -> None:
        pid = str(self._zygote.pid)
        whose = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        subprocess.run(["nsenter", "--target", pid, *whose, "--mount", *words], check=True)

    def start(self, folder: Path, *words: str | Path, **more: str) -> "Running":
        """Start a script, or dvc, in a folder."""
        path = f"{self._zygote.programs}{os.pathsep}{os.environ['PATH']}"
        env = clones.environment(**more) | {"PATH": path, SOCKET: self._zygote.socket}
        output = TemporaryFile()  # noqa: SIM115  # closed once it is read
        told = [str(word) for word in words]
        return Running(
            Started(self._zygote.socket, told, str(folder), env, output.fileno()), output
        )

    def run(self, folder: Path, *words: str | Path, **more: str) -> Ended:
        return self.start(folder, *words, **more).ended()
