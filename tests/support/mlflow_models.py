"""What infer and what MLflow serves say of the same pictures, for tests."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from PIL import Image

from support.trainings import empty_mlflow_store
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
    """Pictures of three kinds, more than are tagged at a time."""
    paths = [tmp_path / f"{row:02}.{('png', 'jpg', 'webp')[row % 3]}" for row in range(10)]
    for place, path in zip(split.locations, paths, strict=False):
        with Image.open(place.path) as image:
            image.convert("RGB").save(path)
    return paths


def flatten_categories(said: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the tags of all categories, by falling confidence."""
    every = [pair for tags in said.values() for pair in tags.items()]
    return dict(sorted(every, key=lambda pair: -pair[1]))


def infer_tags(run: Callable[..., int], *arguments: object) -> list[tuple[str, dict[str, float]]]:
    """Return rating and tags of each picture as infer writes them."""
    assert run(*arguments, "--output", "json", "--output-dir", "said", "--device", "cpu") == 0
    said = json.loads(Path("said/tags.json").read_text(encoding="utf-8"))
    return [(one["rating"], flatten_categories(one["tags"])) for one in said]


def assert_same_tags(
    answers: list[dict[str, Any]], wanted: list[tuple[str, dict[str, float]]]
) -> None:
    assert [one["rating"] for one in answers] == [rating for rating, _ in wanted]
    assert [one["error"] for one in answers] == [None] * len(wanted)
    for answer, (_, tags) in zip(answers, wanted, strict=True):
        assert list(answer["tags"]) == list(tags)
        assert answer["tags"] == pytest.approx(tags, abs=2e-6)


def predict(model: Any, threshold: str | None = None, **columns: list[Any]) -> list[dict[str, Any]]:
    params = {"threshold": threshold} if threshold else None
    return list(model.predict(pd.DataFrame(columns), params).to_dict("records"))
