"""The evaluate stage: metrics, tables, thresholds and report, errors, and the MLflow run."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, f1_score

import evaluate
import export
import register
from support.evaluations import (
    error_line,
    inside_project,
    project_with_model,
    read_metrics,
    read_splits,
    relabel,
    run_evaluate,
    write_run_json,
)
from support.predictions import predict_split
from support.projects import ROOT, TWO_PROCESSES, Project, wait_until
from tagger import params
from tagger.core import files, records, thresholds, vocabulary
from tagger.core.thresholds import Objective
from tagger.images import preprocess
from tagger.models import backbone, load_tagger
from tagger.models.runtimes import Device
from tagger.params import Params, Preset
from tagger.tracking import runs

pytestmark = pytest.mark.timeout(300)

WRITTEN = (evaluate.METRICS, evaluate.THRESHOLDS, evaluate.CALIBRATION, *evaluate.TABLES)
VALIDATION, TEST = range(4, 13), range(13, 24)  # posts
UNRATED = (5, 14, 20)
ON_ALL, NOT_IN_VALIDATION, NOT_IN_TEST = "simple_background", "smile", "open_mouth"  # tags


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
) -> Project:
    """A project with a tag on all images, tags on no image of a split, and posts without rating."""
    folder = tmp_path_factory.mktemp("projects") / "evaluated"
    project = project_with_model(folder, default_params, demo, preset, model_folder)

    def change(post: int, names: set[str]) -> set[str]:
        removed = {"general"} if post in UNRATED else set()
        removed |= {NOT_IN_VALIDATION} if post in VALIDATION else set()
        removed |= {NOT_IN_TEST} if post in TEST else set()
        return (names | {ON_ALL}) - removed

    relabel(project, change)
    write_run_json(project, None)
    run_evaluate(project)
    return project


@pytest.fixture
def copied(evaluated: Project, tmp_path: Path) -> Project:
    return evaluated.copy(tmp_path / "project")


def contents(project: Project) -> dict[str, bytes]:
    paths = (*WRITTEN, evaluate.REPORT)
    return {str(path): (project.folder / path).read_bytes() for path in paths}


def rows(project: Project, path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a table by the name of the tag."""
    table = records.read_rows(project.folder / path)
    return {str(row["name"]): row for _, row in table if row["name"]}


def test_every_output_in_dvc_yaml_is_written(evaluated: Project) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["evaluate"]
    entries = [*stage["outs"], *stage["metrics"], *stage["plots"]]
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    assert len(names) == len(set(names)) == len(WRITTEN) + 2
    assert all((evaluated.folder / name).is_file() for name in names)
    assert not list((evaluated.folder / ".scratch" / "evaluate").glob("*/*"))


@pytest.mark.parametrize("name", ["test", "validation"])
def test_metrics_equal_scikit_learn_without_the_unknown_labels(
    evaluated: Project, name: str
) -> None:
    tags, splits = read_splits(evaluated)
    with inside_project(evaluated):
        model = backbone.load_model(evaluate.MODEL)
        preprocessing = preprocess.read(evaluate.MODEL / "preprocess.json")
        predictions = predict_split(model, splits[name], preprocessing, batch_size=64)
    logits = logit(predictions.scores.astype(np.float64)).astype(np.float16).astype(np.float64)
    fitted = rows(evaluated, evaluate.THRESHOLDS)
    predicted = expit(logits) >= np.array([float(fitted[tag.name]["threshold"]) for tag in tags])
    truth, known_labels = predictions.truth, np.ones(predictions.truth.shape, np.bool_)
    ratings = vocabulary.category_columns(tags, "rating")
    known_labels[np.ix_(~truth[:, ratings].any(axis=1), ratings)] = False
    assert (~known_labels).sum() == (2 if name == "test" else 1)
    each = [
        (truth[k, tag], logits[k, tag], predicted[k, tag]) for tag, k in enumerate(known_labels.T)
    ]
    supported = [columns for columns in each if columns[0].any()]
    precisions = [average_precision_score(true, scores) for true, scores, _ in supported]
    expected = {
        "macro_ap": np.mean(precisions),
        "micro_ap": average_precision_score(truth[known_labels], logits[known_labels]),
        "macro_f1": np.mean([f1_score(true, given) for true, _, given in supported]),
        "micro_f1": f1_score(truth[known_labels], predicted[known_labels]),
    }
    ours = read_metrics(evaluated)[name]
    assert {metric: ours[metric] for metric in expected} == pytest.approx(expected, abs=1e-6)
    assert (ours["tags"], ours["unsupported"]) == (len(supported), len(each) - len(supported))
    assert (ours["unknown"], ours["images"]) == ((~known_labels).sum(), len(truth))


