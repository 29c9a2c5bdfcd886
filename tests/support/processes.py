"""Processes of the tests: scripts, modules and dvc, all forked from one that has loaded torch."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, NamedTuple

from support import clones, fork_server

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # a fork has no more


class FinishedProcess(NamedTuple):
    """A process that has ended."""

    exit_code: int  # -9 if it was killed
    output: str  # and errors

    @property
    def success_output(self) -> str:
        """What it printed, which ended well."""
        assert self.exit_code == 0, self.output
        return self.output

    @property
    def error_line(self) -> str:
        """The one line that tells of a mistake, after all that was told before it."""
        assert self.exit_code == 2, self.output
        assert "Traceback" not in self.output, self.output
        assert self.output.count("error: ") == 1, self.output
        line = self.output.splitlines()[-1]
        assert line.startswith("error: "), self.output
        return line


class RunningProcess:
    """A process that was forked. It leads a group of its own, and is killed with this object."""

    def __init__(self, connection: socket.socket, pid: int, output: IO[bytes]) -> None:
        self.pid = pid
        self._connection = connection
        self._output = output
        self._code: int | None = None

    def __del__(self) -> None:
        self._connection.close()
        self._output.close()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code, or None where it has not ended within some time."""
        if self._code is None:
            self._connection.settimeout(seconds)
            with suppress(TimeoutError, BlockingIOError):
                self._code = int(self._connection.recv(20))
        return self._code

    def finish(self, seconds: float | None = None) -> FinishedProcess:
        """Wait for the end, for some time at most."""
        code = self.wait(seconds)
        self._output.seek(0)
        printed = self._output.read().decode(errors="replace")
        assert code is not None, printed
        return FinishedProcess(code, printed)


@cache
def mount_namespace_command() -> tuple[str, ...]:
    """Return the command that gives another mounts of its own, nothing where this is refused."""
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *as_root, "--mount")
    trial = (*command, "mount", "-t", "tmpfs", "none", "/mnt")
    allowed = shutil.which("unshare") and not subprocess.run(trial, capture_output=True).returncode
    return command if allowed else ()


class _ForkServer:
    """The process that forks, and what goes in the place of python in a search path."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="fork-server-")
        self.socket = f"{self._folder.name}/socket"
        self.programs = Path(self._folder.name, "bin")
        self.programs.mkdir()
        python = self.programs / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{fork_server.__file__}" "$@"\n')
        python.chmod(0o755)
        self._process = subprocess.Popen(
            [
                *mount_namespace_command(),
                sys.executable,
                fork_server.__file__,
                "--serve",
                self.socket,
            ],
            env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            stdin=subprocess.PIPE,  # it ends with this
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"
        self.pid = self._process.pid


@cache
def _fork_server() -> _ForkServer:
    return _ForkServer()


def fork_server_pid() -> int:
    """Return the process whose mounts are those of all processes that are started here."""
    return _fork_server().pid


def start(folder: Path, *words: object, **more: str) -> RunningProcess:
    """Start a script, `-m` and a module, or `dvc`, in a folder; with more variables."""
    forks, env = _fork_server(), clones.environment(**more)
    env |= {"PATH": f"{forks.programs}{os.pathsep}{env['PATH']}", fork_server.SOCKET: forks.socket}
    output = TemporaryFile()  # noqa: SIM115  # closed with what is returned
    told = [str(word) for word in words]
    asked = fork_server.request_fork(forks.socket, told, str(folder), env, output.fileno())
    return RunningProcess(*asked, output)


def run(folder: Path, *words: object, **more: str) -> FinishedProcess:
    return start(folder, *words, **more).finish()
