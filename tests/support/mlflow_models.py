"""An export as a model of MLflow, and the tags of infer for the same images."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from PIL import Image

from support.projects import empty_mlflow_store
from tagger.export import log_model
from tagger.images.dataset import Split
from tagger.tracking import runs


@pytest.fixture(scope="module")
def mlflow_folder(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model as MLflow keeps it."""
    root = tmp_path_factory.mktemp("logged")
    (root / "mlflow.db").write_bytes(empty_mlflow_store())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with runs.start("vit") as run:
            log_model.log_export(run, export_folder)
    (model,) = (root / "mlruns" / "models").iterdir()
    yield model / "artifacts"
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mlflow_model(mlflow_folder: Path) -> Any:
    return load_model(str(mlflow_folder))


def load_model(uri: str) -> Any:
    """Load a model. MLflow leaves its code first on the path, where processes would find it.

    Its folder stays as it was.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr(sys, "path", sys.path.copy())
        return mlflow.pyfunc.load_model(uri)


@pytest.fixture
def image_files(split: Split, tmp_path: Path) -> list[Path]:
    """Images of three formats, more than one batch."""
    paths = [tmp_path / f"{row:02}.{('png', 'jpg', 'webp')[row % 3]}" for row in range(10)]
    for location, path in zip(split.locations, paths, strict=False):
        with Image.open(location.path) as image:
            image.convert("RGB").save(path)
    return paths


def flatten_categories(by_category: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the tags of all categories, by falling confidence."""
    pairs = [pair for tags in by_category.values() for pair in tags.items()]
    return dict(sorted(pairs, key=lambda pair: -pair[1]))


def infer_tags(run: Callable[..., int], *arguments: object) -> list[tuple[str, dict[str, float]]]:
    """Return rating and tags of each image as infer writes them."""
    assert run(*arguments, "--output", "json", "--output-dir", "inferred", "--device", "cpu") == 0
    rows = json.loads(Path("inferred/tags.json").read_text(encoding="utf-8"))
    return [(row["rating"], flatten_categories(row["tags"])) for row in rows]


def assert_same_tags(
    rows: list[dict[str, Any]], expected: list[tuple[str, dict[str, float]]]
) -> None:
    assert [row["rating"] for row in rows] == [rating for rating, _ in expected]
    assert [row["error"] for row in rows] == [None] * len(expected)
    for row, (_, tags) in zip(rows, expected, strict=True):
        assert list(row["tags"]) == list(tags)
        assert row["tags"] == pytest.approx(tags, abs=2e-6)


def predict(model: Any, threshold: str | None = None, **columns: list[Any]) -> list[dict[str, Any]]:
    params = {"threshold": threshold} if threshold else None
    return list(model.predict(pd.DataFrame(columns), params).to_dict("records"))
