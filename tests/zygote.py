"""A process that has loaded what the stages load, and forks another for each stage to be run.

So a stage, or dvc, begins at once: it takes them seconds to load torch, MLflow and the like. As a
script with `--serve SOCKET` this is that process; with anything else it stands for `python` in the
commands of dvc.yaml, and lives as long as what it has had run, and has its output and exit code.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

SOCKET, TIMES = "ZYGOTE_SOCKET", "ZYGOTE_TIMES"  # variables
_STAGES = Path(__file__).parent.parent / "stages"
_LIBRARIES = (
    "alembic.command",
    "dvc.cli",
    "dvc.commands.repro",
    "dvc.repo",
    "git",
    "imagecodecs",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "mlflow.pyfunc.model",
    "mlflow.store.tracking.sqlalchemy_store",
    "numba.core.registry",
    "onnxruntime",
    "onnxslim",
    "pyarrow.dataset",
    "torch._dynamo",
    "torchvision",
)
_NAMES = ("demo", "prepare", "vocabulary", "split", "train", "evaluate", "export")


class Started:
    """A process that was forked."""

    def __init__(
        self, path: str, words: Sequence[str], folder: str, env: Mapping[str, str], output: int
    ) -> None:
        """words: a script and its arguments, or `dvc` and its own; output: a file descriptor"""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(path)
        content = json.dumps({"words": words, "folder": folder, "env": dict(env)}).encode()
        socket.send_fds(self._connection, [content], [output])
        self.pid = int(self._connection.recv(20))

    def wait(self, seconds: float | None = None) -> int | None:
        """Return how it ended, -9 if it was killed, or None where it has not within some time."""
        self._connection.settimeout(seconds)
        try:
            code = int(self._connection.recv(20))
        except TimeoutError:
            return None
        self._connection.close()
        return code


class Zygote:
    """The process that forks, and what goes in the place of python in a search path."""

    def __init__(self, folder: Path, *before: str) -> None:
        """before: a command that starts another with what follows, in its own place"""
        self.socket = str(folder / "socket")
        self.programs = folder / "bin"
        self.programs.mkdir()
        python = self.programs / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "$@"\n')
        python.chmod(0o755)
        self._process = subprocess.Popen(
            [*before, sys.executable, __file__, "--serve", self.socket],
            env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        self._process.communicate()


_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # a fork has no more


def _load() -> None:
    """Import what stages and dvc import, and nothing that a stage would find changed."""
    for name in _LIBRARIES:
        import_module(name)
    sys.path.insert(0, str(_STAGES))
    for name in _NAMES:
        import_module(name)
        del sys.modules[name]
    del sys.path[0]
    from tagger.gathering import overview, pictures  # the first as its stage does, when it needs it

    pictures._CHUNK = 30  # else so few pictures would be one chunk, and no processes share them
    del overview
    gc.freeze()  # collecting it would copy all of it


def _serve(path: str) -> None:
    _load()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()
        with selectors.DefaultSelector() as ready:
            ready.register(listening, selectors.EVENT_READ)
            ready.register(0, selectors.EVENT_READ)
            print("ready", flush=True)
            _answer(listening, ready)


def _answer(listening: socket.socket, ready: selectors.BaseSelector) -> None:
    """Fork whenever one connects, and tell it how its process ended; until nobody is left."""
    while True:
        for key, _ in ready.select():
            if key.fileobj == 0:
                return
            if key.fileobj is not listening:
                pid, connection = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                ready.unregister(key.fileobj)
                os.close(key.fd)
                _tell(connection, code)
                continue
            connection, _ = listening.accept()
            content, (output,), *_ = socket.recv_fds(connection, 1 << 20, 1)
            pid = os.fork()
            if not pid:
                listening.close()
                ready.close()
                _become(output, **json.loads(content))
            os.close(output)
            _tell(connection, pid)
            ready.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # it was killed meanwhile
        connection.send(str(number).encode())


def _become(output: int, words: list[str], folder: str, env: dict[str, str]) -> NoReturn:
    """Be the process that was asked for."""
    import multiprocessing.process

    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, place in enumerate((nothing, output, output)):
        os.dup2(place, number)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    code = 1
    try:
        code = _run(words)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # as Python would now take apart, and thereby copy, what is common to all


def _run(words: list[str]) -> int:
    """Return the exit code of dvc or of a script."""
    if words[0] == "dvc":
        from dvc.cli import main

        return int(main(words[1:]))
    sys.path.insert(0, str(Path(words[0]).absolute().parent))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _stand_in(words: list[str]) -> NoReturn:
    begun = time.monotonic()
    code = Started(os.environ[SOCKET], words, os.getcwd(), os.environ, 1).wait()  # noqa: PTH109
    if times := os.environ.get(TIMES):
        with open(times, "a") as file:  # noqa: PTH123
            file.write(f"{words[0]} {time.monotonic() - begun:.3f}\n")
    os._exit(code if code is not None and code >= 0 else 137)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(sys.argv[2])
    else:
        _stand_in(sys.argv[1:])
