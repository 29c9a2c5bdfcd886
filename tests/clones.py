"""Copies of the repository in which the whole pipeline takes seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tagger import params

ROOT = Path(__file__).parent.parent
STAGES = ("demo", "prepare", "vocabulary", "split", "train", "evaluate", "export")
TINY: dict[str, Any] = {
    "demo": {"pictures": 80, "size": 32},
    "vocabulary": {"min_count": 8},
    "train": {"epochs": 2, "workers": 0},
    "evaluate": {"workers": 0},
    "export": {"lighter": ["fp16"], "samples": 2, "parity_pictures": 8},
    "models": {
        "mobilenetv4": {
            "backbone": "test_efficientnet",
            "image_size": 32,
            "batch_size": 16,
        }
    },
}


def environment(**more: str) -> dict[str, str]:
    """Return the variables for a command in a clone, in which `python` is that of the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"} | more


def git(clone: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=clone, check=True, capture_output=True)


def made(clone: Path, changes: Mapping[str, Any]) -> Path:
    """Return a repository with the files of this one, committed, and parameters for seconds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    content = yaml.safe_load((ROOT / params.PATH).read_text(encoding="utf-8"))
    content = params.overlaid(params.overlaid(content, TINY), dict(changes))
    (clone / params.PATH).write_text(yaml.safe_dump(content), encoding="utf-8")
    with (clone / ".dvc/config").open("a", encoding="utf-8") as file:
        file.write("    check_update = false\n")  # below [core]: it would start a process
    git(clone, "init", "--quiet")
    git(clone, "config", "user.name", "test")
    git(clone, "config", "user.email", "test@localhost")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "test")
    return clone
