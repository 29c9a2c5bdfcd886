"""Tables and curves say what the predictions are, also where there is little to say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve

from tagger import report
from tagger.predict import Predictions
from tagger.thresholds import GRID
from tagger.vocabulary import Tag

TAGS = [Tag(-1, "safe", 9, 5), Tag(-2, 'a,"b"', 0, 5), Tag(-3, "none", 4, 5)]
LIMITS = np.array([0.5, 0.5, 0.5])


def judged(seed: int, pictures: int = 40, density: float = 0.3, steps: int = 1000) -> Predictions:
    """Return predictions of three tags, the last of which no picture has."""
    random = np.random.default_rng(seed)
    truth = random.random((pictures, 3)) < density
    truth[:, 2] = False
    truth[:1, 0] = True
    scores = (random.integers(0, steps, (pictures, 3)) / steps).astype(np.float32)
    return Predictions(scores, truth, list(range(pictures)), [(pictures, "bad")])


def test_the_summary_covers_every_category() -> None:
    summary = report.summary(judged(0), TAGS, LIMITS)
    assert summary.keys() >= {"macro_ap", "micro_ap", "macro_f1", "micro_f1", "unreadable"}
    assert (summary["images"], summary["tags"], summary["unreadable"]) == (40, 2, 1)
    assert list(summary["categories"]) == ["rating", "general", "character"]
    assert summary["categories"]["character"]["unsupported"] == 1
    assert summary["categories"]["character"]["macro_ap"] == 0


def test_every_tag_has_a_row_and_no_score_without_support() -> None:
    predictions = judged(1)
    rows = [
        dict(zip(report.TAG_HEADER, row, strict=True))
        for row in report.tag_rows(predictions, TAGS, LIMITS)
    ]
    assert [row["name"] for row in rows] == ["safe", 'a,"b"', "none"]
    assert [row["category"] for row in rows] == ["rating", "general", "character"]
    assert rows[2]["support"] == 0
    assert rows[2]["ap"] == ""
    for tag in (0, 1):
        given_tags = predictions.scores[:, tag] >= 0.5
        assert rows[tag]["support"] == predictions.truth[:, tag].sum()
        assert rows[tag]["f1"] == pytest.approx(
            f1_score(predictions.truth[:, tag], given_tags), abs=1e-6
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([2, 10, 100000]))
def test_every_point_of_the_curve_can_be_had_with_a_threshold(
    seed: int, pictures: int, steps: int
) -> None:
    predictions = judged(seed, pictures, steps=steps)
    points = report.pr_rows(predictions)
    precision, recall, _ = precision_recall_curve(
        predictions.truth.ravel(), predictions.scores.ravel()
    )
    known = {
        (round(float(r), 6), round(float(p), 6)) for r, p in zip(recall, precision, strict=True)
    }
    assert points
    assert {(float(r), float(p)) for r, p in points} <= known


def test_the_curve_rises_in_recall_to_one() -> None:
    recall = [point[0] for point in report.pr_rows(judged(2, pictures=400))]
    assert recall == sorted(set(recall))
    assert recall[-1] == 1
    assert 30 < len(recall) <= 200


def test_f1_by_threshold_is_scikit_learns() -> None:
    predictions = judged(3)
    for row in report.f1_rows(predictions, GRID[::10]):
        figures = dict(zip(report.F1_HEADER, row, strict=True))
        given_tags = predictions.scores >= figures["threshold"]
        micro = f1_score(predictions.truth.ravel(), given_tags.ravel())
        macro = np.mean([f1_score(predictions.truth[:, t], given_tags[:, t]) for t in (0, 1)])
        assert figures["micro_f1"] == pytest.approx(micro, abs=1e-6)
        assert figures["macro_f1"] == pytest.approx(macro, abs=1e-6)
        assert 0 <= figures["precision"] <= 1
        assert 0 <= figures["recall"] <= 1


@pytest.mark.parametrize("pictures", [0, 5])
def test_where_no_picture_has_a_tag_tables_are_still_written(pictures: int) -> None:
    nothing = Predictions(
        np.zeros((pictures, 3), np.float32), np.zeros((pictures, 3), np.bool_), [], []
    )
    assert report.summary(nothing, TAGS, LIMITS)["tags"] == 0
    assert len(list(report.tag_rows(nothing, TAGS, LIMITS))) == 3
    assert report.pr_rows(nothing) == []
    rows = np.array(list(report.f1_rows(nothing, GRID)))
    assert rows.shape == (len(GRID), len(report.F1_HEADER))
    assert (rows[:, 1:] == 0).all()
