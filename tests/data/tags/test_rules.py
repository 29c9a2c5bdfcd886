"""Rules are read from the tables that people have, and all chains of rules are followed."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.data.tags import rules

Write = Callable[[str, str | bytes], Path]
Rows = Sequence[Mapping[str, Any]]

SUFFIXES = (".csv", ".parquet", ".json", ".jsonl")
RATINGS = {
    "general": (9, 9_999_999),
    "sensitive": (9, 9_999_998),
    "questionable": (9, 9_999_997),
    "explicit": (9, 9_999_996),
}
NAMES = ["null", "nan", "true", "None", "1", "^_^", ":3", ";)", "初音ミク", 'a,"b"', "\\o/", "a'b"]
LETTERS = st.sampled_from("abcdefgh")
PAIRS = st.lists(st.tuples(LETTERS, LETTERS), max_size=14)


def content(rows: Rows, suffix: str) -> bytes:
    """Return the bytes of a table in the format of the suffix."""
    if suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink)
        return sink.getvalue()
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Rows:
    return [dict(zip(names, row, strict=True)) for row in rows]


def known_tags(read: rules.Rules) -> dict[str, tuple[int, int]]:
    """Return the known tags except ratings."""
    return {name: tag for name, tag in read.known_tags.items() if name not in RATINGS}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tags_are_read_with_category_and_id(tmp_path: Path, write_file: Write, suffix: str) -> None:
    rows = table(["tag_id", "name", "category"], [(7 + n, name, 4) for n, name in enumerate(NAMES)])
    write_file(f"tags{suffix}", content(rows, suffix))
    read = known_tags(rules.read(tmp_path))
    assert read == {vocabulary.normalize_name(name): (4, 7 + n) for n, name in enumerate(NAMES)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tags_of_site_tags_are_read_with_deprecations(
    tmp_path: Path, write_file: Write, suffix: str
) -> None:
    names = ["id", "name", "post_count", "category", "is_deprecated"]
    rows = table(names, [(1, "1girl", 9, 0, False), (2, "old", 3, 5, True), (3, "miku", 1, 4, 0)])
    write_file(f"tags{suffix}", content(rows if suffix != ".parquet" else rows[:2], suffix))
    read = rules.read(tmp_path)
    assert known_tags(read)["1girl"] == (0, 1)
    assert known_tags(read)["old"] == (5, 2)
    assert read.deprecated == {"old"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["alias", "tag"], [("a", "b"), ("null", "nan"), ("^_^", ":d")]),
        (
            ["antecedent_name", "consequent_name", "status"],
            [
                ("a", "b", "active"),
                ("x", "y", "deleted"),
                ("null", "nan", "active"),
                ("y", "z", "pending"),
                ("^_^", ":d", "active"),
            ],
        ),
    ],
)
def test_active_aliases_and_implications_are_read(
    tmp_path: Path,
    write_file: Write,
    suffix: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    write_file(f"tag_aliases{suffix}", content(table(names, rows), suffix))
    assert rules.read(tmp_path).aliases == {"a": "b", "null": "nan", "^_^": ":d"}
    (tmp_path / f"tag_aliases{suffix}").rename(tmp_path / f"tag_implications{suffix}")
    assert rules.read(tmp_path).implications == {"a": ("b",), "null": ("nan",), "^_^": (":d",)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_renames_are_read_and_empty_targets_drop_tags(
    tmp_path: Path, write_file: Write, suffix: str
) -> None:
    nothing = "" if suffix == ".csv" else None
    rows = table(["from", "to"], [("a b", "C"), ("bad_id", nothing), ("nan", "null")])
    write_file(f"renames{suffix}", content(rows, suffix))
    assert rules.read(tmp_path).renames == {"a_b": "c", "bad_id": "", "nan": "null"}


def test_json_lines_are_read_from_json_files(tmp_path: Path, write_file: Write) -> None:
    write_file("tags.json", '\ufeff{"name": "a", "category": 0}\n\n{"name": "b", "category": 4}\n')
    assert known_tags(rules.read(tmp_path)) == {"a": (0, -1), "b": (4, -1)}


def test_without_tables_only_ratings_are_known(tmp_path: Path) -> None:
    read = rules.read(tmp_path, tmp_path / "none")
    assert read == rules.Rules(known_tags=RATINGS)


def test_ratings_keep_the_id_of_a_table(tmp_path: Path, write_file: Write) -> None:
    write_file("tags.csv", "name,category,tag_id\ngeneral,9,5\nexplicit,9,\nsensitive,0,\n")
    read = rules.read(tmp_path)
    assert {name: read.known_tags[name] for name in RATINGS} == RATINGS | {
        "general": (9, 5),
        "sensitive": (0, -1),
    }


def test_tags_csv_gives_categories_and_ids(tmp_path: Path, write_file: Write) -> None:
    write_file("tags.csv", '\ufeffname,category,tag_id\r\nmiku,4,42\r\n"a,""b""",3,\r\nnan,0,7\r\n')
    assert known_tags(rules.read(tmp_path)) == {"miku": (4, 42), 'a,"b"': (3, -1), "nan": (0, 7)}


