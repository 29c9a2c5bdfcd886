"""Child processes start wherever temporary files lie."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
from tagger.system.workers import run_tasks


def double(task, begin):
    return 2 * task


if __name__ == "__main__":
    print(*run_tasks(double, [1, 2], workers=1, timeout=None, window=4))
"""


def test_workers_start_if_the_path_of_the_temporary_folder_is_long(
    root: Path, tmp_path: Path
) -> None:
    script, folder = tmp_path / "script.py", tmp_path / ("long" * 20)
    script.write_text(SCRIPT)
    folder.mkdir()
    variables = {"PYTHONPATH": str(root / "stages"), "TMPDIR": str(folder)}
    process = subprocess.run(
        [sys.executable, script],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "2 4\n"), process.stderr
