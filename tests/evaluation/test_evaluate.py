"""What `evaluate` makes of odd data; that it runs alone, and leaves nothing when it is stopped."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, f1_score

import evaluate
import export
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
from support.trainings import Project, wait_until
from tagger import params
from tagger.core import records, thresholds, vocabulary
from tagger.images import preprocess
from tagger.models import backbone, load_tagger
from tagger.models.runtimes import Device
from tagger.params import Params, Preset

pytestmark = pytest.mark.timeout(300)

VALIDATION, TEST = range(4, 13), range(13, 24)  # posts
UNRATED = (5, 14, 20)
EVERYWHERE, NOT_JUDGED, NOT_TESTED = "simple_background", "smile", "open_mouth"  # tags


@pytest.fixture(scope="module")
def odd(
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
) -> Project:
    """A project with a tag on all pictures, tags on none of a part, and posts without rating."""
    folder = tmp_path_factory.mktemp("projects") / "odd"
    made = project_with_model(folder, default_params, demo, preset, model_folder)

    def change(post: int, names: set[str]) -> set[str]:
        gone = {NOT_JUDGED} if post in VALIDATION else {NOT_TESTED} if post in TEST else set()
        rating = {"general"} if post in UNRATED else set()
        return (names | {EVERYWHERE}) - gone - rating

    relabel(made, change)
    write_run_json(made, None)
    run_evaluate(made)
    return made


@pytest.fixture
def copied(odd: Project, tmp_path: Path) -> Project:
    return odd.copy(tmp_path / "project")


def rows(made: Project, path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a table by the name of the tag."""
    return {
        str(row["name"]): row for _, row in records.read_rows(made.folder / path) if row["name"]
    }


@pytest.mark.parametrize("part", ["test", "validation"])
def test_figures_agree_with_scikit_learn_where_some_labels_are_unknown(
    odd: Project, part: str
) -> None:
    tags, parts = read_splits(odd)
    with inside_project(odd):
        model = backbone.load_model(evaluate.MODEL)
        prepared = preprocess.read(evaluate.MODEL / "preprocess.json")
        found = predict_split(model, parts[part], prepared, batch_size=64, workers=0)
    logits = logit(found.scores.astype(np.float64)).astype(np.float16).astype(np.float64)
    own = rows(odd, evaluate.THRESHOLDS)
    given = expit(logits) >= np.array([float(own[tag.name]["threshold"]) for tag in tags])
    truth, known = found.truth, np.ones(found.truth.shape, np.bool_)
    ratings = vocabulary.category_columns(tags, "rating")
    known[np.ix_(~truth[:, ratings].any(axis=1), ratings)] = False
    assert (~known).sum() == (2 if part == "test" else 1)
    each = [(truth[k, tag], logits[k, tag], given[k, tag]) for tag, k in enumerate(known.T)]
    seen = [one for one in each if one[0].any()]
    expected = {
        "macro_ap": np.mean([average_precision_score(true, score) for true, score, _ in seen]),
        "micro_ap": average_precision_score(truth[known], logits[known]),
        "macro_f1": np.mean([f1_score(true, said) for true, _, said in seen]),
        "micro_f1": f1_score(truth[known], given[known]),
    }
    ours = read_metrics(odd)[part]
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (ours["tags"], ours["unsupported"]) == (len(seen), len(each) - len(seen))
    assert (ours["unknown"], ours["images"]) == ((~known).sum(), len(truth))


def test_every_figure_lies_in_its_interval(odd: Project) -> None:
    for part in ("test", "validation"):
        found = read_metrics(odd)[part]
        assert {"rating", "general", "copyright"} <= found["categories"].keys()
        assert set(found["bands"]) == {"head", "middle", "tail"}
        for figure in (found, *found["categories"].values()):
            assert len(figure["intervals"]) == 4
            for name, (low, high) in figure["intervals"].items():
                assert 0 <= low <= figure[name] <= high <= 1, name
        assert any(low < high for low, high in found["intervals"].values())


