"""What was left out is written so that every reader of CSV gets it back."""

import csv
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger.core import files
from tagger.data.filters import Rejection
from tagger.data.rejected import RejectedPosts
from tagger.data.sources import REJECTED

# surrogates cannot be written as UTF-8; names that hold them are given by their ASCII form
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ODD = st.sampled_from(['a,"b"', '"', "two\nlines", "a\r\nb", "\r", " spaced ", "初音ミク", "null"])


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def left_out(*rows: tuple[str | None, str, str | None]) -> RejectedPosts:
    rejected = RejectedPosts()
    for row in rows:
        rejected.add(pa.table([[value] for value in row], schema=REJECTED))
    return rejected


@settings(max_examples=100)
@given(st.lists(st.tuples(TEXT | ODD, ODD, TEXT | ODD), max_size=8))
def test_what_is_written_is_read_back(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rejected.csv")
        left_out(*rows).write(path)
        assert rows_of(path) == [["id", "reason", "detail"], *map(list, rows)]
        content = path.read_bytes()
    assert content.startswith(b"id,reason,detail\n")
    assert content.endswith(b"\n")


def test_nothing_left_out_is_a_header_alone(tmp_path: Path) -> None:
    rejected = RejectedPosts()
    rejected.add(REJECTED.empty_table())
    rejected.write(tmp_path / "metrics" / "rejected.csv")
    assert (tmp_path / "metrics" / "rejected.csv").read_bytes() == b"id,reason,detail\n"
    assert (len(rejected), rejected.counts(), len(rejected.table())) == (0, {}, 0)


def test_what_is_not_known_is_empty(tmp_path: Path) -> None:
    left_out((None, "duplicate id", None)).write(tmp_path / "rejected.csv")
    assert (tmp_path / "rejected.csv").read_bytes() == b"id,reason,detail\n,duplicate id,\n"
    assert files.read_csv(tmp_path / "rejected.csv") == [
        {"id": "", "reason": "duplicate id", "detail": ""}
    ]


def test_the_posts_that_a_verdict_leaves_out_are_kept_with_its_reason() -> None:
    rejected = RejectedPosts()
    ids = pa.chunked_array([["1", "2"], ["3"]])
    details = pa.array(["one", "two", None])
    rejected.judge(ids, Rejection("score", np.array([True, False, True]), details))
    rejected.judge(ids, Rejection("rating", np.array([False, False, False]), details))
    rejected.judge(ids, Rejection("tags", np.array([False, True, False]), details))
    assert rejected.table().to_pylist() == [
        {"id": "1", "reason": "score", "detail": "one"},
        {"id": "3", "reason": "score", "detail": None},
        {"id": "2", "reason": "tags", "detail": "two"},
    ]
    assert len(rejected) == 3


def test_reasons_are_counted_the_most_frequent_first() -> None:
    rejected = left_out(("1", "rare", None), ("2", "common", None), ("3", "common", "x"))
    assert list(rejected.counts().items()) == [("common", 2), ("rare", 1)]


def test_rows_come_in_any_order_of_columns_but_with_all_of_them() -> None:
    rejected = RejectedPosts()
    rejected.add(pa.table({"detail": ["d"], "more": [1], "reason": ["r"], "id": ["1"]}))
    assert rejected.table().to_pylist() == [{"id": "1", "reason": "r", "detail": "d"}]
    with pytest.raises(KeyError, match="detail"):
        rejected.add(pa.table({"id": ["1"], "reason": ["r"]}))