@pytest.mark.parametrize(
    ("written", "category"),
    [("4", 4), (" 4", 4), ("4.0", 4), ("character", 4), ("Character", 4), ("general", 0), ("9", 9)],
)
def test_categories_are_numbers_or_names(
    tmp_path: Path, write_file: Write, written: str, category: int
) -> None:
    write_file("tags.csv", f"name,category\nx,{written}\n")
    assert known_tags(rules.read(tmp_path)) == {"x": (category, -1)}


@pytest.mark.parametrize(("written", "tag_id"), [("42", 42), ("42.0", 42), ("", -1), ("-7", -1)])
def test_ids_are_numbers_or_unknown(
    tmp_path: Path, write_file: Write, written: str, tag_id: int
) -> None:
    write_file("tags.csv", f"name,category,id\nx,0,{written}\n")
    assert known_tags(rules.read(tmp_path)) == {"x": (0, tag_id)}


def test_ids_may_be_missing_from_some_rows(tmp_path: Path, write_file: Write) -> None:
    floats = pa.table({"name": ["a", "b"], "category": [0, 4], "id": [3.0, float("nan")]})
    pq.write_table(floats, tmp_path / "tags.parquet")
    assert known_tags(rules.read(tmp_path)) == {"a": (0, 3), "b": (4, -1)}
    (tmp_path / "tags.parquet").unlink()
    write_file(
        "tags.jsonl", '{"name": "a", "category": 0, "id": 3}\n{"name": "b", "category": 4}\n'
    )
    assert known_tags(rules.read(tmp_path)) == {"a": (0, 3), "b": (4, -1)}


def test_names_of_rules_are_normalized(tmp_path: Path, write_file: Write) -> None:
    write_file("tags.csv", "name,category,is_deprecated\nHatsune Miku,4,f\nOld  One,0,t\n")
    write_file("tag_aliases.csv", "alias,tag\nMiku H,Hatsune Miku\n")
    write_file(
        "tag_implications.csv", "antecedent_name,consequent_name\nMiku \\(a\\),Some Series\n"
    )
    read = rules.read(tmp_path)
    assert known_tags(read)["hatsune_miku"] == (4, -1)
    assert read.deprecated == {"old_one"}
    assert read.aliases == {"miku_h": "hatsune_miku"}
    assert read.implications == {"miku_(a)": ("some_series",)}


@given(st.text())
def test_normalized_names_have_no_spaces_or_capitals(text: str) -> None:
    name = vocabulary.normalize_name(text.replace("\\", ""))
    assert name == "".join(name.split()).lower()
    assert vocabulary.normalize_name(name) == name


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("miku,2", "unknown category '2'"),
        ("miku,", "unknown category ''"),
        ("miku,nan", "unknown category 'nan'"),
        ("miku,4.5", "unknown category '4.5'"),
        ("miku", "1 columns, 2 expected"),
        ("miku,4,5", "3 columns, 2 expected"),
    ],
)
def test_mistakes_in_tags_csv_are_errors_with_the_line(
    tmp_path: Path, write_file: Write, row: str, reason: str
) -> None:
    write_file("tags.csv", f'name,category\n\n"o\nk",0\n{row}\n')  # lines, not rows
    with pytest.raises(TaggerError, match=rf"tags\.csv: line 5: {reason}"):
        rules.read(tmp_path)


