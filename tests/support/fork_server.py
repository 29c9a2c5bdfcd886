"""A server that has imported what the stages import, and forks a process for each stage.

A forked stage or dvc starts at once; importing torch, MLflow and the like takes seconds. As a
script with `--serve SOCKET` this is the server. With any other arguments it stands in for `python`
in the commands of dvc.yaml, torchrun and the launcher: it asks the server for a process, lives as
long as that process, has its output and exit code, and takes it along when it is killed.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import shutil
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

SOCKET = "FORK_SERVER_SOCKET"  # an environment variable: the path of the server's socket
_TESTS = Path(__file__).parents[1]
_STAGES = _TESTS.parent / "stages"
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
_STAGE_NAMES = ("demo", "prepare", "vocabulary", "split", "train", "evaluate", "export")


def request_fork(
    path: str, words: Sequence[str], folder: str, env: Mapping[str, str], output: int
) -> tuple[socket.socket, int]:
    """Return the connection that receives the exit code of a new process, and its pid.

    path: of the server's socket
    words: the command line
    output: a file descriptor for what the process prints
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    content = json.dumps({"words": words, "folder": folder, "env": dict(env)}).encode()
    socket.send_fds(connection, [content], [output])
    return connection, int(connection.recv(20))


def _load() -> None:
    """Import what stages and dvc import, and nothing whose change a stage would notice."""
    for name in _LIBRARIES:
        import_module(name)
    sys.path.insert(0, str(_TESTS))
    import_module("support.kill_points")
    sys.path[0] = str(_STAGES)
    for name in _STAGE_NAMES:
        import_module(name)
        del sys.modules[name]
    import_module("tagger.data.overview")
    del sys.path[0]
    from tagger.data import posts

    posts.CHUNK_IMAGES = 30  # else so few images were one chunk, for one process
    gc.freeze()  # collecting it would copy all of it


def _serve(path: str) -> None:
    _load()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            print("ready", flush=True)
            _fork_on_request(listener, selector)


def _fork_on_request(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    """Fork for each connection and send it the exit code, until standard input is closed."""
    processes: dict[socket.socket, tuple[int, int]] = {}  # pid and pidfd by connection
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                return
            if key.fileobj is listener:
                connection, _ = listener.accept()
                processes[connection] = _fork(connection, listener, selector)
                selector.register(processes[connection][1], selectors.EVENT_READ, connection)
                selector.register(connection, selectors.EVENT_READ, connection)
            elif key.data in processes:
                pid, pidfd = processes.pop(key.data)
                if key.fileobj is key.data:  # the client is gone
                    os.kill(pid, signal.SIGKILL)
                _send_number(key.data, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                for file in (key.data, pidfd):
                    selector.unregister(file)
                key.data.close()
                os.close(pidfd)


def _fork(
    connection: socket.socket, listener: socket.socket, selector: selectors.BaseSelector
) -> tuple[int, int]:
    content, (output,), *_ = socket.recv_fds(connection, 1 << 20, 1)
    pid = os.fork()
    if not pid:
        listener.close()
        selector.close()
        _become(output, **json.loads(content))
    os.close(output)
    _send_number(connection, pid)
    return pid, os.pidfd_open(pid)


def _send_number(connection: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # the client was killed meanwhile
        connection.send(str(number).encode())


def _become(output: int, words: list[str], folder: str, env: dict[str, str]) -> NoReturn:
    """Turn this fork into the requested process, in a session of its own."""
    import multiprocessing.process

    from support import kill_points  # imported by _load

    null = os.open(os.devnull, os.O_RDONLY)
    os.setsid()
    for number, file in enumerate((null, output, output)):
        os.dup2(file, number)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    sys.executable = shutil.which("python") or sys.executable  # the stand-in, see above
    kill_points.install()
    code = 1
    try:
        code = _run(words)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # an ordinary exit would first write to, and so copy, all shared memory


def _run(words: list[str]) -> int:
    """Run dvc, a module or a script, and return its exit code."""
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
    except SystemExit as error:
        return int(error.code or 0)
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
