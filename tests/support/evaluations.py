"""Projects with a model, and `evaluate` in this process."""

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

SIZES = (4, 9, 11)  # images of each split
LOADING = {"batch_size": 4, "workers": 0}  # no split is a number of whole batches


def project_with_model(
    folder: Path,
    shipped: Params,
    demo: Path,
    preset: Preset,
    model: Path,
    sizes: Sequence[int] = SIZES,
) -> Project:
    """Return a project with a model as if it had trained it, without a run in MLflow."""
    project = make_project(folder, shipped, demo, preset, sizes)
    project.edit_params(evaluate=LOADING)
    shutil.copytree(model, folder / "models" / "tagger")
    write_run_json(project, None)
    return project


def write_run_json(project: Project, run_id: str | None) -> None:
    """Write the run.json of a project's model; run_id is the MLflow run that trained it."""
    data = [project.folder / "data" / name for name in ("posts.parquet", "split.parquet")]
    hashes = {path.stem: files.sha256_file(path) for path in data} | {
        "vocabulary": "as of the model"
    }
    settings = setup.settings(params.load(project.folder / "params.yaml"))
    content = {"run_id": run_id, "params": settings, "data": hashes}
    files.write_json(project.folder / "models" / "tagger" / "run.json", content)


def relabel(project: Project, change: Callable[[int, set[str]], set[str]]) -> None:
    """Change the tags of each post. `change` takes its number and tags."""
    path = project.folder / "data" / "posts.parquet"
    seen = manifest.read_tags(project.folder / "data" / "tags.parquet")
    number = {tag.name: place for place, tag in enumerate(seen)}
    table = pq.read_table(path)
    lists = [
        sorted(number[name] for name in change(post, {seen[place].name for place in posts_tags}))
        for post, posts_tags in enumerate(table["tags"].to_pylist())
    ]
    column = table.schema.get_field_index("tags")
    tags = pa.array(lists, table.schema.field("tags").type)
    manifest.write_posts(table.set_column(column, "tags", tags), path)


@contextmanager
def inside_project(project: Project) -> Iterator[None]:
    """Work in a project as a stage does that DVC runs; restore torch's settings afterwards."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        patch.setenv("DVC_ROOT", str(project.folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield
    torch.set_num_threads(threads)


def run_evaluate(project: Project) -> str:
    """Return what the stage printed."""
    with inside_project(project), redirect_stdout(io.StringIO()) as printed:
        evaluate.main(params.load())
    return printed.getvalue()


def error_line(action: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that an action prints, which must end in a user's mistake."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        action()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def read_splits(project: Project) -> tuple[list[Tag], dict[str, Split]]:
    """Return the tags of the model and the splits."""
    with inside_project(project):
        return dataset.read_splits(
            evaluate.POSTS, evaluate.TAGS, evaluate.MODEL / "vocabulary.csv", evaluate.SPLIT
        )


def read_metrics(project: Project) -> Mapping[str, Any]:
    metrics: Mapping[str, Any] = files.read_json(project.folder / evaluate.METRICS)
    return metrics