@pytest.mark.parametrize("tag_id", ["x", "4.5", "inf", "9" * 20])
def test_invalid_ids_are_errors_with_the_line(
    tmp_path: Path, write_file: Write, tag_id: str
) -> None:
    write_file("tags.csv", f"name,category,id\na,0,{tag_id}\n")
    with pytest.raises(TaggerError, match=rf"tags\.csv: line 2: '{tag_id}' is not an id"):
        rules.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("tags.csv", "", "cannot be read: it is empty"),
        ("tags.jsonl", "", "cannot be read: it is empty"),
        ("tags.parquet", "", "cannot be read: it is empty"),
        ("tags.parquet", "no Parquet, this", "cannot be read: Parquet"),
        (
            "tags.csv",
            "nom,category\na,0\n",
            "line 2: there is no column 'name'; the columns are nom, category",
        ),
        ("tags.csv", "name;category\na;0\n", "line 2: there is no column 'name'"),
        ("tags.csv", "name\na\n", "line 2: there is no column 'category'; the columns are name"),
        ("tags.csv", b"name,category\ncaf\xe9,0\n", "cannot be read: 'utf-8' codec"),
        ("tags.csv", 'name,category\na,0\n"b,0\nc,0\n', "cannot be read after 1 rows: unexpected"),
        ("tags.json", "[{]", "cannot be read: "),
        ("tags.json", '["a"]', "item 1 is 'a', not an object"),
        ("tags.json", '{"a": [{"name": "a"}]}', "object 1: there is no column 'name'"),
        ("tags.json", '[{"name": 3, "category": 0}]', "item 1: name is 3, not a text"),
        ("tags.jsonl", '{"name": "a", "category": 0}\n{"na', "cannot be read after 1 rows: "),
        ("tag_aliases.csv", "", "cannot be read: it is empty"),
        ("tag_aliases.csv", "a,b\nx,y\n", "line 2: needs the columns .*alias,tag.*but has a, b"),
        ("tag_aliases.csv", "alias,tag\na,b\nc,\n", "line 3: tag is empty"),
        ("tag_aliases.csv", "alias,tag\n,b\n", "line 2: alias is empty"),
        (
            "tag_aliases.json",
            '[{"alias": "a"}]',
            "item 1: there is no column 'tag'; the columns are alias",
        ),
        ("tag_implications.json", '[{"alias": "a", "tag": null}]', "item 1: tag is empty"),
        ("renames.csv", "from\na\n", "line 2: there is no column 'to'; the columns are from"),
    ],
)
def test_invalid_tables_are_errors_of_one_line(
    tmp_path: Path, write_file: Write, name: str, text: str | bytes, reason: str
) -> None:
    write_file(name, text)
    with pytest.raises(TaggerError, match=rf"{name}:? {reason}") as raised:
        rules.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_folders_in_place_of_tables_are_errors(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").mkdir()
    with pytest.raises(TaggerError, match=r"tags\.csv cannot be read: .*directory"):
        rules.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("tags.csv", "name,category\n"), ("tags.json", "[]"), ("tag_aliases.csv", "alias,tag\r\n")],
)
def test_tables_without_rows_have_no_rules(
    tmp_path: Path, write_file: Write, name: str, text: str
) -> None:
    write_file(name, text)
    assert rules.read(tmp_path) == rules.Rules(known_tags=RATINGS)


def test_rules_of_the_first_folder_count(tmp_path: Path, write_file: Write) -> None:
    write_file("1/tags.csv", "name,category,is_deprecated\na,4,false\nb,0,\n")
    write_file("2/tags.csv", "name,category,is_deprecated\na,0,true\nb,5,true\nc,3,true\n")
    write_file("1/tag_aliases.csv", "alias,tag\nx,first\n")
    write_file("2/tag_aliases.csv", "alias,tag\nx,second\ny,second\n")
    write_file("1/renames.csv", "from,to\nr,first\n")
    write_file("2/renames.csv", "from,to\nr,second\ns,\n")
    write_file("1/tag_implications.csv", "antecedent_name,consequent_name\ni,one\n")
    write_file("2/tag_implications.csv", "antecedent_name,consequent_name\ni,two\n")
    read = rules.read(tmp_path / "1", tmp_path / "2")
    assert known_tags(read) == {"a": (4, -1), "b": (0, -1), "c": (3, -1)}
    assert "a" not in read.deprecated
    assert "c" in read.deprecated
    assert read.aliases == {"x": "first", "y": "second"}
    assert read.renames == {"r": "first", "s": ""}
    assert read.implications == {"i": ("one", "two")}  # both hold: a tag may imply several


def test_rules_of_the_first_row_count(tmp_path: Path, write_file: Write) -> None:
    write_file("tags.csv", "name,category\na,4\nA,0\n")
    write_file("tag_aliases.csv", "alias,tag\nx,first\nx,second\n")
    read = rules.read(tmp_path)
    assert (known_tags(read), read.aliases) == ({"a": (4, -1)}, {"x": "first"})


