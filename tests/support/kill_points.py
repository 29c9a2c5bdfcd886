"""Kill a process at its atomic writes, one more at each start, for tests of broken-off stages."""

import os
import re
import signal
import sys
from pathlib import Path

LOG = "KILL_AT_WRITES"  # an environment variable: a file that lists the writes already killed at
ALONE = "KILL_ALONE"  # set: the process is killed alone, as if it had run out of memory


def install() -> None:
    """If `LOG` is set, let this process die at its first atomic write that the file does not list.

    It dies just before the finished file takes its name. Writes that leave the same state behind
    are one: snapshots of different steps, and outputs with the same folder and suffix, as outputs
    are removed before the stage runs again. MLflow's own files are left alone, and temporary ones.
    """
    if LOG in os.environ:
        points = _KillPoints(Path(os.environ[LOG]), alone=ALONE in os.environ)
        sys.addaudithook(points.audit)


class _KillPoints:
    def __init__(self, log: Path, *, alone: bool) -> None:
        self._log = log
        self._alone = alone
        self._pid = os.getpid()
        self._folder = os.getcwd()  # noqa: PTH109
        self._passed = set(log.read_text(encoding="utf-8").splitlines()) if log.exists() else set()

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """Take part in each audit event of this process and of those forked from it."""
        if event != "os.rename":  # os.replace raises it as well
            return
        target = os.path.relpath(os.fsdecode(arguments[1]), self._folder)  # type: ignore[arg-type]
        write = _write(Path(target))
        orphan = self._pid not in (os.getpid(), os.getppid())
        if orphan or target.startswith(("mlruns", os.pardir)) or write in self._passed:
            return
        with self._log.open("a", encoding="utf-8") as file:
            file.write(write + "\n")
        (os.kill if self._alone else os.killpg)(self._pid, signal.SIGKILL)


def _write(target: Path) -> str:
    """Return the name of an atomic write, without the numbers and hashes in paths that are kept."""
    if target.parts[0] == ".scratch" or target.parts[:2] == ("data", "shards"):
        return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "N", str(target))
    return str(target.parent / f"*{target.suffix}")
