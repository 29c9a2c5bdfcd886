"""Child processes: started so that signals to the whole group spare them, ended with their parent.

Ctrl-C and the end of a job come to all processes of a group. The parent alone heeds them, stops
when its work is whole, for which it needs its children, and ends them.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from tagger.system import signals


def context() -> Any:
    """Return multiprocessing's way to start a process without the threads of this one."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def prestart(*modules: str) -> None:
    """Start the process from which others are forked, once it has imported some modules.

    It imports them while this process goes on.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        context().set_forkserver_preload(list(modules))
        with deaf(), _path_in_environment():
            forkserver.ensure_running()


@contextmanager
def _path_in_environment() -> Iterator[None]:
    """Let Python programs started meanwhile find modules where this one does.

    The process that forks others learns it in no other way before Python 3.13.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(target: Any, arguments: Sequence[Any]) -> BaseProcess:
    """Start a process that calls the target, which calls `settle` first."""
    process: BaseProcess = context().Process(target=target, args=arguments, daemon=True)
    with deaf():
        process.start()
    return process


def deaf() -> AbstractContextManager[None]:
    """Start processes that hear no signal to stop until they call `settle`."""
    return signals.blocked(*signals.STOP_SIGNALS)


def settle() -> None:
    """Let this process, which multiprocessing started, end with its parent, or by its signal."""
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