def test_renamed_tags_keep_their_category_unless_the_new_name_has_one(
    tmp_path: Path, write_file: Write
) -> None:
    write_file("tags.csv", "name,category,id\nhatsune_miku,4,7\nold,0,8\nmeta,5,9\nbad,0,1\n")
    write_file("renames.csv", "from,to\nhatsune_miku,初音ミク\nold,meta\nunknown,new\nbad,\n")
    read = known_tags(rules.read(tmp_path))
    assert read["初音ミク"] == (4, 7)
    assert read["meta"] == (5, 9)
    assert not {"new", ""} & read.keys()


def test_alias_chains_are_followed_to_their_end(tmp_path: Path, write_file: Write) -> None:
    write_file("tag_aliases.csv", "alias,tag\nc,d\na,b\nb,c\nself,self\n")
    read = rules.read(tmp_path)
    assert read.aliases == {"a": "d", "b": "d", "c": "d"}
    assert not read.cycles


def test_aliases_that_lead_to_a_cycle_are_reported_and_dropped(
    tmp_path: Path, write_file: Write
) -> None:
    write_file("tag_aliases.csv", "alias,tag\na,b\nb,a\ninto,a\nx,y\n")
    read = rules.read(tmp_path)
    assert read.aliases == {"x": "y"}
    assert sorted(read.cycles) == ["alias a -> b", "alias b -> a", "alias into -> a"]


def test_cycles_of_implications_are_reported_and_closed(tmp_path: Path, write_file: Write) -> None:
    write_file("tag_implications.csv", "alias,tag\na,b\nb,c\nc,a\nx,a\n")
    read = rules.read(tmp_path)
    assert read.implications == {
        "a": ("b", "c"),
        "b": ("a", "c"),
        "c": ("a", "b"),
        "x": ("a", "b", "c"),
    }
    assert sorted(read.cycles) == [f"implication {tag} -> {tag}" for tag in "abc"]


def test_implications_apply_to_the_targets_of_aliases(tmp_path: Path, write_file: Write) -> None:
    write_file("tag_aliases.csv", "alias,tag\nold_cat,cat\nbeast,animal\nkitty,cat\n")
    write_file(
        "tag_implications.csv",
        "antecedent_name,consequent_name\nold_cat,beast\nanimal,alive\nkitty,cat\n",
    )
    read = rules.read(tmp_path)
    assert read.implications == {"cat": ("alive", "animal"), "animal": ("alive",)}
    assert not read.cycles  # kitty, another name of cat, implies nothing


def test_deprecated_tags_are_not_implied_but_their_implications_are(
    tmp_path: Path, write_file: Write
) -> None:
    write_file("tags.csv", "name,category,is_deprecated\nb,0,True\n")
    write_file("tag_implications.csv", "antecedent_name,consequent_name\na,b\nb,c\n")
    assert rules.read(tmp_path).implications["a"] == ("c",)


def closure(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the transitive closure of pairs."""
    closed = set(pairs)
    while more := {(a, d) for a, b in closed for c, d in closed if b == c} - closed:
        closed |= more
    return closed


@settings(max_examples=80)
@given(PAIRS)
def test_implications_are_the_transitive_closure(pairs: list[tuple[str, str]]) -> None:
    rows = [(a, b) for a, b in pairs if a != b]
    reached = closure(rows)
    with TemporaryDirectory() as folder:
        text = "".join(f"{a},{b}\n" for a, b in pairs)
        Path(folder, "tag_implications.csv").write_text(f"from,to\n{text}")
        read = rules.read(Path(folder))
    ours = {(a, b) for a, implied in read.implications.items() for b in implied}
    assert ours == {(a, b) for a, b in reached if a != b}
    assert {cycle.split()[1] for cycle in read.cycles} == {a for a, b in reached if a == b}


@settings(max_examples=80)
@given(PAIRS)
def test_aliases_lead_to_the_end_of_their_chain(pairs: list[tuple[str, str]]) -> None:
    step: dict[str, str] = {}
    for alias, tag in pairs:
        if alias != tag:
            step.setdefault(alias, tag)
    with TemporaryDirectory() as folder:
        text = "".join(f"{a},{b}\n" for a, b in pairs)
        Path(folder, "tag_aliases.csv").write_text(f"alias,tag\n{text}")
        read = rules.read(Path(folder))
    for alias in step:
        name = alias
        for _ in range(len(step)):
            name = step.get(name, name)
        assert read.aliases.get(alias) == (None if name in step else name)
    assert {cycle.split()[1] for cycle in read.cycles} == step.keys() - read.aliases.keys()
