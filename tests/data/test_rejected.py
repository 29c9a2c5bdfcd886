"""Rejected posts keep their id, first reason and detail, in files that every CSV reader reads."""

import csv
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.data import rejected
from tagger.data.rejected import SCHEMA, Rejection

# UTF-8 has no surrogates; ids that hold them are written in ASCII
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ODD = st.sampled_from(['a,"b"', '"', "two\nlines", "a\r\nb", "\r", " spaced ", "初音ミク", "null"])


def table(*rows: tuple[str | None, str, str | None]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return pa.table(columns, schema=SCHEMA)


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXT | ODD, ODD, TEXT | ODD), max_size=8))
def test_written_rows_are_read_back(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics", "rejected.csv")
        rejected.write(table(*rows), path)
        with path.open(encoding="utf-8", newline="") as file:
            content = list(csv.reader(file, strict=True))
        assert content == [["id", "reason", "detail"], *map(list, rows)]
        assert path.read_bytes().startswith(b"id,reason,detail\n")
        assert path.read_bytes().endswith(b"\n")


def test_unknown_ids_and_details_are_empty(tmp_path: Path) -> None:
    rejected.write(table((None, "duplicate id", None)), tmp_path / "rejected.csv")
    assert (tmp_path / "rejected.csv").read_bytes() == b"id,reason,detail\n,duplicate id,\n"


def test_rejected_posts_have_the_reason_of_the_first_filter() -> None:
    posts = pa.table({"id": pa.chunked_array([["1", "2"], ["3", "4"]]), "width": [1, 2, 3, 4]})
    details = pa.array(["one", "two", None, "four"])
    masks = {"score": [1, 0, 1, 0], "rating": [0, 0, 0, 0], "tags": [1, 1, 0, 0]}
    remaining, rows = rejected.reject(
        posts,
        [Rejection(reason, np.array(mask, bool), details) for reason, mask in masks.items()],
    )
    assert remaining.to_pylist() == [{"id": "4", "width": 4}]
    assert rows.schema == SCHEMA
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        ("1", "score", "one"),
        ("3", "score", None),
        ("2", "tags", "two"),
    ]
    assert rejected.reject(posts, []) == (posts, SCHEMA.empty_table())


def test_failed_rows_become_one_rejection_for_each_reason() -> None:
    results = pa.table({"reason": ["b", None, "a", "b"], "detail": ["x", None, "y", None]})
    rejections = rejected.rejections_by_reason(results)
    assert [(r.reason, r.mask.tolist()) for r in rejections] == [
        ("a", [False, False, True, False]),
        ("b", [True, False, False, True]),
    ]


def test_reasons_are_counted_most_frequent_first() -> None:
    rows = table(("1", "rare", None), ("2", "common", None), ("3", "common", "x"))
    assert list(rejected.count_reasons(rows).items()) == [("common", 2), ("rare", 1)]
    assert rejected.count_reasons(table()) == {}


def test_an_error_without_remaining_posts_lists_the_reasons_and_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "rejected.csv"
    rows = table(("1", "score", "-1"), ("2", "no tags", None), ("3", "no tags", None))
    message = r"^No posts remain \(2 no tags, 1 score\)\. See \S+/rejected\.csv\.$"
    with pytest.raises(TaggerError, match=message):
        rejected.require_posts(table(), rows, path)
    assert [row["id"] for row in files.read_csv(path)] == ["1", "2", "3"]
    with pytest.raises(TaggerError, match=r"^No posts remain \(the source has none\)\. See "):
        rejected.require_posts(table(), table(), path)
    rejected.require_posts(rows, table(), path)
