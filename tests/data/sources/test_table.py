"""Tables in four formats give the same posts, as people and programs write them."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare
from tagger.core.errors import TaggerError
from tagger.data import ingest
from tagger.data.sources.table import TableSource
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon
from tagger.params import Params

Write = Callable[[str, str | bytes], Path]
Paint = Callable[[str], Path]
Row = dict[str, Any]

ROWS: list[Row] = [
    {"path": "a.png", "tags": "1girl,null,nan"},
    {"path": 'q"uo,te.png', "tags": "comma\nline"},
    {"path": "初音.png", "tags": "(o)_(o)"},
]


def table(path: Path, **settings: Any) -> TableSource:
    defaults = {"path_column": "path", "tag_column": "tags", "separator": ","}
    return TableSource(path=path, **{"image_root": Path("images")} | defaults | settings)


def read(path: Path, **settings: Any) -> list[Row]:
    """Return the posts of a table, with their tags by category."""
    rows = []
    for batch in table(path, **settings).read():
        for number, row in enumerate(batch.posts.to_pylist()):
            tags = {code: lists[number].as_py() for code, lists in batch.tags.items()}
            rows.append({**row, "tags": tags[None], "rating": tags.get(9)})
    return rows


def rejected_rows(path: Path) -> list[tuple[str, str, str]]:
    columns = [batch.rejected.to_pydict().values() for batch in table(path).read()]
    return [row for column in columns for row in zip(*column, strict=True)]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write rows in the format of the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


FORMATS = [".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".CSV"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_posts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    write_rows(path, ROWS) if suffix != ".CSV" else write_rows(tmp_path / "table.csv", ROWS).rename(
        path
    )
    posts = read(path)
    assert [row["id"] for row in posts] == [row["path"] for row in ROWS]
    assert [row["file"] for row in posts] == [f"images/{row['path']}" for row in ROWS]
    assert [row["tags"] for row in posts] == [row["tags"].split(",") for row in ROWS]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
@settings(max_examples=60)
def test_any_text_survives_a_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    write_rows(path, [{"path": f"p{a}", "tags": f"t{b}"} for a, b in rows])
    posts = read(path, separator="\0")
    assert [(row["id"][1:], row["tags"][0][1:]) for row in posts] == rows


def test_columns_and_separator_are_parameters(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.csv", [{"image file": "a.png", "x": "1", "labels": "a b|c"}])
    (row,) = read(path, path_column="image file", tag_column="labels", separator="|")
    assert (row["id"], row["tags"]) == ("a.png", ["a b", "c"])


def test_relative_paths_start_at_image_root(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.csv", [{"path": p, "tags": "a"} for p in ("a.png", "/b.png")])
    assert [row["file"] for row in read(path)] == ["images/a.png", "/b.png"]
    assert [row["file"] for row in read(path, image_root=Path())] == ["a.png", "/b.png"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_tags_may_be_lists(tmp_path: Path, suffix: str) -> None:
    rows: list[Row] = [
        {"path": "a.png", "tags": ["1girl", "a,b"]},
        {"path": "b.png", "tags": []},
        {"path": "c.png", "tags": None},
    ]
    path = write_rows(tmp_path / f"t{suffix}", rows)
    assert [row["tags"] for row in read(path)] == [["1girl", "a,b"], [], []]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_of_any_arrow_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {
        "path": ["a.png", "b.png"],
        "tags": ["1girl,smile", "smile"],
        "rating": ["g", None],
        "score": ["3", ""],
        "parent_id": ["", "7"],
        "created_at": ["2020-01-31T10:00:00Z", None],
    }
    arrays = {name: pa.array(values).cast(kind) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")
    assert (first["tags"], second["tags"]) == (["1girl", "smile"], ["smile"])
    assert (first["rating"], second["rating"]) == (["general"], [])
    assert (first["score"], second["score"]) == (3, None)
    assert (first["parent"], second["parent"]) == (None, "7")
    assert first["created_at"].isoformat() == "2020-01-31T10:00:00+00:00"


@pytest.mark.parametrize(
    "kind", [pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))]
)
def test_lists_of_any_arrow_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    tags = pa.array([["a", "b"], None, []], pa.list_(pa.string())).cast(kind)
    pq.write_table(pa.table({"path": ["1", "2", "3"], "tags": tags}), tmp_path / "t.parquet")
    assert [row["tags"] for row in read(tmp_path / "t.parquet")] == [["a", "b"], [], []]


FULL: list[Row] = [
    {
        "path": "a.png",
        "tags": "a",
        "id": "12",
        "rating": "s",
        "score": "-3",
        "created_at": "2020-01-31T10:00:00.500-05:00",
        "parent_id": "7",
        "width": "640",
        "height": "480",
        "is_deleted": "true",
        "is_banned": "False",
    },
    {"path": "b.png", "tags": "b", "id": "13", "rating": "Explicit", "width": "0", "height": ""},
    {"path": "c.png", "tags": "c", "id": "14", "rating": "unrated"},
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_danbooru_columns_are_used_if_present(tmp_path: Path, suffix: str) -> None:
    rows = [{name: row.get(name, "") for name in FULL[0]} for row in FULL]
    first, second, third = read(write_rows(tmp_path / f"t{suffix}", rows))
    assert (first["id"], first["score"], first["parent"]) == ("12", -3, "7")
    assert (first["width"], first["height"]) == (640, 480)
    assert (first["deleted"], first["banned"]) == (True, False)
    assert first["created_at"].isoformat() == "2020-01-31T15:00:00.500000+00:00"
    assert [row["rating"] for row in (first, second, third)] == [["sensitive"], ["explicit"], []]
    for name in ("score", "parent", "created_at", "deleted", "width", "height"):
        assert second[name] is None


@pytest.mark.parametrize("text", ["2020-01-31", "2020-01-31 10:30:00", "2020-01-31T10:30:00.25"])
def test_times_without_a_zone_are_utc(tmp_path: Path, text: str) -> None:
    path = write_rows(tmp_path / "t.csv", [{"path": "a", "tags": "a", "created_at": text}])
    (row,) = read(path)
    assert row["created_at"].isoformat().startswith("2020-01-31T")
    assert row["created_at"].utcoffset().total_seconds() == 0


def test_ids_stored_as_floats_are_integers_again(tmp_path: Path) -> None:
    columns = {
        "path": ["a", "b"],
        "tags": ["a", "b"],
        "id": pa.array([8123456, 2], pa.int32()),
        "parent_id": pa.array([8000000.0, float("nan")]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")
    assert (first["id"], second["id"]) == ("8123456", "2")
    assert (first["parent"], second["parent"]) == ("8000000", None)


def test_missing_columns_are_errors_that_suggest_the_nearest(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet", ".jsonl"):
        path = write_rows(tmp_path / f"t{suffix}", [{"paths": "a.png", "tags": "a"}])
        with pytest.raises(TaggerError) as error:
            read(path)
        assert "no column 'path'. Did you mean 'paths'? prepare.path_column must be" in str(
            error.value
        )
        with pytest.raises(TaggerError, match=r"no column 'tag_string'.*prepare\.tag_column"):
            read(path, path_column="paths", tag_column="tag_string")


def test_csv_rows_with_another_number_of_columns_are_rejected(write_file: Write) -> None:
    path = write_file("t.csv", 'path,tags\na.png,a\nb.png,b,c\n"c\n.png"\nd.png,d\n')
    assert [row["id"] for row in read(path)] == ["a.png", "d.png"]
    first, second = rejected_rows(path)
    assert first[:2] == second[:2] == ("t.csv: a row", "unreadable row")
    assert first[2] == "3 columns, 2 expected: b.png,b,c"
    assert "\n" not in second[2]


@pytest.mark.parametrize(
    ("column", "value"),
    [("score", "many"), ("created_at", "yesterday"), ("width", str(2**40)), ("is_deleted", "?")],
)
def test_values_of_the_wrong_type_are_errors_that_name_the_column(
    tmp_path: Path, column: str, value: str
) -> None:
    path = write_rows(tmp_path / "t.csv", [{"path": "a", "tags": "a", column: value}])
    with pytest.raises(TaggerError, match=rf"t\.csv: column '{column}': ") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_empty_cells_are_nulls(write_file: Write) -> None:
    empty, full = read(write_file("t.csv", "path,tags,id\n,,\na.png,a,1\n"))
    assert (empty["id"], empty["file"]) == (None, None)
    assert (full["id"], full["file"]) == ("1", "images/a.png")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_byte_order_mark_and_any_line_end_is_read(
    write_file: Write, mark: bytes, end: str
) -> None:
    content = end.join(['"path","tags"', "a.png,a", ""])
    (row,) = read(write_file("t.csv", mark + content.encode()))
    assert (row["id"], row["tags"]) == ("a.png", ["a"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b""),
        ("t.csv", b"\xff\xfe\0\0"),
        ("t.csv", "path,tags\ncafé,a\n".encode("latin-1")),
        ("t.csv", "path,café\na,a\n".encode("latin-1")),
        ("t.csv", b"PAR1" + bytes(range(256)) * 4),
        ("t.tsv", b"path,tags\na,a\n"),
        ("t.parquet", b""),
        ("t.parquet", b"path,tags\na,a\n"),
        ("t.parquet", b"PAR1" + b"\0" * 64 + b"PAR1"),
        ("t.jsonl", b""),
        ("t.jsonl", b"path,tags\na,a\n"),
        ("t.jsonl", b'{"path": "a", "tags": "a"}\n{"path": 1}\n'),
        ("t.jsonl", b'[{"path": "a", "tags": "a"}]'),
        ("t.json", b"{}"),
        ("t", b"path,tags\n"),
    ],
)
def test_files_that_are_no_tables_are_errors_of_one_line(
    write_file: Write, name: str, content: bytes
) -> None:
    path = write_file(name, content)
    with pytest.raises(TaggerError, match=rf"{path}") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_missing_tables_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(TaggerError, match=rf"prepare\.path: there is no file {path}"):
            read(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_without_rows_have_no_posts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        path.write_text("path,tags\n")
    else:
        pq.write_table(
            pa.table({"path": pa.array([], "string"), "tags": pa.array([], "string")}), path
        )
    assert read(path) == []


def test_rows_of_many_blocks_are_in_order(tmp_path: Path) -> None:
    rows = [{"path": f"{n:03d}.png", "tags": f"tag_{n}"} for n in range(100)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = write_rows(tmp_path / f"t{suffix}", rows)
        posts = read(path, block_rows=7, block_bytes=200)
        assert [row["id"] for row in posts] == [row["path"] for row in rows]
        assert [row["tags"] for row in posts] == [[row["tags"]] for row in rows]


def test_missing_files_have_no_location(tmp_path: Path, write_image: Paint) -> None:
    size = write_image("a.png").stat().st_size
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = ["a.png", "none.png", "pipe.png", "folder.png", "nul\0.png", "x" * 300, "a.png/b", None]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": names, "tags": ["a"] * len(names)}), path)
    source = table(path, image_root=tmp_path)
    posts = next(iter(source.read())).posts
    for name in ("shard", "size", "modified"):
        kind = pa.string() if name == "shard" else pa.int64()
        posts = posts.append_column(name, pa.nulls(len(posts), kind))
    located = source.locate(posts)
    assert located["file"].to_pylist() == [str(tmp_path / "a.png")] + [None] * 7
    assert located["size"].to_pylist() == [size] + [None] * 7


def test_prepare_uses_or_rejects_every_row_of_a_table(
    tmp_path: Path, write_image: Paint, default_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("a", "b", "c", "again", "un,tagged"):
        write_image(f"images/{name}.png")
    rows = [
        {"id": "1", "path": "a.png", "tags": "null, nan, 1girl"},
        {"id": "2", "path": "b.png", "tags": "NaN,smile"},
        {"id": "1", "path": "again.png", "tags": "smile"},
        {"id": "", "path": "c.png", "tags": "smile"},
        {"id": "5", "path": "", "tags": "smile"},
        {"id": "6", "path": "un,tagged.png", "tags": ""},
        {"id": "7", "path": "none.png", "tags": "smile"},
    ]
    changes = {"source": "table", "path": write_rows(Path("t.csv"), rows)}
    p = default_params.prepare.model_copy(update={**changes, "image_root": Path("images")})
    prepare.main(p)
    names = pq.read_table(prepare.TAGS)["name"].to_pylist()
    posts = pq.read_table(prepare.POSTS).to_pylist()
    assert {post["id"]: {names[tag] for tag in post["tags"]} for post in posts} == {
        "1": {"null", "nan", "1girl"},
        "2": {"nan", "smile"},
    }
    assert [post["file"] for post in posts] == ["images/a.png", "images/b.png"]
    with prepare.REJECTED.open(encoding="utf-8", newline="") as file:
        reasons = [(row["id"], row["reason"]) for row in csv.DictReader(file)]
    assert sorted(row[0] for row in reasons) == ["", "1", "5", "6", "7"]
    assert sorted(reasons)[1:] == [
        ("1", "duplicate id"),
        ("5", "no image"),
        ("6", "no tags"),
        ("7", "no image"),
    ]


@pytest.mark.parametrize(
    ("filters", "accepted"),
    [
        ({"min_score": 3}, ["b.png"]),
        ({"after": "2024-02-01"}, ["b.png"]),
        ({"keep_deleted": False}, ["a.png"]),
        ({"min_id": 2}, ["b.png"]),
    ],
)
@pytest.mark.parametrize("odd", ["", "three,columns,alone\n"])
def test_filters_on_columns_apply_to_tables(
    tmp_path: Path, default_params: Params, filters: dict[str, Any], accepted: list[str], odd: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(
        "path,tags,id,score,created_at,is_deleted\n"
        "a.png,smile,1,2,2024-01-01T00:00:00Z,false\n"
        "b.png,smile,2,3,2024-03-01T00:00:00Z,true\n" + odd
    )
    p = type(default_params.prepare.filters).model_validate(
        default_params.prepare.filters.model_dump() | filters
    )
    posts, rejected = ingest.read_posts(table(path), Lexicon(rules.read(tmp_path)), p)
    assert [Path(file).name for file in posts["file"].to_pylist()] == accepted
    assert len(rejected) == 1 + bool(odd)