def test_tags_on_every_picture_and_on_none_have_a_threshold_and_a_row(odd: Project) -> None:
    fitted, tested = rows(odd, evaluate.THRESHOLDS), rows(odd, evaluate.TABLES[0])
    assert len(fitted) == len(tested) == len(read_splits(odd)[0])
    without = fitted[NOT_JUDGED]
    assert (without["support"], without["objective"]) == ("0", "f1")
    assert tested[NOT_JUDGED]["ap"] != ""
    assert (tested[NOT_TESTED]["support"], tested[NOT_TESTED]["ap"]) == ("0", "")
    everywhere = tested[EVERYWHERE]
    assert (everywhere["support"], everywhere["ap"]) == ("11", "1.0")
    assert (fitted[EVERYWHERE]["support"], fitted[EVERYWHERE]["recall"]) == ("9", "1.0")
    for row in fitted.values():
        assert 0 < float(row["threshold"]) < 1


def test_a_split_without_test_pictures_is_told_and_without_validation_halves_decide(
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    untested = project_with_model(
        tmp_path / "a", default_params, demo, preset, model_folder, (15, 9, 0)
    )
    assert error_line(lambda: run_evaluate(untested), capsys) == (
        "The test split is empty. Raise split.test."
    )
    assert not (untested.folder / "metrics").exists()
    unjudged = project_with_model(
        tmp_path / "b", default_params, demo, preset, model_folder, (15, 0, 9)
    )
    run_evaluate(unjudged)
    limits = {row["threshold"] for row in rows(unjudged, evaluate.THRESHOLDS).values()}
    assert limits == {"0.5"}
    assert read_metrics(unjudged)["validation"]["images"] == 0


def test_export_takes_thresholds_by_the_policy_they_were_fitted_by_and_no_other(
    copied: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    copied.edit_params(
        evaluate={"threshold": {"kind": "category", "objective": "precision", "target": 0.9}}
    )
    run_evaluate(copied)
    with inside_project(copied):
        p = params.load()
        export.main(p)
        tagger = load_tagger(export.EXPORT, Device("cpu"))
        fitted = thresholds.read(export.THRESHOLDS)
        limits = thresholds.per_tag(fitted, tagger.tags, p.evaluate.threshold.kind)
        assert tagger.thresholds.tolist() == limits.tolist()
        capsys.readouterr()
        for other in (
            {"target": 0.8},
            {"objective": "f1", "target": None},
            {"objective": "recall"},
        ):
            changed = p.evaluate.threshold.model_copy(update=other)
            evaluation = p.evaluate.model_copy(update={"threshold": changed})
            refused = p.model_copy(update={"evaluate": evaluation})
            line = error_line(lambda refused=refused: export.main(refused), capsys)  # type: ignore[misc]
            assert (
                "The thresholds are fitted for precision 0.9, and evaluate.threshold asks for "
                in line
            )


def test_one_evaluation_at_a_time_and_a_stopped_one_leaves_nothing(
    copied: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (evaluate.METRICS, evaluate.REPORT, evaluate.THRESHOLDS):
        (copied.folder / path).unlink()
    kept = copied.folder / ".scratch" / "evaluate"
    running = copied.start_stage(stage="evaluate")
    wait_until(lambda: any(kept.glob("*/*.logits")), running)
    os.killpg(running.pid, signal.SIGSTOP)
    assert "The same is under way in another process" in error_line(
        lambda: run_evaluate(copied), capsys
    )
    assert any(kept.glob("*/*.logits"))
    os.kill(running.pid, signal.SIGINT)
    os.killpg(running.pid, signal.SIGCONT)
    assert running.finish(60) == (130, "interrupted\n")
    assert {path.suffix for path in kept.iterdir()} == {".lock"}
    assert not (copied.folder / evaluate.REPORT).exists()
