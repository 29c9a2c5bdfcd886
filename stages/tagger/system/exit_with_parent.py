"""Processes that would outlive the one that started them."""

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """Let this process, one that multiprocessing started, end at once when its parent does.

    Else it would wait for work for ever where the parent is killed, after it had gone on to write
    where the next run does.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
