"""Filters accept or reject each post, and give the value that decided."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tagger import params
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import RATINGS
from tagger.data import filters, sampling
from tagger.data.filters import TagFilter
from tagger.data.posts import COLUMNS
from tagger.data.rejected import Rejection
from tagger.data.tags.lexicon import Lexicon
from tagger.data.tags.rules import Rules

MakeFilters = Callable[..., params.FilterParams]
Details = dict[str, list[str | None]]  # by reason: the detail of each post, None if it passes

RATED = dict.fromkeys(RATINGS, (9, -1))


def column(name: str, values: Sequence[Any]) -> pa.Table:
    ids = [str(number) for number in range(len(values))]
    posts = pa.table({"id": ids, name: pa.array(values, COLUMNS[name])})
    return posts if name != "id" else pa.table({"id": pa.array(values, pa.string())})


def details(rejections: Iterable[Rejection]) -> Details:
    return {
        reason: [
            detail if is_rejected else None
            for is_rejected, detail in zip(mask.tolist(), column.to_pylist(), strict=True)
        ]
        for reason, mask, column in rejections
    }


def passing(rejections: Iterable[Rejection], count: int) -> list[int]:
    rejected = np.zeros(count, dtype=bool)
    for rejection in rejections:
        rejected |= rejection.mask
    return np.flatnonzero(~rejected).tolist()


def test_default_filters_accept_everything(make_filters: MakeFilters) -> None:
    posts = pa.table({name: pa.nulls(2, kind) for name, kind in COLUMNS.items()})
    assert not details(filters.reject_by_columns(posts, make_filters()))
    assert not details(filters.reject_by_columns(posts.select(["id"]), make_filters()))
    assert not details(filters.reject_by_size(posts, make_filters()))
    assert details(tag_filter(make_filters(), [["anything"]])) == {"no tags": [None]}


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"min_score": 0}, [1, 2, 3]),
        ({"max_score": 5}, [0, 1, 2]),
        ({"min_score": 0, "max_score": 0}, [1]),
        ({"min_score": -3, "max_score": 6}, [0, 1, 2, 3]),
    ],
)
def test_score_bounds_are_inclusive_and_reject_unknown_scores(
    make_filters: MakeFilters, changes: dict[str, Any], accepted: list[int]
) -> None:
    posts = column("score", [-3, 0, 5, 6, None])
    assert passing(filters.reject_by_columns(posts, make_filters(**changes)), 5) == accepted
    assert details(filters.reject_by_columns(posts, make_filters(**changes)))["score"][4] == "none"


def test_dates_include_the_first_day_and_exclude_the_last(make_filters: MakeFilters) -> None:
    days = [
        datetime(2020, 1, 30, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2020, 1, 31, tzinfo=UTC),
        datetime(2020, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2020, 3, 1, tzinfo=UTC),
        None,
    ]
    posts = column("created_at", days)
    both = make_filters(after="2020-01-31", before="2020-03-01")
    assert passing(filters.reject_by_columns(posts, both), 5) == [1, 2]
    assert passing(filters.reject_by_columns(posts, make_filters(after="2020-01-31")), 5) == [
        1,
        2,
        3,
    ]
    assert passing(filters.reject_by_columns(posts, make_filters(before="2020-03-01")), 5) == [
        0,
        1,
        2,
    ]
    assert str(details(filters.reject_by_columns(posts, both))["date"][3]).startswith(
        "2020-03-01 00:00"
    )


def test_ids_are_compared_as_numbers(make_filters: MakeFilters) -> None:
    posts = column("id", ["9", "10", "100", None])
    assert passing(filters.reject_by_columns(posts, make_filters(min_id=10, max_id=99)), 4) == [1]
    assert passing(filters.reject_by_columns(posts, make_filters(min_id=10)), 4) == [1, 2]
    assert passing(filters.reject_by_columns(posts, make_filters(max_id=10)), 4) == [0, 1]
    assert details(filters.reject_by_columns(posts, make_filters(min_id=10))) == {
        "id": ["9", None, None, "none"]
    }


@pytest.mark.parametrize("name", ["deleted", "banned"])
def test_deleted_and_banned_posts_are_rejected_by_parameter(
    make_filters: MakeFilters, name: str
) -> None:
    posts = column(name, [True, False, None])
    assert details(filters.reject_by_columns(posts, make_filters(**{f"keep_{name}": True}))) == {}
    assert details(filters.reject_by_columns(posts, make_filters(**{f"keep_{name}": False}))) == {
        name: ["", None, None]
    }


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"min_score": 0}, "the score of its posts"),
        ({"max_score": 0}, "the score of its posts"),
        ({"after": "2020-01-01"}, "the date of its posts"),
        ({"before": "2020-01-01"}, "the date of its posts"),
        ({"keep_deleted": False}, "which of its posts are deleted"),
        ({"keep_banned": False}, "which of its posts are banned"),
    ],
)
def test_filters_on_columns_the_source_lacks_are_errors(
    make_filters: MakeFilters, changes: dict[str, Any], unknown: str
) -> None:
    with pytest.raises(TaggerError, match=f"^prepare.filters: .*does not say {unknown}"):
        list(filters.reject_by_columns(column("id", ["1"]), make_filters(**changes)))


def test_bounds_on_ids_that_are_not_numbers_are_errors(make_filters: MakeFilters) -> None:
    with pytest.raises(TaggerError, match="ids of this source are not numbers"):
        list(filters.reject_by_columns(column("id", ["1", "a.png"]), make_filters(min_id=1)))


SIZES = [(100, 300), (300, 100), (99, 300), (100, 301), (None, 50), (10, None), (None, None)]


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"min_side": 100}, [0, 1, 3, 4, 5, 6]),
        ({"max_aspect_ratio": 3}, [0, 1, 4, 5, 6]),
        ({"max_aspect_ratio": 1}, [4, 5, 6]),
        ({"min_side": 100, "max_aspect_ratio": 3}, [0, 1, 4, 5, 6]),
    ],
)
def test_size_bounds_are_inclusive_and_accept_unknown_sizes(
    make_filters: MakeFilters, changes: dict[str, Any], accepted: list[int]
) -> None:
    width, height = zip(*SIZES, strict=True)
    posts = pa.table({"width": pa.array(width, pa.int32()), "height": pa.array(height, pa.int32())})
    assert passing(filters.reject_by_size(posts, make_filters(**changes)), len(SIZES)) == accepted


def test_rejections_by_size_give_the_size(make_filters: MakeFilters) -> None:
    posts = pa.table({"width": pa.array([99], pa.int32()), "height": pa.array([300], pa.int32())})
    size_details = details(
        filters.reject_by_size(posts, make_filters(min_side=100, max_aspect_ratio=3))
    )
    assert size_details == {"too small": ["99 x 300"], "aspect": ["99 x 300"]}


def tag_filter(p: params.FilterParams, *batches: list[list[str]]) -> list[Rejection]:
    """Return the rejections of the last batch. Tags c... are characters, m... meta."""
    rules = Rules(
        known_tags=RATED | {"c1": (4, -1), "m1": (5, -1)},
        aliases={"alias": "c1"},
        implications={"dog": ("animal", "c1")},
    )
    lexicon = Lexicon(rules)
    tag_filter = TagFilter(lexicon, p)
    for batch in batches:
        labels = lexicon.labels({None: pa.array(batch, pa.list_(pa.string()))})
        rejections = list(tag_filter.rejections(labels))
    return rejections


def test_posts_without_tags_are_rejected(make_filters: MakeFilters) -> None:
    assert details(tag_filter(make_filters(), [["a"], [], [""]])) == {
        "no tags": [None, "none is left", "none is left"]
    }


def test_ratings_accept_only_the_listed_ratings(make_filters: MakeFilters) -> None:
    posts = [["general", "a"], ["explicit", "a"], ["a"], ["sensitive"]]
    p = make_filters(ratings=["general", "sensitive"])
    assert passing(tag_filter(p, posts), 4) == [0, 3]
    assert details(tag_filter(p, posts))["rating"][2] == "not general, sensitive"
    assert passing(tag_filter(make_filters(ratings=[]), posts), 4) == []


GLOBS = [
    ("1girl", ["1girl"]),
    ("*_hair", ["long_hair", "red_hair"]),
    ("*_HAIR", ["long_hair", "red_hair"]),
    ("long hair", ["long_hair"]),
    ("l?ng_hair", ["long_hair"]),
    ("[lr]*_hair", ["long_hair", "red_hair"]),
    (":3", [":3"]),
    (":?", [":3", ":o"]),
    ("[x]", ["[x]", "x"]),
    ("[[]x]", ["[x]"]),
    ("[*]_[*]", ["*_*"]),
    ("[?]", ["?"]),
    ("*_*", ["*_*", "long_hair", "red_hair", "x_(y)"]),
    ("?", ["?", "x"]),
    ("x \\(y\\)", ["x_(y)"]),
    ("hair", []),
]
NAMES = ["1girl", "long_hair", "red_hair", ":3", ":o", "[x]", "x", "*_*", "?", "x_(y)"]


@pytest.mark.parametrize(("glob", "matched"), GLOBS)
def test_globs_match_whole_tags(make_filters: MakeFilters, glob: str, matched: list[str]) -> None:
    posts = [[name] for name in NAMES]
    rows = sorted(NAMES.index(name) for name in matched)
    assert passing(tag_filter(make_filters(required_tags=[glob]), posts), len(posts)) == rows
    others = [row for row in range(len(posts)) if row not in rows]
    assert passing(tag_filter(make_filters(excluded_tags=[glob]), posts), len(posts)) == others


@pytest.mark.parametrize("name", NAMES)
def test_every_tag_matches_its_own_name(make_filters: MakeFilters, name: str) -> None:
    assert 0 in passing(tag_filter(make_filters(required_tags=[name]), [[name]]), 1)


def test_all_required_and_no_excluded_tags_are_accepted(make_filters: MakeFilters) -> None:
    posts = [["a", "b"], ["a"], ["b"], ["a", "b", "c"]]
    assert passing(tag_filter(make_filters(required_tags=["a", "b"]), posts), 4) == [0, 3]
    assert passing(tag_filter(make_filters(excluded_tags=["b", "c"]), posts), 4) == [1]
    both = make_filters(required_tags=["a"], excluded_tags=["c"])
    assert details(tag_filter(both, posts)) == {
        "no tags": [None] * 4,
        "required tag": [None, None, "a", None],
        "excluded tag": [None, None, None, "c"],
    }


def test_tag_filters_apply_after_aliases_and_implications(make_filters: MakeFilters) -> None:
    posts = [["alias"], ["dog"], ["cat"]]
    assert passing(tag_filter(make_filters(required_tags=["c1"]), posts), 3) == [0, 1]
    assert passing(tag_filter(make_filters(excluded_tags=["animal"]), posts), 3) == [0, 2]
    assert passing(tag_filter(make_filters(required_tags=["alias"]), posts), 3) == []


def test_min_tags_counts_general_tags_and_implied_ones(make_filters: MakeFilters) -> None:
    posts = [["dog"], ["dog", "a"], ["a", "b", "c"], ["a", "c1", "m1", "explicit"], ["a", "a"]]
    p = make_filters(min_tags=2)
    assert passing(tag_filter(p, posts), 5) == [0, 1, 2]
    assert details(tag_filter(p, posts))["few tags"][3:] == ["1 general tags"] * 2
    assert passing(tag_filter(make_filters(min_tags=3), posts), 5) == [1, 2]


def test_tag_filters_do_not_depend_on_earlier_batches(make_filters: MakeFilters) -> None:
    p = make_filters(required_tags=["a*"], excluded_tags=["b"], min_tags=1)
    posts = [["ab"], ["ab", "b"], ["d"]]
    alone = details(tag_filter(p, posts))
    assert details(tag_filter(p, [["d"], ["b", "e"]], [], [["f"]], posts)) == alone


IDS = st.lists(st.text("0123456789é", min_size=1, max_size=6), unique=True, max_size=40)


@settings(max_examples=100)
@given(IDS, st.integers(0, 2**64), st.data())
def test_random_order_does_not_depend_on_other_posts(
    ids: list[str], seed: int, data: st.DataObject
) -> None:
    subset = data.draw(st.lists(st.sampled_from(ids), unique=True) if ids else st.just([]))
    cut = data.draw(st.integers(0, len(ids)))
    whole = pa.chunked_array([ids[:cut], ids[cut:]], pa.string())
    drawn = [ids[number] for number in sampling.random_order(whole, seed)]
    assert sorted(drawn) == sorted(ids)
    alone = sampling.random_order(pa.chunked_array([subset], pa.string()), seed)
    assert [subset[number] for number in alone] == [name for name in drawn if name in subset]


def test_seed_decides_the_random_order() -> None:
    ids = pa.chunked_array([[str(number) for number in range(50)]])
    orders = [sampling.random_order(ids, seed).tolist() for seed in (0, 0, 1, 10**15)]
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders))) == 3
    assert sampling.random_order(pa.chunked_array([], pa.string()), 0).tolist() == []


@st.composite
def capped(draw: st.DrawFn) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], int]:
    """Draw labels, (posts, tags), an order of the posts, and a cap."""
    posts, tags = draw(st.integers(0, 30)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = random.random((posts, tags)) < draw(st.floats(0, 0.8))
    return labels, random.permutation(posts), draw(st.integers(1, 12))


@settings(max_examples=150)
@given(capped())
def test_cap_holds_for_every_tag_and_rejects_no_post_in_vain(
    drawn: tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], int],
) -> None:
    assert_capped(*drawn)


def assert_capped(labels: npt.NDArray[np.bool_], order: npt.NDArray[np.int64], cap: int) -> None:
    mask = sampling.over_cap(csr_array(labels), order, cap)
    counts = labels[~mask].sum(axis=0)
    assert mask.shape == (len(labels),)
    assert (counts <= cap).all()
    assert (counts + labels[mask] > cap).any(axis=1).all()
    assert not mask[order[: min(cap, len(order))]].any()


def test_cap_holds_for_many_posts_in_compiled_code() -> None:
    random = np.random.default_rng(0)
    assert_capped(random.random((70_000, 9)) < 0.3, random.permutation(70_000), 9_000)
