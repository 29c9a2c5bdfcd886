"""Splits by id, date or table depend on the post alone, or on the leader of its group."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger.core.errors import TaggerError
from tagger.core.manifest import SPLITS
from tagger.split import deterministic
from tagger.split.methods import Groups, SplitIndices

Write = Callable[[str, str | bytes], Path]

FRACTIONS = (0.8, 0.1, 0.1)
IDS = st.lists(st.integers(1, 10**7), min_size=1, max_size=60, unique=True)


def column(values: Sequence[Any]) -> pa.ChunkedArray:
    """Return a column in two chunks, as a file of several row groups is read."""
    half = len(values) // 2
    kind = pa.array(values).type
    return pa.chunked_array(
        [pa.array(half_values, kind) for half_values in (values[:half], values[half:])]
    )


def texts(numbers: Sequence[int]) -> pa.ChunkedArray:
    return column([str(number) for number in numbers])


def alone(posts: Sequence[Any]) -> Groups:
    return np.arange(len(posts))


def hashed(numbers: Sequence[int], groups: Groups, seed: int = 0) -> SplitIndices:
    return deterministic.by_hash(texts(numbers), FRACTIONS, groups=groups, seed=seed)


@settings(max_examples=60)
@given(IDS, st.data())
def test_a_hash_moves_no_post_if_others_are_added_or_rows_change_order(
    numbers: list[int], data: st.DataObject
) -> None:
    whole = dict(zip(numbers, hashed(numbers, alone(numbers)), strict=True))
    subset = data.draw(st.permutations(numbers))[: len(numbers) // 2 + 1]
    assert hashed(subset, alone(subset)).tolist() == [whole[number] for number in subset]


@settings(max_examples=60)
@given(IDS, st.integers(1, 9), st.data())
def test_a_hash_keeps_a_group_with_its_first_post(
    numbers: list[int], count: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(numbers))
    groups = np.array([number % count for number in order]) - 4
    splits = hashed(order, groups)
    for group in np.unique(groups):
        members = [number for number in order if number % count - 4 == group]
        leader = hashed([min(members)], alone([0]))[0]  # later and longer ids do not move it
        assert set(splits[groups == group]) == {leader}


@pytest.mark.parametrize("seed", range(12))
def test_the_leader_has_the_shortest_id_and_the_first_of_these(seed: int) -> None:
    leader = deterministic.by_hash(column(["a.png"]), FRACTIONS, groups=alone([0]), seed=seed)[0]
    for names in permutations(["b.png", "a.png", "aa.png", "0000.png"]):
        splits = deterministic.by_hash(column(names), FRACTIONS, groups=np.zeros(4, int), seed=seed)
        assert set(splits) == {leader}


def test_hash_fractions_are_near_and_the_seed_matters() -> None:
    numbers = range(20_000)
    first, again, other = (hashed(numbers, alone(numbers), seed=seed) for seed in (1, 1, 2))
    for splits in (first, other):
        assert np.bincount(splits) / len(splits) == pytest.approx(FRACTIONS, abs=0.01)
    assert np.array_equal(first, again)
    assert 0.25 < (first != other).mean() < 0.45  # 0.34 if both are independent


@pytest.mark.parametrize(
    ("fractions", "edges"),
    [(FRACTIONS, (800, 900)), ((0.7, 0.2, 0.1), (700, 900)), ((0.5, 0.5), (500,))],
)
def test_modulo_takes_ranges_of_the_last_three_digits(
    fractions: Sequence[float], edges: Sequence[int]
) -> None:
    numbers = range(7_654_000, 7_656_000)
    splits = deterministic.by_modulo(texts(numbers), fractions, groups=alone(numbers))
    expected = [sum(number % 1000 >= edge for edge in edges) for number in numbers]
    assert splits.tolist() == expected


@settings(max_examples=60)
@given(IDS, st.integers(1, 9))
def test_by_modulo_groups_follow_their_smallest_number(numbers: list[int], count: int) -> None:
    groups = np.array([number % count for number in numbers])
    splits = deterministic.by_modulo(texts(numbers), FRACTIONS, groups=groups)
    for group in np.unique(groups):
        rest = min(number for number in numbers if number % count == group) % 1000
        assert set(splits[groups == group]) == {int(rest >= 800) + int(rest >= 900)}


def test_two_comes_before_ten() -> None:
    groups = np.array([5, 5, 5])
    splits = deterministic.by_modulo(texts([10850, 1_000_950, 2]), FRACTIONS, groups=groups)
    assert splits.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["a.png", "1.5", "", "12 ", "9" * 30])
def test_modulo_refuses_ids_that_are_not_numbers(name: str) -> None:
    with pytest.raises(TaggerError, match=r"needs ids that are numbers.*Use hash"):
        deterministic.by_modulo(column(["1", name, "2"]), FRACTIONS, groups=alone("abc"))


@st.composite
def dated(draw: st.DrawFn) -> tuple[list[int], list[datetime], Groups]:
    """Draw ids, dates of which many are the same, and groups."""
    numbers = draw(IDS)
    small_numbers = st.lists(st.integers(0, 20), min_size=len(numbers), max_size=len(numbers))
    days = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in draw(small_numbers)]
    groups = alone(numbers) if draw(st.booleans()) else np.array(draw(small_numbers)) - 5
    return numbers, days, groups


def timed(numbers: Sequence[int], days: Sequence[datetime], groups: Groups) -> SplitIndices:
    return deterministic.by_time(column(days), texts(numbers), FRACTIONS, groups=groups)


@settings(max_examples=100)
@given(dated(), st.randoms(use_true_random=False))
def test_by_time_parts_follow_one_another(
    posts: tuple[list[int], list[datetime], Groups], random: Any
) -> None:
    numbers, days, groups = posts
    splits = timed(*posts)
    oldest = [min(d for d, g in zip(days, groups, strict=True) if g == group) for group in groups]
    for split in (1, 2):
        here = [day for day, p in zip(oldest, splits, strict=True) if p == split]
        before = [day for day, p in zip(oldest, splits, strict=True) if p < split]
        assert not here or not before or max(before) <= min(here)
    for group in np.unique(groups):
        assert len(set(splits[groups == group])) == 1
    sizes = np.bincount(splits, minlength=3)
    largest = np.unique(groups, return_counts=True)[1].max()
    assert np.abs(sizes - np.multiply(FRACTIONS, len(splits))).max() <= largest + 1e-9
    order = list(range(len(numbers)))
    random.shuffle(order)
    turned = timed([numbers[i] for i in order], [days[i] for i in order], groups[order])
    assert np.array_equal(turned, splits[order])


def test_by_time_the_newest_tenth_is_the_test() -> None:
    days = [datetime(2020, 1, 1 + day, tzinfo=UTC) for day in (9, 0, 1, 2, 3, 4, 5, 6, 7, 8)]
    assert timed(range(10), days, alone(days)).tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_time_refuses_posts_without_a_date() -> None:
    dates = column([datetime(2020, 1, 1, tzinfo=UTC), None, None])
    with pytest.raises(TaggerError, match=r"2 of 3 have none\. Use hash"):
        deterministic.by_time(dates, texts([1, 2, 3]), FRACTIONS, groups=alone("abc"))


def table(path: Path, ids: Sequence[Any], splits: Sequence[str], names: Sequence[str]) -> Path:
    """Write a table of the suffix of its path."""
    rows = [dict(zip(names, row, strict=True)) for row in zip(ids, splits, strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [names, *[[str(value) for value in row.values()] for row in rows]]
        path.write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
    else:
        lines_of_json = "\n".join(map(json.dumps, rows))
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines_of_json)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", ".jsonl"])
@pytest.mark.parametrize("numeric", [False, True])
@pytest.mark.parametrize("names", [("id", "split"), ("post", "fold")])
def test_a_table_names_the_splits_in_any_order_and_may_have_more_posts(
    tmp_path: Path, suffix: str, numeric: bool, names: tuple[str, str]
) -> None:
    ids: list[Any] = [30, 10, 99, 20] if numeric else ["30", "10", "99", "20"]
    splits = ["test", "train", "validation", "validation"]
    path = table(tmp_path / f"split{suffix}", ids, splits, names)
    given = deterministic.from_table(path, *names, texts([10, 20, 30]), SPLITS)
    assert given.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("s.csv", "id,split\n1,train\n", r"s\.csv lacks 2 of 3 posts, '2' first"),
        ("s.csv", "id,split\n", r"s\.csv lacks 3 of 3 posts, '1' first"),
        ("s.csv", "id,split\n1,val\n", r"line 2: unknown split 'val'\. .*train, validation, test"),
        (
            "s.csv",
            "id,split\n1,Test\n",
            r"unknown split 'Test'\. Did you mean 'test'\? Splits: train,",
        ),
        ("s.csv", "id,split\n1,test\n2,test\n1,test\n", r"line 4 has the post '1' a second time"),
        ("s.csv", "id,splits\n1,test\n", r"no 'split'\. Did you mean 'splits'\? split\.split_col"),
        ("s.csv", "post_id,split\n1,test\n", r"split\.id_column must be one of post_id, split\."),
        ("s.csv", "id,split\n1,test,2\n", r"line 2: 3 columns, 2 expected"),
        ("s.csv", b"id,split\n\xff,test\n", r"s\.csv cannot be read: .*utf-8"),
        ("s.json", '[{"id": 1, "split": "test"}, {"id": 2}]', r"item 2 has no 'split'"),
        ("s.json", '[{"id": 1, "split": null}]', r"item 1: unknown split 'None'"),
        ("s.jsonl", '{"id": 1, "split": "test"}\n[1]\n', r"object 2 is '\[1\]', not an object"),
        ("s.json", '[{"id": 1', r"s\.json cannot be read"),
        ("s.parquet", "PAR1", r"s\.parquet cannot be read"),
        ("s.csv", "", r"s\.csv cannot be read: it is empty"),
        ("s.txt", "id,split\n", r"no table: its name must end in \.csv, \.parquet, \.json"),
    ],
)
def test_an_invalid_table_is_refused_in_one_line(
    write_file: Write, name: str, content: str | bytes, reason: str
) -> None:
    path = write_file(name, content)
    with pytest.raises(TaggerError, match=reason) as raised:
        deterministic.from_table(path, "id", "split", texts([1, 2, 3]), SPLITS)
    assert "\n" not in str(raised.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"none\.csv cannot be read: .*No such file"):
        deterministic.from_table(tmp_path / "none.csv", "id", "split", texts([1]), SPLITS)
