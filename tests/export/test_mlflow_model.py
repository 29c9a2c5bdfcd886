"""The served model tags as infer does, in any folder, and without torch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from support.mlflow_models import (
    assert_same_tags,
    image_files,
    infer_tags,
    mlflow_folder,
    mlflow_model,
    predict,
)
from tagger.export import log_model

__all__ = ["image_files", "mlflow_folder", "mlflow_model"]

ELSEWHERE = """
import builtins, json, sys
sys.modules["torch"] = None  # importing it fails
imported, load = set(), builtins.__import__
def record(name, space=None, *rest, **named):
    if (space or {}).get("__name__", "").startswith(("tagger", "code_model_")):
        imported.add(name.partition(".")[0])
    return load(name, space, *rest, **named)
builtins.__import__ = record
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
output = model.predict(pandas.DataFrame({"path": sys.argv[2:]}), {"threshold": "category"})
import tagger
packages = sorted(imported - sys.stdlib_module_names - {"tagger"})
print(json.dumps([output.to_dict("records"), packages, tagger.__file__]))
"""


@pytest.mark.parametrize("threshold", ["best", "category", "0.2", "general=0.1,character=0.9"])
def test_paths_and_bytes_are_tagged_as_by_infer(
    mlflow_model: Any, image_files: list[Path], run_infer: Callable[..., int], threshold: str
) -> None:
    expected = infer_tags(run_infer, *image_files, "--threshold", threshold)
    assert len({str(tags) for _, tags in expected}) == len(image_files)
    paths = list(map(str, image_files))
    of_paths = predict(mlflow_model, threshold, path=paths)
    assert_same_tags(of_paths, expected)
    contents = [path.read_bytes() for path in image_files]
    assert_same_tags(predict(mlflow_model, threshold, image=contents), expected)
    assert (predict(mlflow_model, path=paths) == of_paths) == (threshold == "best")


def test_unreadable_image_costs_no_other(mlflow_model: Any, image_files: list[Path]) -> None:
    good, other = (path.read_bytes() for path in image_files[:2])
    rows = predict(mlflow_model, image=[good, b"no image", good[:500], other])
    (first,), (last,) = predict(mlflow_model, image=[good]), predict(mlflow_model, image=[other])
    for row, alone in ((rows[0], first), (rows[3], last)):
        assert row["tags"] == pytest.approx(alone["tags"], abs=1e-5)
    assert (rows[1]["rating"], rows[1]["tags"]) == (None, {})
    assert "of a known format" in rows[1]["error"]
    assert rows[2]["error"]
    (missing,) = predict(mlflow_model, path=[str(image_files[0].with_name("none.png"))])
    assert missing["error"] == "No such file or directory"


def test_each_row_has_an_image_or_a_path(mlflow_model: Any, image_files: list[Path]) -> None:
    path, data = str(image_files[0]), image_files[0].read_bytes()
    table: dict[str, Any] = {
        "image": [data, None, data, None, b"", "text", None],
        "path": [None, path, path, None, "", None, ["x"]],
    }
    rows = predict(mlflow_model, **table)
    assert rows[0]["tags"] == pytest.approx(rows[1]["tags"], abs=1e-5)
    assert [row["error"] for row in rows] == [
        None,
        None,
        "has both image and path: give one of them",
        "has neither image nor path",
        "has neither image nor path",
        "its image is not bytes, base64 in JSON",
        "its path is not a text",
    ]


def test_rows_keep_their_index(mlflow_model: Any, image_files: list[Path]) -> None:
    table = pd.DataFrame({"path": [str(image_files[0]), "none.png"]}, index=["b", "a"])
    assert list(mlflow_model.predict(table).index) == ["b", "a"]
    assert mlflow_model.predict(table[:0]).to_dict("records") == []


@pytest.mark.parametrize("threshold", ["1.5", "high", "genral=0.5"])
def test_invalid_threshold_is_an_error_of_the_request(mlflow_model: Any, threshold: str) -> None:
    with pytest.raises(MlflowException, match=r"^threshold: [^\n]+$"):
        predict(mlflow_model, threshold, path=["a.png"])


def test_table_without_the_columns_is_an_error_of_the_request(mlflow_model: Any) -> None:
    with pytest.raises(MlflowException, match="neither a column 'image' nor 'path'"):
        predict(mlflow_model, picture=["a.png"])


def test_model_without_ratings_gives_no_rating(
    mlflow_model: Any, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = mlflow_model.unwrap_python_model()
    tags = [tag._replace(category=0) for tag in program.tagger.tags]
    monkeypatch.setattr(program, "tagger", replace(program.tagger, tags=tags))
    (row,) = predict(mlflow_model, "0", path=[str(image_files[0])])
    assert row["rating"] is None
    assert len(row["tags"]) == len(tags)


def test_input_example_is_tagged(mlflow_model: Any) -> None:
    (row,) = mlflow_model.predict(mlflow_model.input_example).to_dict("records")
    assert row["error"] is None


def test_model_holds_only_what_tagging_needs(mlflow_folder: Path, export_folder: Path) -> None:
    artifacts = mlflow_folder / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {*log_model.FILES}
    suffixes = {path.suffix for path in mlflow_folder.rglob("*.*")}
    assert not suffixes & {".pkl", ".pyc", ".safetensors"}
    for name in log_model.FILES:
        assert (artifacts / name).read_bytes() == (export_folder / name).read_bytes()


def test_model_needs_neither_torch_nor_the_project_nor_other_packages(
    mlflow_folder: Path,
    image_files: list[Path],
    run_infer: Callable[..., int],
    tmp_path: Path,
    root: Path,
) -> None:
    expected = infer_tags(run_infer, *image_files, "--threshold", "category")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DVC_ROOT")}
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(mlflow_folder), *map(str, image_files)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows, imported, code = json.loads(ended.stdout.splitlines()[-1])
    assert_same_tags(rows, expected)
    assert Path(code) == mlflow_folder / "code" / "tagger" / "__init__.py"
    pinned = (mlflow_folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in pinned] == sorted(
        {"PIL": "pillow"}.get(name, name) for name in imported
    )
    assert set(pinned) <= set((root / "requirements.txt").read_text().splitlines())
