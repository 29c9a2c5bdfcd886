"""Each policy gives each tag its threshold, and thresholds survive the file."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tagger.core import thresholds
from tagger.core.errors import TaggerError
from tagger.core.thresholds import Kind, Objective, Threshold
from tagger.core.vocabulary import CATEGORIES, Tag

TAGS = [Tag(-1, "safe", 9, 5), Tag(-2, "hair", 0, 5), Tag(-3, "eyes", 0, 5), Tag(-4, "miku", 4, 5)]


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [
        Threshold("all", "", 0.3, 12, 0.5, 0.4, 0.6, "precision 0.9"),
        Threshold("general", 'a,"b"', 1 / 3, 0, 0.0, 0.0, 0.0, "f1, k 8"),
    ]
    thresholds.write(rows, tmp_path / "thresholds.csv")
    assert thresholds.read(tmp_path / "thresholds.csv") == rows


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
    by: Objective = "f1"
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
def test_another_table_is_refused(write_file: Callable[[str, str], Path], text: str) -> None:
    with pytest.raises(TaggerError, match="is no table of thresholds"):
        thresholds.read(write_file("thresholds.csv", text))


def test_a_missing_table_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match="is missing"):
        thresholds.read(tmp_path / "thresholds.csv")
