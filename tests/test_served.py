"""What MLflow loads and serves tags as infer does, wherever it is, and without torch."""

import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow
import pandas as pd
import pytest
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from PIL import Image
from stores import client, project, stored
from trainings import _empty_store

from tagger import registry, serving, store, tracking
from tagger.dataset import Part

__all__ = ["project"]

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


@pytest.fixture(scope="module")
def folder(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model as MLflow keeps it."""
    root = tmp_path_factory.mktemp("logged")
    (root / "mlflow.db").write_bytes(_empty_store())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracking.run("vit") as run:
            serving.log(run, export_folder)
    (model,) = (root / "mlruns" / "models").iterdir()
    yield model / "artifacts"
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture
def several(part: Part, tmp_path: Path) -> list[Path]:
    """Pictures of three kinds, more than are tagged at a time."""
    paths = [tmp_path / f"{row:02}.{('png', 'jpg', 'webp')[row % 3]}" for row in range(10)]
    for place, path in zip(part.places, paths, strict=False):
        with Image.open(place.path) as image:
            image.convert("RGB").save(path)
    return paths


def flat(said: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the tags of all categories, by falling confidence."""
    every = [pair for tags in said.values() for pair in tags.items()]
    return dict(sorted(every, key=lambda pair: -pair[1]))


def inferred(run: Callable[..., int], *arguments: object) -> list[tuple[str, dict[str, float]]]:
    """Return rating and tags of each picture as infer writes them."""
    assert run(*arguments, "--output", "json", "--output-dir", "said", "--device", "cpu") == 0
    said = json.loads(Path("said/tags.json").read_text(encoding="utf-8"))
    return [(one["rating"], flat(one["tags"])) for one in said]


def check(answers: list[dict[str, Any]], wanted: list[tuple[str, dict[str, float]]]) -> None:
    assert [one["rating"] for one in answers] == [rating for rating, _ in wanted]
    assert [one["error"] for one in answers] == [None] * len(wanted)
    for answer, (_, tags) in zip(answers, wanted, strict=True):
        assert list(answer["tags"]) == list(tags)
        assert answer["tags"] == pytest.approx(tags, abs=2e-6)


def asked(model: Any, threshold: str | None = None, **columns: list[Any]) -> list[dict[str, Any]]:
    params = {"threshold": threshold} if threshold else None
    return list(model.predict(pd.DataFrame(columns), params).to_dict("records"))


@pytest.mark.parametrize("threshold", ["best", "category", "0.2", "general=0.1,character=0.9"])
def test_paths_and_bytes_are_tagged_as_by_infer(
    model: Any, several: list[Path], run: Callable[..., int], threshold: str
) -> None:
    wanted = inferred(run, *several, "--threshold", threshold)
    assert len({len(tags) for _, tags in wanted}) > 1
    check(asked(model, threshold, path=list(map(str, several))), wanted)
    check(asked(model, threshold, image=[path.read_bytes() for path in several]), wanted)


def test_without_a_threshold_each_tag_has_its_own(model: Any, several: list[Path]) -> None:
    paths = list(map(str, several))
    assert asked(model, path=paths) == asked(model, "best", path=paths)


def test_a_picture_that_cannot_be_read_costs_no_other(model: Any, several: list[Path]) -> None:
    good, other = (path.read_bytes() for path in several[:2])
    told = asked(model, image=[good, b"no picture", good[:500], other])
    (first,), (last,) = asked(model, image=[good]), asked(model, image=[other])
    for found, alone in ((told[0], first), (told[3], last)):
        assert found["tags"] == pytest.approx(alone["tags"], abs=1e-5)
    assert told[1] == {"rating": None, "tags": {}, "error": "is no picture of a known kind"}
    assert told[2]["error"]
    (lost,) = asked(model, path=[str(several[0].with_name("none.png"))])
    assert lost["error"] == "No such file or directory"


def test_each_row_has_an_image_or_a_path(model: Any, several: list[Path]) -> None:
    path, data = str(several[0]), several[0].read_bytes()
    table: dict[str, Any] = {
        "image": [data, None, data, None, b"", "text", None],
        "path": [None, path, path, None, "", None, ["x"]],
    }
    told = asked(model, **table)
    assert told[0]["tags"] == pytest.approx(told[1]["tags"], abs=1e-5)
    assert [one["error"] for one in told] == [
        None,
        None,
        "has both image and path, of which one is wanted",
        "has neither image nor path",
        "has neither image nor path",
        "its image is not bytes, base64 in JSON",
        "its path is not a text",
    ]


def test_rows_keep_their_index(model: Any, several: list[Path]) -> None:
    table = pd.DataFrame({"path": [str(several[0]), "none.png"]}, index=["b", "a"])
    assert list(model.predict(table).index) == ["b", "a"]
    assert model.predict(table[:0]).to_dict("records") == []


@pytest.mark.parametrize("threshold", ["1.5", "high", "genral=0.5"])
def test_a_wrong_threshold_is_an_error_of_the_request(
    model: Any, several: list[Path], threshold: str
) -> None:
    with pytest.raises(MlflowException, match=r"^threshold: [^\n]+$"):
        asked(model, threshold, path=[str(several[0])])


def test_a_table_without_the_columns_is_an_error_of_the_request(model: Any) -> None:
    with pytest.raises(MlflowException, match="neither a column 'image' nor 'path'"):
        asked(model, picture=["a.png"])


def test_a_model_without_ratings_gives_none(
    model: Any, several: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = model.unwrap_python_model()
    tags = [tag._replace(category=0) for tag in program._tagger.tags]
    monkeypatch.setattr(program, "_tagger", replace(program._tagger, tags=tags))
    (told,) = asked(model, "0", path=[str(several[0])])
    assert told["rating"] is None
    assert len(told["tags"]) == len(tags)


def test_the_example_is_tagged(model: Any) -> None:
    (told,) = model.predict(model.input_example).to_dict("records")
    assert told["error"] is None


def test_only_what_tagging_needs_is_kept(folder: Path, export_folder: Path) -> None:
    names = {path.name for path in (folder / "artifacts").iterdir()}
    assert names == {*serving.FILES}
    assert not {path.suffix for path in folder.rglob("*.*")} & {".pkl", ".pyc", ".safetensors"}
    for name in names:
        assert (folder / "artifacts" / name).read_bytes() == (export_folder / name).read_bytes()


def test_it_needs_neither_torch_nor_the_project_nor_other_packages(
    folder: Path, several: list[Path], run: Callable[..., int], tmp_path: Path, root: Path
) -> None:
    wanted = inferred(run, *several, "--threshold", "category")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DVC_ROOT")}
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder), *map(str, several)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told, imported, code = json.loads(ended.stdout.splitlines()[-1])
    check(told, wanted)
    assert Path(code) == folder / "code" / "tagger" / "__init__.py"
    pinned = (folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in pinned] == sorted(
        {"PIL": "pillow"}.get(name, name) for name in imported
    )
    assert set(pinned) <= set((root / "requirements.txt").read_text().splitlines())


@contextmanager
def served(uri: str, folder: Path) -> Iterator[str]:
    """Yield the address of `mlflow models serve`, once it answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = ["models", "serve", "-m", uri, "-p", str(port), "-h", "127.0.0.1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--env-manager", "local"],
            env=os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(400):
            assert server.poll() is None, (folder / "serve.log").read_text()
            try:
                with urlopen(f"http://127.0.0.1:{port}/ping"):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def posted(address: str, **content: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(address, json.dumps(content).encode(), headers)) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.timeout(90)
def test_a_registered_run_is_served(
    project: Path, export_folder: Path, several: list[Path], run: Callable[..., int]
) -> None:
    wanted = inferred(run, *several)
    with tracking.run("vit", data="abc") as trained:
        trained.log_checkpoint("best", Path("models/tagger/model.safetensors"), {"ap": 0.5}, 3)
    with tracking.run(run_id=trained.id) as again:
        again.log_metrics({"test": {"macro_ap": 0.5}})
        serving.log(again, export_folder)
    best = registry.best("test.macro_ap", "abc")
    assert best
    assert registry.register(best, "illustration-tagger", "best").file == ""
    uri = "models:/illustration-tagger@best"
    check(asked(mlflow.pyfunc.load_model(uri), path=list(map(str, several))), wanted)
    pictures = [[base64.b64encode(path.read_bytes()).decode()] for path in several]
    pictures.append(["bm8gcGljdHVyZQ=="])
    with served(uri, project) as address:
        *told, lost = posted(address, dataframe_split={"columns": ["image"], "data": pictures})
        check(told, wanted)
        assert lost == {"rating": None, "tags": {}, "error": "is no picture of a known kind"}
        rows = [{"path": str(path)} for path in several]
        check(posted(address, dataframe_records=rows), wanted)
        with pytest.raises(HTTPError) as refused:
            posted(address, dataframe_records=rows, params={"threshold": "1.5"})
        with refused.value as answer:
            assert answer.code == 400
            assert "threshold: 1.5 is not between 0 and 1" in json.load(answer)["message"]


def test_an_export_is_logged_once_and_its_run_stays_as_it_was(
    project: Path, export_folder: Path, write: Callable[[str, bytes], Path]
) -> None:
    with tracking.run("vit") as trained:
        trained.log_metrics({"test": {"macro_ap": 0.5}})
    before = stored(project, trained.id)
    for _ in range(2):
        with tracking.run(run_id=trained.id) as again:
            serving.log(again, export_folder)
    after, here = stored(project, trained.id), client(project)
    assert (dict(after.info), after.data.metrics) == (dict(before.info), before.data.metrics)
    assert len(here.get_metric_history(str(trained.id), "test.macro_ap")) == 1
    (first,) = here.search_logged_models([after.info.experiment_id])
    assert (first.name, first.status) == (serving.NAME, LoggedModelStatus.READY)
    assert first.metrics and [(one.key, one.value) for one in first.metrics] == [
        ("test.macro_ap", 0.5)
    ]
    for name in serving.FILES:
        write(f"other/{name}", (export_folder / name).read_bytes())
    (project / "other" / "calibration.json").unlink()
    with tracking.run(run_id=trained.id) as again:
        serving.log(again, project / "other")
    assert len(here.search_logged_models([after.info.experiment_id])) == 2
    assert store.checkpoints(here, str(trained.id))[serving.NAME].model_id != first.model_id


@pytest.mark.timeout(30)
def test_a_broken_store_is_told_once(
    project: Path, export_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run("vit") as run:
        (project / "mlflow.db").write_bytes(b"this is no database, and never was one\n" * 40)
        serving.log(run, export_folder)
        serving.log(run, export_folder)
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "going on without it" in told[0]


def test_logging_says_nothing(
    project: Path, export_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with tracking.run("vit") as run:
        serving.log(run, export_folder)
    assert capfd.readouterr() == ("", "")