def test_every_metric_lies_in_its_interval(evaluated: Project) -> None:
    metrics = read_metrics(evaluated)
    assert list(metrics) == ["test", "validation"]
    for split in metrics.values():
        assert {"rating", "general", "copyright"} <= split["categories"].keys()
        assert set(split["bands"]) == {"head", "middle", "tail"}
        for tree in (split, *split["categories"].values()):
            assert len(tree["intervals"]) == 4
            for name, (low, high) in tree["intervals"].items():
                assert 0 <= low <= tree[name] <= high <= 1, name
        assert any(low < high for low, high in split["intervals"].values())


def test_tags_on_every_image_and_on_none_have_a_threshold_and_a_row(evaluated: Project) -> None:
    fitted, tested = rows(evaluated, evaluate.THRESHOLDS), rows(evaluated, evaluate.TABLES[0])
    assert len(fitted) == len(tested) == len(read_splits(evaluated)[0])
    assert (fitted[NOT_IN_VALIDATION]["support"], fitted[NOT_IN_VALIDATION]["kind"]) == ("0", "tag")
    assert tested[NOT_IN_VALIDATION]["ap"] != ""
    assert (tested[NOT_IN_TEST]["support"], tested[NOT_IN_TEST]["ap"]) == ("0", "")
    assert (tested[ON_ALL]["support"], tested[ON_ALL]["ap"]) == ("11", "1.0")
    assert (fitted[ON_ALL]["support"], fitted[ON_ALL]["recall"]) == ("9", "1.0")
    assert all(0 < float(row["threshold"]) < 1 for row in fitted.values())


def test_evaluation_is_reproducible_and_the_same_with_two_processes(copied: Project) -> None:
    first = contents(copied)
    run_evaluate(copied)
    assert contents(copied) == first
    printed = copied.run_stage(stage="evaluate", by=TWO_PROCESSES).success_output
    assert printed.count("test: macro AP") == 1
    second = contents(copied)
    assert {path: second[str(path)] for path in WRITTEN} == {
        path: first[str(path)] for path in WRITTEN
    }


@pytest.mark.parametrize(
    ("kind", "objective", "target"),
    [("global", "precision_recall", None), ("category", "precision", 0.8), ("tag", "recall", 0.7)],
)
def test_thresholds_follow_the_parameters(
    copied: Project, kind: str, objective: Objective, target: float | None
) -> None:
    threshold = {"kind": kind, "objective": objective, "target": target}
    copied.edit_params(evaluate={"threshold": threshold})
    run_evaluate(copied)
    used = {n: float(row["threshold"]) for n, row in rows(copied, evaluate.TABLES[0]).items()}
    fitted = rows(copied, evaluate.THRESHOLDS)
    expected = objective, "" if target is None else str(target)
    assert {(row["objective"], row["target"]) for row in fitted.values()} == {expected}
    fitted_thresholds = {name: float(row["threshold"]) for name, row in fitted.items()}
    assert (used == fitted_thresholds) == (kind == "tag")
    assert (len(set(used.values())) == 1) == (kind == "global")


def test_an_unreadable_image_is_skipped_counted_and_reported(copied: Project) -> None:
    location = read_splits(copied)[1]["test"].locations[0]
    before = read_metrics(copied)["test"]["images"]
    original = Path(location.path).read_bytes()
    try:
        Path(location.path).write_bytes(b"no image")
        printed = run_evaluate(copied)
    finally:
        Path(location.path).write_bytes(original)
    metrics = read_metrics(copied)["test"]
    assert (metrics["images"], metrics["unreadable"]) == (before - 1, 1)
    assert f"skipped in test: {location.path}: " in printed
    assert "Unreadable images" in (copied.folder / evaluate.REPORT).read_text(encoding="utf-8")


def test_a_model_with_non_finite_weights_is_reported_and_nothing_is_overwritten(
    copied: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied)
    with inside_project(copied):
        weights = backbone.load_model(evaluate.MODEL).state_dict()
        for name, value in weights.items():
            if value.is_floating_point() and value.ndim == 2:
                weights[name] = value * np.nan
        backbone.save_weights(weights, evaluate.MODEL / backbone.WEIGHTS)
        line = error_line(lambda: evaluate.main(params.load()), capsys)
    assert line.startswith("The model predicts the non-finite logit nan for image")
    assert contents(copied) == before


