"""The vocabulary: its order, its files, and names that look like something else."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, Tag

Write = Callable[[str, str | bytes], Path]

AWKWARD = [
    "null", "nan", "none", "true", "1", "1e5", "don't_say_\"lazy\"", "a,b", ";)", "^_^", "=1+1",
    "-", "#", "é", "初音ミク", "'", '"', '""', "\\", "\U0001f600", "n/a", "inf",
]  # fmt: skip


def test_tags_are_ordered_by_category_then_count_then_name() -> None:
    categories = [(5, 9), (1, 9), (3, 9), (4, 9), (0, 1), (0, 7), (9, 2)]
    tags = [Tag(-1, f"tag_{i}", category, count) for i, (category, count) in enumerate(categories)]
    twin = Tag(-1, "a_twin", 0, 7)
    ordered = vocabulary.sort_tags([*tags, twin])
    assert [tag.category for tag in ordered] == [9, 0, 0, 0, 4, 3, 1, 5]
    assert [tag.name for tag in ordered[1:4]] == ["a_twin", "tag_5", "tag_4"]


def test_categories_are_those_of_danbooru_in_vocabulary_order() -> None:
    assert list(CATEGORIES.items()) == [
        (9, "rating"),
        (0, "general"),
        (4, "character"),
        (3, "copyright"),
        (1, "artist"),
        (5, "meta"),
    ]


def test_awkward_names_survive_writing_and_reading(tmp_path: Path) -> None:
    tags = [Tag(i, name, 0, 1) for i, name in enumerate(AWKWARD)]
    vocabulary.write(tags, tmp_path / "vocabulary.csv")
    assert vocabulary.read(tmp_path / "vocabulary.csv") == tags


@given(st.lists(st.text(min_size=1).filter(lambda name: name.isprintable()), unique=True))
def test_any_printable_name_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.csv"
    tags = [Tag(-1 - i, name, 4, 3) for i, name in enumerate(names)]
    vocabulary.write(tags, path)
    assert vocabulary.read(path) == tags


def test_files_are_rfc_4180_with_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.csv"
    vocabulary.write([Tag(1, 'don\'t_say_"lazy"', 3, 2), Tag(2, "初音ミク", 4, 1)], path)
    assert path.read_bytes().decode("utf-8") == (
        "tag_id,name,category,count\n"
        '1,"don\'t_say_""lazy""",3,2\n'
        "2,初音ミク,4,1\n"
    )  # fmt: skip


def test_selected_tags_need_names_only(write_file: Write) -> None:
    chosen = vocabulary.read_selected(
        write_file("selected_tags.csv", "name\nlong_hair\nnull\nnan\n")
    )
    assert chosen == {name: Tag(-1, name, -1, -1) for name in ("long_hair", "null", "nan")}


def test_what_a_row_of_selected_tags_does_not_give_is_unknown(write_file: Write) -> None:
    rows = "count,name,tag_id\n,a,5\n7,b,\n0,c,\n1e3,d,\n"
    chosen = vocabulary.read_selected(write_file("selected_tags.csv", rows))
    assert list(chosen.values()) == [
        Tag(5, "a", -1, -1),
        Tag(-1, "b", -1, 7),
        Tag(-1, "c", -1, 0),
        Tag(-1, "d", -1, 1000),
    ]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_selected_tags_of_wd14_are_read(write_file: Write, mark: str, end: str) -> None:
    rows = ["tag_id,name,category,count", "9999999,general,9,807858", "470575,1girl,0,19", "", ""]
    chosen = vocabulary.read_selected(write_file("selected_tags.csv", mark + end.join(rows)))
    assert chosen == {
        "general": Tag(9999999, "general", 9, 807858),
        "1girl": Tag(470575, "1girl", 0, 19),
    }


def test_a_vocabulary_written_can_be_the_selection_of_another(tmp_path: Path) -> None:
    tags = [Tag(i, name, 0, 1) for i, name in enumerate(map(str.lower, AWKWARD))]
    vocabulary.write(tags, tmp_path / "vocabulary.csv")
    assert vocabulary.read_selected(tmp_path / "vocabulary.csv") == {tag.name: tag for tag in tags}


