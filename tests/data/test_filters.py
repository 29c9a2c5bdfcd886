"""What is wanted stays, what is not is left out with the value that decided."""

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
from tagger.data.filters import Rejection, TagFilter
from tagger.data.sources import COLUMNS
from tagger.data.tags.lexicon import Lexicon
from tagger.data.tags.rules import Rules
from tagger.params import Params
from tagger.system import jit

Want = Callable[..., params.FilterParams]
Said = dict[str, list[str | None]]  # by reason, the detail of each post left out, None of others

RATED = dict.fromkeys(RATINGS, (9, -1))


@pytest.fixture(scope="module")
def want(default_params: Params) -> Want:
    """The filters as shipped, which want all, but for those named."""

    def want(**wanted: Any) -> params.FilterParams:
        return params.FilterParams.model_validate(
            default_params.prepare.filters.model_dump() | wanted
        )

    return want


def column(name: str, values: Sequence[Any]) -> pa.Table:
    ids = [str(number) for number in range(len(values))]
    posts = pa.table({"id": ids, name: pa.array(values, COLUMNS[name])})
    return posts if name != "id" else pa.table({"id": pa.array(values, pa.string())})


def said(verdicts: Iterable[Rejection]) -> Said:
    return {
        verdict.reason: [
            detail if out else None
            for out, detail in zip(
                verdict.rejected.tolist(), verdict.details.to_pylist(), strict=True
            )
        ]
        for verdict in verdicts
    }


def passing(verdicts: Iterable[Rejection], posts: int) -> list[int]:
    kept = np.ones(posts, dtype=bool)
    for verdict in verdicts:
        kept &= ~verdict.rejected
    return np.flatnonzero(kept).tolist()


def test_as_shipped_everything_is_wanted(want: Want) -> None:
    posts = pa.table({name: pa.nulls(2, kind) for name, kind in COLUMNS.items()})
    assert not said(filters.reject_by_columns(posts, want()))
    assert not said(filters.reject_by_columns(posts.select(["id"]), want()))
    assert not said(filters.reject_by_size(posts, want()))
    assert said(tag_filter(want(), [["anything"]])) == {"no tags": [None]}


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"min_score": 0}, [1, 2, 3]),
        ({"max_score": 5}, [0, 1, 2]),
        ({"min_score": 0, "max_score": 0}, [1]),
        ({"min_score": -3, "max_score": 6}, [0, 1, 2, 3]),
    ],
)
def test_scores_are_bounded_inclusively_and_none_is_outside(
    want: Want, wanted: dict[str, Any], kept: list[int]
) -> None:
    posts = column("score", [-3, 0, 5, 6, None])
    assert passing(filters.reject_by_columns(posts, want(**wanted)), 5) == kept
    assert said(filters.reject_by_columns(posts, want(**wanted)))["score"][4] == "none"


def test_the_first_day_is_wanted_whole_and_the_last_not_at_all(want: Want) -> None:
    days = [
        datetime(2020, 1, 30, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2020, 1, 31, tzinfo=UTC),
        datetime(2020, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2020, 3, 1, tzinfo=UTC),
        None,
    ]
    posts = column("created_at", days)
    both = want(after="2020-01-31", before="2020-03-01")
    assert passing(filters.reject_by_columns(posts, both), 5) == [1, 2]
    assert passing(filters.reject_by_columns(posts, want(after="2020-01-31")), 5) == [1, 2, 3]
    assert passing(filters.reject_by_columns(posts, want(before="2020-03-01")), 5) == [0, 1, 2]
    assert str(said(filters.reject_by_columns(posts, both))["date"][3]).startswith(
        "2020-03-01 00:00"
    )


def test_ids_are_compared_as_numbers(want: Want) -> None:
    posts = column("id", ["9", "10", "100", None])
    assert passing(filters.reject_by_columns(posts, want(min_id=10, max_id=99)), 4) == [1]
    assert passing(filters.reject_by_columns(posts, want(min_id=10)), 4) == [1, 2]
    assert passing(filters.reject_by_columns(posts, want(max_id=10)), 4) == [0, 1]
    assert said(filters.reject_by_columns(posts, want(min_id=10))) == {
        "id": ["9", None, None, "none"]
    }


