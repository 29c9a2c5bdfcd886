"""A process that has loaded what the stages load, and forks another for each stage to be run.

So a stage, or dvc, begins at once: it takes them seconds to load torch, MLflow and the like. As a
script with `--serve SOCKET` this is that process; with anything else it stands for `python` in the
commands of dvc.yaml and of torchrun: it lives as long as what it has had run, and has its output
and exit code; where it is killed, so is that.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

SOCKET = "ZYGOTE_SOCKET"  # a variable: where it is asked
_STAGES = Path(__file__).parents[2] / "stages"
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


def request_fork(
    path: str, words: Sequence[str], folder: str, env: Mapping[str, str], output: int
) -> tuple[socket.socket, int]:
    """Ask for a process that writes to a file descriptor; return who tells its end, and its pid."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    content = json.dumps({"words": words, "folder": folder, "env": dict(env)}).encode()
    socket.send_fds(connection, [content], [output])
    return connection, int(connection.recv(20))


def _load() -> None:
    """Import what stages and dvc import, and nothing that a stage would find changed."""
    for name in _LIBRARIES:
        import_module(name)
    sys.path.insert(0, str(_STAGES))
    for name in _NAMES:
        import_module(name)
        del sys.modules[name]
    del sys.path[0]
    from tagger.data import overview, posts

    posts.CHUNK_IMAGES = 30  # else so few pictures would be one chunk, and no processes share them
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
    forked: dict[socket.socket, tuple[int, int]] = {}  # by who asked: a pid, and a handle of it
    while True:
        for key, _ in ready.select():
            if key.fileobj == 0:
                return
            if key.fileobj is listening:
                connection, _ = listening.accept()
                forked[connection] = _fork(connection, listening, ready)
                ready.register(forked[connection][1], selectors.EVENT_READ, connection)
                ready.register(connection, selectors.EVENT_READ, connection)
            elif key.data in forked:
                pid, handle = forked.pop(key.data)
                if key.fileobj is key.data:  # it is gone
                    os.kill(pid, signal.SIGKILL)
                _tell(key.data, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                for file in (key.data, handle):
                    ready.unregister(file)
                key.data.close()
                os.close(handle)


def _fork(
    connection: socket.socket, listening: socket.socket, ready: selectors.BaseSelector
) -> tuple[int, int]:
    content, (output,), *_ = socket.recv_fds(connection, 1 << 20, 1)
    pid = os.fork()
    if not pid:
        listening.close()
        ready.close()
        _become(output, **json.loads(content))
    os.close(output)
    _tell(connection, pid)
    return pid, os.pidfd_open(pid)


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # it was killed meanwhile
        connection.send(str(number).encode())


def _become(output: int, words: list[str], folder: str, env: dict[str, str]) -> NoReturn:
    """Be the process that was asked for."""
    import multiprocessing.process

    nothing = os.open(os.devnull, os.O_RDONLY)
    os.setsid()
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
    """Return the exit code of dvc, of a module or of a script."""
    if words[0] == "dvc":
        from dvc.cli import main

        return int(main(words[1:]))
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[0]).absolute().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _stand_in(words: list[str]) -> NoReturn:
    connection, _ = request_fork(os.environ[SOCKET], words, os.getcwd(), os.environ, 1)  # noqa: PTH109
    code = int(connection.recv(20))
    os._exit(code if code >= 0 else 137)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(sys.argv[2])
    else:
        _stand_in(sys.argv[1:])
