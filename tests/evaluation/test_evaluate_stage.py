"""The stage writes what it promises, the same by two processes, and says what cannot be."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import average_precision_score

import evaluate
from support.evaluations import (
    error_line,
    inside_project,
    project_with_model,
    read_metrics,
    read_splits,
    run_evaluate,
)
from support.predictions import predict_split
from support.trainings import ROOT, TWO_PROCESSES, Project
from tagger import params
from tagger.core import vocabulary
from tagger.core.logits import finite_logit
from tagger.core.thresholds import Objective
from tagger.evaluation import quantized_logits
from tagger.images import preprocess
from tagger.models import backbone
from tagger.params import Params, Preset

WRITTEN = [evaluate.METRICS, evaluate.THRESHOLDS, evaluate.CALIBRATION, *evaluate.TABLES]


@pytest.fixture(scope="module")
def judged(
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
) -> Project:
    """A project in which a model has been judged."""
    folder = tmp_path_factory.mktemp("projects") / "judged"
    made = project_with_model(folder, default_params, demo, preset, model_folder)
    run_evaluate(made)
    return made


@pytest.fixture
def copied(judged: Project, tmp_path: Path) -> Project:
    return judged.copy(tmp_path / "project")


def contents(made: Project) -> dict[str, bytes]:
    return {str(path): (made.folder / path).read_bytes() for path in (*WRITTEN, evaluate.REPORT)}


def test_all_that_dvc_expects_is_written(judged: Project) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["evaluate"]
    entries = [*stage["outs"], *stage["metrics"], *stage["plots"]]
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    assert len(names) == len(set(names)) == len(WRITTEN) + 2
    assert all((judged.folder / name).is_file() for name in names)
    assert not list((judged.folder / ".scratch" / "evaluate").glob("*/*"))


def test_figures_are_those_of_the_probabilities(judged: Project) -> None:
    found = read_metrics(judged)
    assert list(found) == ["test", "validation"]
    with inside_project(judged):
        model, p = backbone.load_model(evaluate.MODEL), params.load()
        prepared = preprocess.read(evaluate.MODEL / "preprocess.json")
    tags, parts = read_splits(judged)
    general = vocabulary.category_columns(tags, "general")
    for name in found:
        by = predict_split(model, parts[name], prepared, **p.evaluate.loading)
        scores = quantized_logits.quantize(finite_logit(by.scores[:, general]))  # as they are kept
        truth = by.truth[:, general]
        has = truth.any(axis=0)
        of_general = found[name]["categories"]["general"]
        wanted = average_precision_score(truth[:, has], scores[:, has], average="macro")
        assert of_general["macro_ap"] == pytest.approx(wanted, abs=1e-6)
        assert (found[name]["images"], of_general["tags"]) == (len(parts[name]), has.sum())
        low, high = of_general["intervals"]["macro_ap"]
        assert low <= of_general["macro_ap"] <= high


def test_the_same_comes_out_again_and_of_two_processes(copied: Project) -> None:
    first = contents(copied)
    run_evaluate(copied)
    assert contents(copied) == first
    assert (
        copied.run_stage(stage="evaluate", by=TWO_PROCESSES).success_output.count("test: macro AP")
        == 1
    )
    (one, other) = ({str(path): first[str(path)] for path in WRITTEN}, contents(copied))
    assert {name: other[name] for name in one} == one


@pytest.mark.parametrize("kind", ["global", "category", "tag"])
@pytest.mark.parametrize(("objective", "target"), [("precision_recall", None), ("precision", 0.8)])
def test_thresholds_follow_the_policy(
    copied: Project, kind: str, objective: Objective, target: float | None
) -> None:
    copied.edit_params(
        evaluate={"threshold": {"kind": kind, "objective": objective, "target": target}}
    )
    run_evaluate(copied)
    with (copied.folder / evaluate.TABLES[0]).open(encoding="utf-8") as file:
        given = {row["name"]: float(row["threshold"]) for row in csv.DictReader(file)}
    with (copied.folder / evaluate.THRESHOLDS).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = objective, "" if target is None else str(target)
    assert {(row["objective"], row["target"]) for row in rows} == {expected}
    own = {row["name"]: float(row["threshold"]) for row in rows if row["name"]}
    assert (given == own) == (kind == "tag")
    assert (len(set(given.values())) == 1) == (kind == "global")


def test_a_picture_that_cannot_be_read_is_left_out_counted_and_told(copied: Project) -> None:
    part = read_splits(copied)[1]["test"]
    before = read_metrics(copied)["test"]["images"]
    original = Path(part.locations[0].path).read_bytes()
    try:
        Path(part.locations[0].path).write_bytes(b"no picture")
        printed = run_evaluate(copied)
    finally:
        Path(part.locations[0].path).write_bytes(original)
    assert read_metrics(copied)["test"]["images"] == before - 1
    assert read_metrics(copied)["test"]["unreadable"] == 1
    assert f"skipped in test: {part.locations[0].path}: " in printed
    page = (copied.folder / evaluate.REPORT).read_text(encoding="utf-8")
    assert "Unreadable images" in page


def test_a_model_without_numbers_is_told_and_nothing_is_overwritten(
    copied: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied)
    with inside_project(copied):
        model = backbone.load_model(evaluate.MODEL)
        weights = model.state_dict()
        for name, value in weights.items():
            if value.is_floating_point() and value.ndim == 2:
                weights[name] = value * np.nan
        backbone.save_weights(weights, evaluate.MODEL / backbone.WEIGHTS)
        line = error_line(lambda: evaluate.main(params.load()), capsys)
    assert line.startswith("The model predicts the non-finite logit nan for image")
    assert contents(copied) == before