@pytest.mark.parametrize("name", ["deleted", "banned"])
def test_deleted_and_banned_posts_stay_unless_unwanted(want: Want, name: str) -> None:
    posts = column(name, [True, False, None])
    assert said(filters.reject_by_columns(posts, want(**{f"keep_{name}": True}))) == {}
    assert said(filters.reject_by_columns(posts, want(**{f"keep_{name}": False}))) == {
        name: ["", None, None]
    }


@pytest.mark.parametrize(
    ("wanted", "unknown"),
    [
        ({"min_score": 0}, "the score of its posts"),
        ({"max_score": 0}, "the score of its posts"),
        ({"after": "2020-01-01"}, "the date of its posts"),
        ({"before": "2020-01-01"}, "the date of its posts"),
        ({"keep_deleted": False}, "which of its posts are deleted"),
        ({"keep_banned": False}, "which of its posts are banned"),
    ],
)
def test_a_filter_on_what_the_source_does_not_know_is_refused(
    want: Want, wanted: dict[str, Any], unknown: str
) -> None:
    with pytest.raises(TaggerError, match=f"^prepare.filters: .*does not say {unknown}"):
        list(filters.reject_by_columns(column("id", ["1"]), want(**wanted)))


def test_bounds_of_ids_that_are_no_numbers_are_refused(want: Want) -> None:
    with pytest.raises(TaggerError, match="ids of this source are no numbers"):
        list(filters.reject_by_columns(column("id", ["1", "a.png"]), want(min_id=1)))


SIZES = [(100, 300), (300, 100), (99, 300), (100, 301), (None, 50), (10, None), (None, None)]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"min_side": 100}, [0, 1, 3, 4, 5, 6]),
        ({"max_aspect_ratio": 3}, [0, 1, 4, 5, 6]),
        ({"max_aspect_ratio": 1}, [4, 5, 6]),
        ({"min_side": 100, "max_aspect_ratio": 3}, [0, 1, 4, 5, 6]),
    ],
)
def test_sizes_are_bounded_inclusively_and_an_unknown_one_passes(
    want: Want, wanted: dict[str, Any], kept: list[int]
) -> None:
    width, height = zip(*SIZES, strict=True)
    posts = pa.table({"width": pa.array(width, pa.int32()), "height": pa.array(height, pa.int32())})
    assert passing(filters.reject_by_size(posts, want(**wanted)), len(SIZES)) == kept


def test_a_size_is_told_with_the_reason(want: Want) -> None:
    posts = pa.table({"width": pa.array([99], pa.int32()), "height": pa.array([300], pa.int32())})
    told = said(filters.reject_by_size(posts, want(min_side=100, max_aspect_ratio=3)))
    assert told == {"too small": ["99 x 300"], "aspect": ["99 x 300"]}


def tag_filter(p: params.FilterParams, *batches: list[list[str]]) -> list[Rejection]:
    """Return what is said of the last batch. The tags r... are ratings, c... characters."""
    known = Rules(
        known_tags=RATED | {"c1": (4, -1), "m1": (5, -1)},
        aliases={"alias": "c1"},
        implications={"dog": ("animal", "c1")},
    )
    lexicon = Lexicon(known)
    by_tags = TagFilter(lexicon, p)
    for batch in batches:
        labels = lexicon.labels({None: pa.array(batch, pa.list_(pa.string()))})
        verdicts = list(by_tags.rejections(labels))
    return verdicts


def test_a_post_without_tags_is_left_out(want: Want) -> None:
    assert said(tag_filter(want(), [["a"], [], [""]])) == {
        "no tags": [None, "none is left", "none is left"]
    }


def test_ratings_are_wanted_by_name_and_none_is_not_wanted(want: Want) -> None:
    posts = [["general", "a"], ["explicit", "a"], ["a"], ["sensitive"]]
    wanted = want(ratings=["general", "sensitive"])
    assert passing(tag_filter(wanted, posts), 4) == [0, 3]
    assert said(tag_filter(wanted, posts))["rating"][2] == "not general, sensitive"
    assert passing(tag_filter(want(ratings=[]), posts), 4) == []


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
WRITTEN = ["1girl", "long_hair", "red_hair", ":3", ":o", "[x]", "x", "*_*", "?", "x_(y)"]


