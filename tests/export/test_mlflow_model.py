"""What MLflow loads tags as infer does, wherever it is, and without torch."""

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
def noted(name, space=None, *rest, **named):
    if (space or {}).get("__name__", "").startswith(("tagger", "code_model_")):
        imported.add(name.partition(".")[0])
    return load(name, space, *rest, **named)
builtins.__import__ = noted
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
said = model.predict(pandas.DataFrame({"path": sys.argv[2:]}), {"threshold": "category"})
import tagger
third = sorted(imported - sys.stdlib_module_names - {"tagger"})
print(json.dumps([said.to_dict("records"), third, tagger.__file__]))
"""


@pytest.mark.parametrize("threshold", ["best", "category", "0.2", "general=0.1,character=0.9"])
def test_paths_and_bytes_are_tagged_as_by_infer(
    mlflow_model: Any, image_files: list[Path], run_infer: Callable[..., int], threshold: str
) -> None:
    wanted = infer_tags(run_infer, *image_files, "--threshold", threshold)
    assert len({str(tags) for _, tags in wanted}) == len(image_files)
    assert_same_tags(predict(mlflow_model, threshold, path=list(map(str, image_files))), wanted)
    assert_same_tags(
        predict(mlflow_model, threshold, image=[path.read_bytes() for path in image_files]), wanted
    )


def test_without_a_threshold_each_tag_has_its_own(
    mlflow_model: Any, image_files: list[Path]
) -> None:
    paths = list(map(str, image_files))
    assert predict(mlflow_model, path=paths) == predict(mlflow_model, "best", path=paths)


def test_a_picture_that_cannot_be_read_costs_no_other(
    mlflow_model: Any, image_files: list[Path]
) -> None:
    good, other = (path.read_bytes() for path in image_files[:2])
    told = predict(mlflow_model, image=[good, b"no picture", good[:500], other])
    (first,), (last,) = predict(mlflow_model, image=[good]), predict(mlflow_model, image=[other])
    for found, alone in ((told[0], first), (told[3], last)):
        assert found["tags"] == pytest.approx(alone["tags"], abs=1e-5)
    assert told[1] == {"rating": None, "tags": {}, "error": "is no picture of a known kind"}
    assert told[2]["error"]
    (lost,) = predict(mlflow_model, path=[str(image_files[0].with_name("none.png"))])
    assert lost["error"] == "No such file or directory"


def test_each_row_has_an_image_or_a_path(mlflow_model: Any, image_files: list[Path]) -> None:
    path, data = str(image_files[0]), image_files[0].read_bytes()
    table: dict[str, Any] = {
        "image": [data, None, data, None, b"", "text", None],
        "path": [None, path, path, None, "", None, ["x"]],
    }
    told = predict(mlflow_model, **table)
    assert told[0]["tags"] == pytest.approx(told[1]["tags"], abs=1e-5)
    assert [one["error"] for one in told] == [
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
def test_a_wrong_threshold_is_an_error_of_the_request(
    mlflow_model: Any, image_files: list[Path], threshold: str
) -> None:
    with pytest.raises(MlflowException, match=r"^threshold: [^\n]+$"):
        predict(mlflow_model, threshold, path=[str(image_files[0])])


def test_a_table_without_the_columns_is_an_error_of_the_request(mlflow_model: Any) -> None:
    with pytest.raises(MlflowException, match="neither a column 'image' nor 'path'"):
        predict(mlflow_model, picture=["a.png"])


def test_a_model_without_ratings_gives_none(
    mlflow_model: Any, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = mlflow_model.unwrap_python_model()
    tags = [tag._replace(category=0) for tag in program._tagger.tags]
    monkeypatch.setattr(program, "_tagger", replace(program._tagger, tags=tags))
    (told,) = predict(mlflow_model, "0", path=[str(image_files[0])])
    assert told["rating"] is None
    assert len(told["tags"]) == len(tags)


def test_the_example_is_tagged(mlflow_model: Any) -> None:
    (told,) = mlflow_model.predict(mlflow_model.input_example).to_dict("records")
    assert told["error"] is None


def test_only_what_tagging_needs_is_kept(mlflow_folder: Path, export_folder: Path) -> None:
    names = {path.name for path in (mlflow_folder / "artifacts").iterdir()}
    assert names == {*log_model.FILES}
    assert not {path.suffix for path in mlflow_folder.rglob("*.*")} & {
        ".pkl",
        ".pyc",
        ".safetensors",
    }
    for name in names:
        assert (mlflow_folder / "artifacts" / name).read_bytes() == (
            export_folder / name
        ).read_bytes()


def test_it_needs_neither_torch_nor_the_project_nor_other_packages(
    mlflow_folder: Path,
    image_files: list[Path],
    run_infer: Callable[..., int],
    tmp_path: Path,
    root: Path,
) -> None:
    wanted = infer_tags(run_infer, *image_files, "--threshold", "category")
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
    told, imported, code = json.loads(ended.stdout.splitlines()[-1])
    assert_same_tags(told, wanted)
    assert Path(code) == mlflow_folder / "code" / "tagger" / "__init__.py"
    pinned = (mlflow_folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in pinned] == sorted(
        {"PIL": "pillow"}.get(name, name) for name in imported
    )
    assert set(pinned) <= set((root / "requirements.txt").read_text().splitlines())
