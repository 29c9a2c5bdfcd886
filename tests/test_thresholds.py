"""Thresholds are the best there are on the grid, and survive the file."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from tagger import thresholds
from tagger.errors import TaggerError
from tagger.thresholds import GRID, By, Kind, Threshold
from tagger.vocabulary import CATEGORIES, Tag

TAGS = [Tag(-1, "safe", 9, 5), Tag(-2, "hair", 0, 5), Tag(-3, "eyes", 0, 5), Tag(-4, "miku", 4, 5)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.05, 0.9))
def test_no_threshold_of_the_grid_is_better(seed: int, pictures: int, density: float) -> None:
    random = np.random.default_rng(seed)
    truth = random.random((pictures, 4)) < density
    truth[0] = True
    scores = (truth * 0.3 + random.random((pictures, 4)) * 0.7).astype(np.float32)
    rows = {row.category: row for row in thresholds.fit(scores, truth, TAGS)}
    columns = {"all": [0, 1, 2, 3], "rating": [0], "general": [1, 2], "character": [3]}
    assert rows.keys() == columns.keys()
    for category, inside in columns.items():
        row, wanted = rows[category], truth[:, inside].ravel()
        flat = scores[:, inside].ravel()
        given_at = flat >= GRID[:, None]  # (thresholds, pairs)
        by_threshold = 2 * (given_at & wanted).sum(axis=1) / (given_at.sum(axis=1) + wanted.sum())
        chosen = flat >= row.threshold
        assert row.threshold in GRID
        assert row.f1 == pytest.approx(by_threshold.max(), abs=1e-6)
        assert row.f1 == pytest.approx(f1_score(wanted, chosen), abs=1e-6)
        assert row.precision == pytest.approx(precision_score(wanted, chosen), abs=1e-6)
        assert row.recall == pytest.approx(recall_score(wanted, chosen), abs=1e-6)
        assert (row.support, row.name) == (wanted.sum(), "")


def test_a_perfect_model_has_a_perfect_threshold() -> None:
    truth = np.array([[True, False, True, False], [False, True, False, True]])
    scores = np.where(truth, 0.9, 0.4).astype(np.float32)
    (overall, *_) = thresholds.fit(scores, truth, TAGS)
    assert (overall.f1, overall.precision, overall.recall) == (1, 1, 1)
    assert 0.4 < overall.threshold <= 0.9


def test_a_category_that_no_picture_shows_is_not_given_to_all() -> None:
    truth = np.array([[True, True, False, False], [True, False, True, False]])
    scores = np.array([[0.9, 0.8, 0.2, 0.2], [0.9, 0.2, 0.8, 0.2]], dtype=np.float32)
    rows = thresholds.fit(scores, truth, TAGS)
    limits = thresholds.per_tag(rows, TAGS, "category")
    assert not (scores[:, 3] >= limits[3]).any()


def test_rows_survive_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.random((20, 4)) < 0.4
    fitted = thresholds.fit(random.random((20, 4)).astype(np.float32), truth, TAGS)
    odd = Threshold("general", 'a,"b"', 1 / 3, 0, 0.0, 0.0, 0.0, "best_f1")
    thresholds.write([*fitted, odd], tmp_path / "thresholds.csv")
    assert thresholds.read(tmp_path / "thresholds.csv") == [*fitted, odd]


def test_the_file_starts_with_the_columns_promised(tmp_path: Path) -> None:
    thresholds.write([Threshold("all", "", 0.3, 5, 0.5, 0.4, 0.6, "best_f1")], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == (
        b"category,name,threshold,support,f1,precision,recall,method\n"
        b"all,,0.3,5,0.5,0.4,0.6,best_f1\n"
    )


@pytest.fixture
def rows() -> list[Threshold]:
    limits = {"all": 0.3, "rating": 0.1, "general": 0.4, "character": 0.8}
    return [
        *(Threshold(name, "", limit, 1, 1, 1, 1, "best_f1") for name, limit in limits.items()),
        Threshold("general", "hair", 0.99, 1, 1, 1, 1, "best_f1"),
    ]


def test_each_policy_gives_each_tag_its_threshold(rows: list[Threshold]) -> None:
    assert thresholds.per_tag(rows, TAGS, "global").tolist() == [0.3] * 4
    assert thresholds.per_tag(rows, TAGS, "category").tolist() == [0.1, 0.4, 0.4, 0.8]


class Policy(NamedTuple):
    kind: Kind
    by: By = "f1"
    target: float | None = None


@pytest.fixture
def of_tags(rows: list[Threshold]) -> list[Threshold]:
    """The rows with one for each tag."""
    own = [
        Threshold(CATEGORIES[tag.category], tag.name, 0.2 + number / 10, 1, 1, 1, 1, "f1, k 8")
        for number, tag in enumerate(TAGS)
    ]
    return [row._replace(method="f1") for row in rows if not row.name] + own


def test_a_policy_decides_whose_threshold_a_tag_has(of_tags: list[Threshold]) -> None:
    assert thresholds.per_tag(of_tags, TAGS, Policy("global")).tolist() == [0.3] * 4
    by_category = thresholds.per_tag(of_tags, TAGS, Policy("category")).tolist()
    assert by_category == [0.1, 0.4, 0.4, 0.8]
    own = thresholds.per_tag(of_tags[::-1], TAGS, Policy("tag"))
    assert own == pytest.approx([0.2, 0.3, 0.4, 0.5])


def test_thresholds_fitted_by_another_aim_are_refused(of_tags: list[Threshold]) -> None:
    for kind in ("global", "category", "tag"):
        with pytest.raises(TaggerError, match=r"fitted by 'f1.*, not by 'precision 0\.9'"):
            thresholds.per_tag(of_tags, TAGS, Policy(kind, "precision", 0.9))


def test_thresholds_of_another_vocabulary_are_refused(of_tags: list[Threshold]) -> None:
    with pytest.raises(TaggerError, match=r"another vocabulary: they have none for 'miku'"):
        thresholds.per_tag(of_tags[:-1], TAGS, "tag")
    with pytest.raises(TaggerError, match=r"have one for 'miku' \(character\), which the model"):
        thresholds.per_tag(of_tags, TAGS[:-1], "tag")
    moved = [TAGS[0]._replace(category=0), *TAGS[1:]]
    with pytest.raises(TaggerError, match=r"have none for 'safe' \(general\)"):
        thresholds.per_tag(of_tags, moved, "tag")


def test_an_export_may_hold_fewer_tags_than_were_fitted(of_tags: list[Threshold]) -> None:
    assert thresholds.per_tag(of_tags, TAGS[:1], "category").tolist() == [0.1]


def test_a_category_without_a_threshold_is_refused(rows: list[Threshold]) -> None:
    with pytest.raises(TaggerError, match="no category 'character'"):
        thresholds.per_tag(rows[:3], TAGS, "category")
    with pytest.raises(TaggerError, match="no category 'all'"):
        thresholds.per_tag(rows[1:], TAGS, "global")


@pytest.mark.parametrize(
    "text",
    [
        "name,value\na,1\n",
        "category,name,threshold,support,f1,precision,recall,method\nall,,high,1,1,1,1,best_f1\n",
        "category,name,threshold\nall,,0.3\n",
    ],
)
def test_another_table_is_refused(write: Callable[[str, str], Path], text: str) -> None:
    with pytest.raises(TaggerError, match="is no table of thresholds"):
        thresholds.read(write("thresholds.csv", text))


def test_a_missing_table_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match="is missing"):
        thresholds.read(tmp_path / "thresholds.csv")
