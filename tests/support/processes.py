"""Processes for tests: scripts, modules and dvc, forked from one that has imported torch."""

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
    exit_code: int  # -9 if it was killed
    output: str  # and errors

    @property
    def success_output(self) -> str:
        """The output of a process that must have succeeded."""
        assert self.exit_code == 0, self.output
        return self.output

    @property
    def error_line(self) -> str:
        """The last line of the output, which must be the only error, a user's mistake."""
        assert self.exit_code == 2, self.output
        assert "Traceback" not in self.output, self.output
        assert self.output.count("error: ") == 1, self.output
        line = self.output.splitlines()[-1]
        assert line.startswith("error: "), self.output
        return line


class RunningProcess:
    """A forked process. It leads a process group, and is killed with this object."""

    def __init__(self, connection: socket.socket, pid: int, output: IO[bytes]) -> None:
        self.pid = pid
        self._connection = connection
        self._output = output
        self._exit_code: int | None = None

    def __del__(self) -> None:
        self._connection.close()
        self._output.close()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code, or None if the process still runs after these seconds."""
        if self._exit_code is None:
            self._connection.settimeout(seconds)
            with suppress(TimeoutError, BlockingIOError):
                self._exit_code = int(self._connection.recv(20))
        return self._exit_code

    def finish(self, seconds: float | None = None) -> FinishedProcess:
        """Wait for the end, these seconds at most."""
        exit_code = self.wait(seconds)
        self._output.seek(0)
        printed = self._output.read().decode(errors="replace")
        assert exit_code is not None, printed
        return FinishedProcess(exit_code, printed)


@cache
def mount_namespace_command() -> tuple[str, ...]:
    """Return the prefix that gives a command mounts of its own, or nothing if that is refused."""
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *as_root, "--mount")
    trial = (*command, "mount", "-t", "tmpfs", "none", "/mnt")
    allowed = shutil.which("unshare") and not subprocess.run(trial, capture_output=True).returncode
    return command if allowed else ()


class _ForkServer:
    """The process that forks, and a folder for PATH in which `python` asks it for forks."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="fork-server-")
        self.socket = f"{self._folder.name}/socket"
        self.programs = Path(self._folder.name, "bin")
        self.programs.mkdir()
        python = self.programs / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{fork_server.__file__}" "$@"\n')
        python.chmod(0o755)
        serve = (sys.executable, fork_server.__file__, "--serve", self.socket)
        self._process = subprocess.Popen(
            [*mount_namespace_command(), *serve],
            env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            stdin=subprocess.PIPE,  # the server ends when this is closed
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"
        self.pid = self._process.pid


@cache
def _fork_server() -> _ForkServer:
    return _ForkServer()


def fork_server_pid() -> int:
    """Return a process that has the same mounts as all processes started here."""
    return _fork_server().pid


def start(folder: Path, *words: object, **variables: str) -> RunningProcess:
    """Start a script, `-m` and a module, or `dvc`, in a folder, with more environment variables."""
    server, env = _fork_server(), clones.environment(**variables)
    path = f"{server.programs}{os.pathsep}{env['PATH']}"
    env |= {"PATH": path, fork_server.SOCKET: server.socket}
    output = TemporaryFile()  # noqa: SIM115 - closed by RunningProcess
    command = [str(word) for word in words]
    fork = fork_server.request_fork(server.socket, command, str(folder), env, output.fileno())
    return RunningProcess(*fork, output)


def run(folder: Path, *words: object, **variables: str) -> FinishedProcess:
    return start(folder, *words, **variables).finish()
