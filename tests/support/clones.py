"""Copies of the repository in which the whole pipeline takes seconds."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tagger import params

ROOT = Path(__file__).parents[2]
STAGES = ("demo", "prepare", "vocabulary", "split", "train", "evaluate", "export")
TINY_PARAMS: dict[str, Any] = {
    "demo": {"images": 80, "size": 32},
    "vocabulary": {"min_count": 8},
    "train": {"epochs": 2, "workers": 0},
    "evaluate": {"workers": 0},
    "export": {"quantize": ["fp16"], "samples": 2, "parity_images": 8},
    "models": {
        "mobilenetv4": {
            "backbone": "test_efficientnet",
            "image_size": 32,
            "batch_size": 16,
        }
    },
}

TARGETS = {stage: "data/dvc.yaml:demo" if stage == "demo" else stage for stage in STAGES}  # of dvc

# For the finished pipeline that many tests copy: its stages keep all the state that they can keep.
FINISHED_PARAMS: dict[str, Any] = {
    "demo": {"images": 64},
    "prepare": {"copies": {"side": 24}},
    "vocabulary": {"min_count": 6},
    "train": {"workers": 1, "snapshot_every": "1 step"},
    "evaluate": {"workers": 1},
    "models": {"vit": {"backbone": "test_vit", "image_size": 32, "batch_size": 16}},
}

_RUN_VALUES = (  # MLflow run ids and measured speeds
    rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])",
    rb'"speedup": [\d.]+',
    rb"(?<=MB, )[\d.]+ times as fast|(?<=\| )[\d.]+ x(?= \|)",
)


def without_run_values(content: bytes) -> bytes:
    """Return the content of a file without the values that differ from run to run."""
    for pattern in _RUN_VALUES:
        content = re.sub(pattern, b"", content)
    return content


def output_paths(clone: Path, stages: Sequence[str] = STAGES) -> list[Path]:
    """Return the outputs of stages in dvc.yaml."""
    content: dict[str, Any] = {}
    for path in ("dvc.yaml", "data/dvc.yaml"):
        content |= yaml.safe_load((clone / path).read_text(encoding="utf-8"))["stages"]
    outputs = [
        out
        for stage in stages
        for kind in ("outs", "metrics", "plots")
        for out in content[stage].get(kind, ())
    ]
    return [clone / (next(iter(out)) if isinstance(out, dict) else out) for out in outputs]


def remove_outputs(clone: Path, stage: str) -> None:
    """Remove the outputs of a stage, as dvc does before it runs the stage."""
    for path in output_paths(clone, [stage]):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_outputs(clone: Path, stages: Sequence[str] = STAGES) -> dict[str, bytes]:
    """Return the content of all files that stages wrote, except the log of the training."""
    paths = [inner for path in output_paths(clone, stages) for inner in (path, *path.rglob("*"))]
    by_name = {str(path.relative_to(clone)): path for path in paths if path.is_file()}
    by_name.pop("models/tagger/train.log", None)
    return {name: without_run_values(path.read_bytes()) for name, path in by_name.items()}


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a command in a clone; `python` is the one that runs the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    return variables | {"PATH": path, "OMP_NUM_THREADS": "1"} | more


def git(folder: Path, *arguments: str) -> str:
    """Run git and return its output."""
    command = ["git", *arguments]
    process = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return process.stdout


def stages_run(output: str) -> list[str]:
    """Return the stages that dvc ran, by what it printed."""
    return re.findall(r"Running stage '(?:data/dvc.yaml:)?(\w+)'", output)


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "test")


def make_clone(clone: Path, changes: Mapping[str, Any]) -> Path:
    """Commit the files of this repository in a new one, with parameters for seconds.

    changes: more parameters
    """
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    content = yaml.safe_load((ROOT / params.PATH).read_text(encoding="utf-8"))
    content = params.merge(params.merge(content, TINY_PARAMS), dict(changes))
    (clone / params.PATH).write_text(yaml.safe_dump(content), encoding="utf-8")
    with (clone / ".dvc/config").open("a", encoding="utf-8") as file:
        file.write("    check_update = false\n")  # below [core]: it would start a process
    git(clone, "init", "--quiet")
    git(clone, "config", "user.name", "test")
    git(clone, "config", "user.email", "test@localhost")
    commit(clone)
    return clone