def test_an_empty_test_split_is_an_error_and_an_empty_validation_split_gives_thresholds_of_half(
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = default_params, demo, preset, model_folder
    untested = project_with_model(tmp_path / "a", *arguments, (15, 9, 0))
    line = error_line(lambda: run_evaluate(untested), capsys)
    assert line == "The test split is empty. Raise split.test."
    assert not (untested.folder / "metrics").exists()
    unvalidated = project_with_model(tmp_path / "b", *arguments, (15, 0, 9))
    run_evaluate(unvalidated)
    fitted = {row["threshold"] for row in rows(unvalidated, evaluate.THRESHOLDS).values()}
    assert fitted == {"0.5"}
    assert read_metrics(unvalidated)["validation"]["images"] == 0


def test_export_uses_the_fitted_thresholds_and_refuses_those_for_another_objective(
    copied: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    threshold = {"kind": "category", "objective": "precision", "target": 0.9}
    copied.edit_params(evaluate={"threshold": threshold})
    run_evaluate(copied)
    with inside_project(copied):
        p = params.load()
        export.main(p)
        tagger = load_tagger(export.EXPORT, Device("cpu"))
        fitted = thresholds.read(export.THRESHOLDS)
        values = thresholds.per_tag(fitted, tagger.tags, "category")
        assert tagger.thresholds.tolist() == values.tolist()
        capsys.readouterr()
        for other in ({"target": 0.8}, {"objective": "f1", "target": None}):
            changed = p.evaluate.threshold.model_copy(update=other)
            evaluation = p.evaluate.model_copy(update={"threshold": changed})
            refused = p.model_copy(update={"evaluate": evaluation})
            line = error_line(partial(export.main, refused), capsys)
            assert "The thresholds are fitted for precision 0.9, and evaluate.threshold" in line


def test_one_evaluation_runs_at_a_time_and_an_interrupted_one_leaves_nothing(
    copied: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (evaluate.METRICS, evaluate.REPORT, evaluate.THRESHOLDS):
        (copied.folder / path).unlink()
    stores = copied.folder / ".scratch" / "evaluate"
    running = copied.start_stage(stage="evaluate")
    wait_until(lambda: any(stores.glob("*/*.logits")), running)
    os.killpg(running.pid, signal.SIGSTOP)
    line = error_line(lambda: run_evaluate(copied), capsys)
    assert "The same is under way in another process" in line
    assert any(stores.glob("*/*.logits"))
    os.kill(running.pid, signal.SIGINT)
    os.killpg(running.pid, signal.SIGCONT)
    assert running.finish(60) == (130, "interrupted\n")
    assert {path.suffix for path in stores.iterdir()} == {".lock"}
    assert not (copied.folder / evaluate.REPORT).exists()


@pytest.fixture
def tracked(
    evaluated: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Project]:
    """A project that uses MLflow, which forgets it afterwards."""
    with caplog.at_level(logging.WARNING):
        yield evaluated.copy(tmp_path / "project")
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")


def test_the_mlflow_run_of_the_training_gets_metrics_and_files(tracked: Project) -> None:
    with inside_project(tracked):
        with runs.start("small", preset="small") as run:
            run.log_checkpoint("best", evaluate.MODEL / backbone.WEIGHTS, {"macro_ap": 0.5}, 3)
        write_run_json(tracked, run.id)
        run_evaluate(tracked)
    mlflow_client, metrics = client(tracked), read_metrics(tracked)["test"]
    logged = mlflow_client.get_run(str(run.id))
    assert logged.info.status == "FINISHED"
    for name in ("macro_ap", "micro_f1"):
        low, high = metrics["intervals"][name]
        expected = {
            f"test.{name}": metrics[name],
            f"test.intervals.{name}.low": low,
            f"test.intervals.{name}.high": high,
        }
        assert expected.items() <= logged.data.metrics.items()
    artifacts = {file.path for file in mlflow_client.list_artifacts(str(run.id))}
    assert {path.name for path in (*WRITTEN, evaluate.REPORT, evaluate.SHEET)} <= artifacts
    assert {"precision_recall.png", "f1_by_threshold.png", "by_category.png"} <= artifacts


def test_a_broken_mlflow_store_is_reported_once_and_every_file_is_written(
    tracked: Project, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_metrics(tracked)
    outputs = [tracked.folder / path for path in (*WRITTEN, evaluate.REPORT, evaluate.SHEET)]
    for path in outputs:
        path.unlink()
    (tracked.folder / "mlflow.db").write_bytes(b"no database" * 1000)
    write_run_json(tracked, "0123456789abcdef")
    assert "test: macro AP" in run_evaluate(tracked)
    (warning,) = caplog.messages
    assert warning.startswith("MLflow cannot be written, going on without it: ")
    assert read_metrics(tracked) == before
    assert all(path.is_file() for path in outputs)


def test_the_best_run_on_the_same_data_is_registered(
    tracked: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside_project(tracked):
        refused = error_line(lambda: register.main("tagger", "best"), capsys)
        assert refused == "MLflow has no run that was evaluated on this data. Run `dvc repro`."
        same = runs.data_digest(files.read_json(evaluate.MODEL / "run.json")["data"])
        for name, macro_ap, data in (
            ("fair", 0.5, same),
            ("good", 0.75, same),
            ("other", 0.9, "x"),
        ):
            with runs.start(name, data=data) as run:
                run.log_checkpoint("best", evaluate.MODEL / backbone.WEIGHTS, {"macro_ap": 0.1}, 3)
                run.log_metrics({"test": {"macro_ap": macro_ap}})
        register.main("tagger", "champion")
    printed = capsys.readouterr().out
    assert printed.startswith("good, test.macro_ap 0.750: version 1 of tagger, alias champion")
    version = client(tracked).get_model_version_by_alias("tagger", "champion")
    assert client(tracked).get_run(str(version.run_id)).info.run_name == "good"
