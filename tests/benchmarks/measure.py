"""Run a part of a benchmark in a fresh process: its answer, and the memory it took."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

_PAUSE = 1.0  # seconds between two looks at the memory, which hold up what is looked at


class Run(NamedTuple):
    answer: Any  # what the part printed, from JSON
    peak: float  # GB, of the process and all that it started


def run(script: str, *arguments: object) -> Run:
    """Run a script with arguments; its last line is its answer."""
    command = [sys.executable, script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while True:
            peak = max(peak, sum(map(_proportional, _family(process.pid))))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(_PAUSE)
        process.returncode = os.waitstatus_to_exitcode(status)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return Run(json.loads(output.splitlines()[-1]), max(peak, usage.ru_maxrss * 1024) / 1e9)


def _family(process: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{process}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended meanwhile
        return []
    return [process, *(descendant for child in children for descendant in _family(int(child)))]


def _proportional(process: int) -> int:
    """Return the memory of a process in bytes, its share of what it has in common with others."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
