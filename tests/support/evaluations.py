"""Projects with a model to be judged, and what judges it in this process."""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import evaluate
from support.projects import Project, make_project
from tagger import params
from tagger.core import errors, files, manifest
from tagger.core.vocabulary import Tag
from tagger.images import dataset
from tagger.images.dataset import Split
from tagger.params import Params, Preset
from tagger.training import setup

SIZES = (4, 9, 11)  # pictures of each part
LOADING = {"batch_size": 4, "workers": 0}  # neither part is a number of whole batches


def project_with_model(
    folder: Path,
    shipped: Params,
    demo: Path,
    preset: Preset,
    model: Path,
    sizes: Sequence[int] = SIZES,
) -> Project:
    """Return a project that has a model as if it had trained it, out of MLflow's sight."""
    made = make_project(folder, shipped, demo, preset, sizes)
    made.edit_params(evaluate=LOADING)
    shutil.copytree(model, folder / "models" / "tagger")
    write_run_json(made, None)
    return made


def write_run_json(made: Project, run_id: str | None) -> None:
    """Say of the model of a project in which run of MLflow it was trained."""
    data = [made.folder / "data" / name for name in ("posts.parquet", "split.parquet")]
    hashes = {path.stem: files.sha256_file(path) for path in data} | {
        "vocabulary": "as of the model"
    }
    settings = setup.settings(params.load(made.folder / "params.yaml"))
    content = {"run_id": run_id, "params": settings, "data": hashes}
    files.write_json(made.folder / "models" / "tagger" / "run.json", content)


def relabel(made: Project, change: Callable[[int, set[str]], set[str]]) -> None:
    """Change the tags of each post, known by its number."""
    path = made.folder / "data" / "posts.parquet"
    seen = manifest.read_tags(made.folder / "data" / "tags.parquet")
    number = {tag.name: place for place, tag in enumerate(seen)}
    table = pq.read_table(path)
    lists = [
        sorted(number[name] for name in change(post, {seen[place].name for place in own}))
        for post, own in enumerate(table["tags"].to_pylist())
    ]
    column = table.schema.get_field_index("tags")
    tags = pa.array(lists, table.schema.field("tags").type)
    manifest.write_posts(table.set_column(column, "tags", tags), path)


@contextmanager
def inside_project(made: Project) -> Iterator[None]:
    """Be in a project as a stage is that DVC runs, and leave torch as it was."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        patch.setenv("DVC_ROOT", str(made.folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield
    torch.set_num_threads(threads)


def run_evaluate(made: Project) -> str:
    """Return what the stage printed."""
    with inside_project(made), redirect_stdout(io.StringIO()) as printed:
        evaluate.main(params.load())
    return printed.getvalue()


def error_line(action: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a mistake of the user's ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        action()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def read_splits(made: Project) -> tuple[list[Tag], dict[str, Split]]:
    """Return the tags of the model, and the parts of the split."""
    with inside_project(made):
        return dataset.read_splits(
            evaluate.POSTS, evaluate.TAGS, evaluate.MODEL / "vocabulary.csv", evaluate.SPLIT
        )


def read_metrics(made: Project) -> Mapping[str, Any]:
    found: Mapping[str, Any] = files.read_json(made.folder / evaluate.METRICS)
    return found
