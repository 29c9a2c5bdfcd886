"""Child processes: they end with their parent, and by no signal of others.

Ctrl-C and the end of a job come to all processes of a group. The parent alone acts on them: it
stops when its work is whole, for which it needs its children, and then ends them.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from tagger.system.signals import block_stop_signals

_SOCKET = "/pymp-12345678/listener-12345678"  # multiprocessing's, below the temporary folder
_MAX_SOCKET_PATH = 103  # bytes, on macOS; Linux allows 107


def context() -> Any:
    """Return multiprocessing's way to start a process without the threads of this one."""
    return multiprocessing.get_context("forkserver" if _has_fork_server() else "spawn")


def _has_fork_server() -> bool:
    """Whether the system has it, and its socket in the temporary folder a path that is allowed."""
    fits = len(os.fsencode(tempfile.gettempdir())) + len(_SOCKET) <= _MAX_SOCKET_PATH
    return fits and "forkserver" in multiprocessing.get_all_start_methods()


def prestart(*modules: str) -> None:
    """Start the process that forks the others, and return while it imports some modules.

    Does nothing if it runs already.
    """
    if _has_fork_server():
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(list(modules))
        with block_stop_signals(), _module_path_in_environment():
            forkserver.ensure_running()


@contextmanager
def _module_path_in_environment() -> Iterator[None]:
    """Let a Python program started meanwhile find modules where this one does.

    The process that forks learns it in no other way before Python 3.13.
    """
    previous = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        yield
    finally:
        if previous is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = previous


def start(target: Any, arguments: Sequence[Any]) -> BaseProcess:
    """Start a process that calls the target, which calls `settle` first."""
    process: BaseProcess = context().Process(target=target, args=arguments, daemon=True)
    with block_stop_signals():
        process.start()
    return process


def settle() -> None:
    """Let this process, which multiprocessing started, end with its parent or by its SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent

    def wait_for_signal() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    def wait_for_end() -> None:
        parent.join()
        os._exit(1)

    for wait in (wait_for_signal, wait_for_end):
        threading.Thread(target=wait, daemon=True).start()
