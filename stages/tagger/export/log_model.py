"""Log the export as a model that MLflow loads and serves."""

import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from modulefinder import ModuleFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from PIL import Image

from tagger.core import files
from tagger.models import layouts
from tagger.tracking import store
from tagger.tracking.runs import TrackedRun

MODEL_NAME = "export"  # of the model in its run
FILES = (
    layouts.ONNX,
    layouts.SELECTED_TAGS,
    layouts.PREPROCESS,
    layouts.THRESHOLDS,
    layouts.CALIBRATION,
)
PACKAGES = (
    "imagecodecs",
    "mlflow",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",  # instead of the other
    "pandas",
    "pillow",
    "rich",
    "simplejpeg",
)

_STAGES = Path(__file__).parents[2]
_DIGEST = "digest"  # tag of the model


def log_export(run: TrackedRun, folder: Path) -> None:
    """Log an export as a model of a run, unless it is the run's latest one already."""
    run.log(_log, str(run.id), folder)


def _log(run_id: str, folder: Path) -> None:
    from tagger.export import mlflow_model

    artifacts = [folder / name for name in FILES if (folder / name).is_file()]
    code, requirements = _code(Path(mlflow_model.__file__)), pinned_requirements()
    digest = _digest([*artifacts, *code], requirements)
    latest = store.logged_models(run_id).get(MODEL_NAME)
    if latest and latest.tags.get(_DIGEST) == digest:
        return
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with TemporaryDirectory() as temporary, _without_bytecode():
        for path in code:
            copy = Path(temporary) / path.relative_to(_STAGES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            python_model=mlflow_model.__file__,
            artifacts={path.name: str(path) for path in artifacts},
            code_paths=[f"{temporary}/tagger"],
            signature=mlflow_model.SIGNATURE,
            input_example=_example(),
            pip_requirements=requirements,
            tags={_DIGEST: digest},
        )


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Keep Python from writing bytecode, which MLflow would take for code of the model."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _code(program: Path) -> list[Path]:
    """Return the files of the project that a program imports, and the program."""
    finder = ModuleFinder(path=[str(_STAGES)])
    finder.run_script(str(program))
    modules: dict[str, Any] = finder.modules
    return sorted({Path(each.__file__) for each in modules.values() if each.__file__})


def pinned_requirements() -> list[str]:
    """Return the packages that the served model imports, with the versions installed here."""
    lines = []
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            lines.append(f"{name}=={metadata.version(name)}")
    return lines


def _digest(paths: Iterable[Path], requirements: Sequence[str]) -> str:
    lines = [*(f"{path.name} {files.sha256_file(path)}" for path in paths), *requirements]
    return files.sha256_digest("\n".join(lines).encode()).hex()


def _example() -> tuple[pd.DataFrame, dict[str, str]]:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(content, "PNG")
    return pd.DataFrame({"image": [content.getvalue()]}), {"threshold": "best"}
