"""Thresholds survive the file, and each kind gives each tag its threshold."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core import thresholds
from tagger.core.errors import TaggerError
from tagger.core.thresholds import Kind, Threshold
from tagger.core.vocabulary import CATEGORIES, Tag

TAGS = [Tag(-1, "safe", 9, 5), Tag(-2, "hair", 0, 5), Tag(-3, "eyes", 0, 5), Tag(-4, "miku", 4, 5)]
HEADER = "category,name,threshold,kind,objective,target,strength,support,f1,precision,recall\n"


@pytest.fixture
def rows() -> list[Threshold]:
    """Thresholds of every kind, with one for each tag."""
    values = {"rating": 0.1, "general": 0.4, "character": 0.8}
    return [
        Threshold("all", "", 0.3, "global"),
        *(Threshold(name, "", value, "category") for name, value in values.items()),
        *(
            Threshold(CATEGORIES[tag.category], tag.name, 0.2 + number / 10, "tag", strength=8.0)
            for number, tag in enumerate(TAGS)
        ),
    ]


def test_thresholds_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.csv"
    rows = [
        Threshold("all", "", 0.3, "global", "precision", 0.9, None, 12, 0.5, 0.4, 0.6),
        Threshold("general", 'a,"b"', 1 / 3, "tag", "f1", None, 8.0),
        Threshold("general", "b", 0.5, "tag", "recall", 0.25, float("inf")),
    ]
    thresholds.write(rows, path)
    assert thresholds.read(path) == rows
    assert path.read_text(encoding="utf-8").startswith(
        HEADER + "all,,0.3,global,precision,0.9,,12,0.5,0.4,0.6\n"
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("global", [0.3] * 4),
        ("category", [0.1, 0.4, 0.4, 0.8]),
        ("tag", [0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_each_kind_gives_each_tag_its_threshold(
    rows: list[Threshold], kind: Kind, expected: list[float]
) -> None:
    assert thresholds.per_tag(rows[::-1], TAGS, kind).tolist() == pytest.approx(expected)


def test_thresholds_for_another_objective_are_refused(rows: list[Threshold]) -> None:
    thresholds.check_objective(rows, "f1", None)
    with pytest.raises(TaggerError, match=r"fitted for best F1, and .* asks for precision 0\.9\."):
        thresholds.check_objective(rows, "precision", 0.9)


def test_thresholds_of_another_vocabulary_are_refused(rows: list[Threshold]) -> None:
    with pytest.raises(TaggerError, match=r"another vocabulary: tag 'miku' \(character\) has none"):
        thresholds.per_tag(rows[:-1], TAGS, "tag")
    with pytest.raises(TaggerError, match=r"the model has no tag 'miku' \(character\)"):
        thresholds.per_tag(rows, TAGS[:-1], "tag")
    moved = [TAGS[0]._replace(category=0), *TAGS[1:]]
    with pytest.raises(TaggerError, match=r"tag 'safe' \(general\) has none"):
        thresholds.per_tag(rows, moved, "tag")


def test_an_export_may_hold_fewer_tags_than_were_fitted(rows: list[Threshold]) -> None:
    assert thresholds.per_tag(rows, TAGS[:1], "category").tolist() == [0.1]


@pytest.mark.parametrize(("kind", "name"), [("category", "rating"), ("global", "all")])
def test_a_category_without_a_threshold_is_refused(
    rows: list[Threshold], kind: Kind, name: str
) -> None:
    others = [row for row in rows if row.category != name]
    with pytest.raises(TaggerError, match=f"category '{name}' has none"):
        thresholds.per_tag(others, TAGS, kind)


@pytest.mark.parametrize(
    "text",
    [
        "name,value\na,1\n",
        HEADER + "all,,high,global,f1,,,1,1,1,1\n",
        "category,name,threshold\nall,,0.3\n",
    ],
)
def test_another_table_is_refused(write_file: Callable[[str, str], Path], text: str) -> None:
    with pytest.raises(TaggerError, match="is not a table of thresholds"):
        thresholds.read(write_file("thresholds.csv", text))


def test_a_missing_table_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match="is missing"):
        thresholds.read(tmp_path / "thresholds.csv")