SPELLED = [
    ("long_hair", "long_hair"),
    ("Long Hair", "long_hair"),
    ("  LONG \t hair ", "long_hair"),
    ("saber \\(fate\\)", "saber_(fate)"),
    ("初音 ミク", "初音_ミク"),
    (":D", ":d"),
    ("\\o/", "\\o/"),
]


@pytest.mark.parametrize(("spelled", "name"), SPELLED)
def test_a_tag_has_one_name_however_it_is_spelled(
    write_file: Write, spelled: str, name: str
) -> None:
    assert vocabulary.normalize_name(spelled) == name
    assert vocabulary.normalize_name(name) == name
    assert list(
        vocabulary.read_selected(write_file("selected_tags.csv", f"name\n{spelled}\n"))
    ) == [name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,count\na,50\nb,50\na,60\n", "line 4 repeats the tag 'a'"),
        ("name\nlong_hair\nLong Hair\n", "line 3 repeats the tag 'long_hair'"),
        ("tag,count\na,50\n", "line 2 has no 'name'"),
        ("name,count\n,50\n", "line 2 has no 'name'"),
        ("name,count\na,many\n", "line 2: .*many"),
        ("name,count\na,inf\n", "line 2: .*inf"),
        ("name,category\na,2\n", "line 2 has the unknown category '2'"),
        ("name,category\na,style\n", "line 2 has the unknown category 'style'"),
    ],
)
def test_mistakes_in_selected_tags_are_errors_with_the_line(
    write_file: Write, text: str, message: str
) -> None:
    path = write_file("selected_tags.csv", text)
    with pytest.raises(TaggerError, match=rf"selected_tags\.csv: {message}"):
        vocabulary.read_selected(path)


def test_errors_count_the_lines_of_the_file(write_file: Write) -> None:
    path = write_file("selected_tags.csv", "name,category\na,0\n\n\nb,x\n")
    with pytest.raises(TaggerError, match=r"selected_tags\.csv: line 5 .*'x'"):
        vocabulary.read_selected(path)


def test_blank_names_are_an_error(write_file: Write) -> None:
    with pytest.raises(TaggerError, match=r"selected_tags\.csv: line 3 has no 'name'"):
        vocabulary.read_selected(write_file("selected_tags.csv", "name,count\na,1\n  ,2\n"))


@pytest.mark.parametrize("text", ["", "tag_id,count\n"])
def test_selected_tags_without_names_are_an_error(write_file: Write, text: str) -> None:
    with pytest.raises(TaggerError, match=r"selected_tags\.csv.*(name|is empty)"):
        vocabulary.read_selected(write_file("selected_tags.csv", text))


def test_missing_and_unreadable_selected_tags_are_an_error(
    write_file: Write, tmp_path: Path
) -> None:
    with pytest.raises(TaggerError, match=r"there is no file .*none\.csv"):
        vocabulary.read_selected(tmp_path / "none.csv")
    with pytest.raises(TaggerError, match=r"cannot be read: .utf-8. codec"):
        vocabulary.read_selected(write_file("latin.csv", b"name\ncaf\xe9\n"))


def test_categories_are_counted_by_name() -> None:
    tags = [Tag(-1, "a", 4, 1), Tag(-1, "b", 0, 1), Tag(-1, "c", 4, 1)]
    assert list(vocabulary.count_categories(tags).items()) == [("general", 1), ("character", 2)]


def test_vocabulary_is_plain_csv(tmp_path: Path) -> None:
    vocabulary.write([Tag(1, "nan", 0, 2)], tmp_path / "vocabulary.csv")
    with (tmp_path / "vocabulary.csv").open(encoding="utf-8", newline="") as file:
        assert next(iter(csv.DictReader(file)))["name"] == "nan"


def test_categories_may_be_names_and_numbers_as_tables_leave_them(write_file: Write) -> None:
    path = write_file("selected_tags.csv", "name,category,count\na,character,3.0\nb,4.0,2\nc,4,1\n")
    tags = vocabulary.read_selected(path).values()
    assert [(tag.category, tag.count) for tag in tags] == [(4, 3), (4, 2), (4, 1)]