@pytest.mark.parametrize(("glob", "matched"), GLOBS)
def test_globs_match_whole_tags_and_a_tag_is_matched_by_its_own_text(
    want: Want, glob: str, matched: list[str]
) -> None:
    posts = [[name] for name in WRITTEN]
    rows = sorted(WRITTEN.index(name) for name in matched)
    assert passing(tag_filter(want(required_tags=[glob]), posts), len(posts)) == rows
    others = [row for row in range(len(posts)) if row not in rows]
    assert passing(tag_filter(want(excluded_tags=[glob]), posts), len(posts)) == others


@pytest.mark.parametrize("name", WRITTEN)
def test_every_tag_can_be_named_as_it_is(want: Want, name: str) -> None:
    assert 0 in passing(tag_filter(want(required_tags=[name]), [[name]]), 1)


def test_all_required_and_no_excluded_tags_must_be_there(want: Want) -> None:
    posts = [["a", "b"], ["a"], ["b"], ["a", "b", "c"]]
    assert passing(tag_filter(want(required_tags=["a", "b"]), posts), 4) == [0, 3]
    assert passing(tag_filter(want(excluded_tags=["b", "c"]), posts), 4) == [1]
    both = want(required_tags=["a"], excluded_tags=["c"])
    assert said(tag_filter(both, posts)) == {
        "no tags": [None] * 4,
        "required tag": [None, None, "a", None],
        "excluded tag": [None, None, None, "c"],
    }


def test_tags_are_judged_after_aliases_and_implications(want: Want) -> None:
    posts = [["alias"], ["dog"], ["cat"]]
    assert passing(tag_filter(want(required_tags=["c1"]), posts), 3) == [0, 1]
    assert passing(tag_filter(want(excluded_tags=["animal"]), posts), 3) == [0, 2]
    assert passing(tag_filter(want(required_tags=["alias"]), posts), 3) == []


def test_only_general_tags_are_counted_and_those_implied_too(want: Want) -> None:
    posts = [["dog"], ["dog", "a"], ["a", "b", "c"], ["a", "c1", "m1", "explicit"], ["a", "a"]]
    wanted = want(min_tags=2)
    assert passing(tag_filter(wanted, posts), 5) == [0, 1, 2]
    assert said(tag_filter(wanted, posts))["few tags"][3:] == ["1 general tags"] * 2
    assert passing(tag_filter(want(min_tags=3), posts), 5) == [1, 2]


def test_tags_of_earlier_batches_are_judged_alike(want: Want) -> None:
    wanted = want(required_tags=["a*"], excluded_tags=["b"], min_tags=1)
    posts = [["ab"], ["ab", "b"], ["d"]]
    alone = said(tag_filter(wanted, posts))
    assert said(tag_filter(wanted, [["d"], ["b", "e"]], [], [["f"]], posts)) == alone


IDS = st.lists(st.text("0123456789é", min_size=1, max_size=6), unique=True, max_size=40)


@settings(max_examples=100)
@given(IDS, st.integers(0, 2**64), st.data())
def test_who_comes_first_does_not_hang_on_who_else_is_there(
    ids: list[str], seed: int, data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.sampled_from(ids), unique=True) if ids else st.just([]))
    cut = data.draw(st.integers(0, len(ids)))
    whole = pa.chunked_array([ids[:cut], ids[cut:]], pa.string())
    drawn = [ids[number] for number in sampling.random_order(whole, seed)]
    assert sorted(drawn) == sorted(ids)
    alone = [
        some[number]
        for number in sampling.random_order(pa.chunked_array([some], pa.string()), seed)
    ]
    assert alone == [one for one in drawn if one in some]


def test_the_seed_decides_who_comes_first() -> None:
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
def test_no_tag_is_above_the_cap_and_no_post_is_left_out_in_vain(
    drawn: tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], int],
) -> None:
    assert_capped(*drawn)


def assert_capped(labels: npt.NDArray[np.bool_], order: npt.NDArray[np.int64], cap: int) -> None:
    out = sampling.over_cap(csr_array(labels), order, cap)
    counts = labels[~out].sum(axis=0)
    assert out.shape == (len(labels),)
    assert (counts <= cap).all()
    for post in np.flatnonzero(out):
        assert (counts + labels[post] > cap).any()
    first = order[: min(cap, len(order))]
    assert not out[first].any()  # who comes first stays


def test_compiled_for_very_many_posts_the_cap_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_INTERPRETED", 0)
    random = np.random.default_rng(0)
    for posts in (0, 1, 200):
        assert_capped(random.random((posts, 9)) < 0.3, random.permutation(posts), 20)
