"""Run a script with limited memory; write the MB that it took at most to a file.

usage: limited_memory.py FILE SCRIPT [ARGUMENT...]
"""

import resource
import runpy
import sys
from pathlib import Path

LIMIT = 12 << 30  # bytes of address space


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    file = Path(sys.argv[1])
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    before = peak()  # of what was forked
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        file.write_text(str(peak() - before))
