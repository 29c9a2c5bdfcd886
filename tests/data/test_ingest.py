"""Every post of a source is either taken, its tags put right, or left out with the first reason."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger import params
from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import RATINGS, Tag, sort_tags
from tagger.data import ingest
from tagger.data.rejected import RejectedPosts
from tagger.data.sources import COLUMNS, REJECTED, PostBatch, Source
from tagger.data.tags.lexicon import Lexicon
from tagger.data.tags.rules import Rules
from tagger.params import Params

Want = Callable[..., params.FilterParams]

TAGS = ["a", "b", "c", "d", "general", "explicit", "artist", "gone", "alias"]
RULES = Rules(
    known_tags={"artist": (1, 77), "b": (0, 5), **dict.fromkeys(RATINGS, (9, 1))},
    aliases={"alias": "b"},
    implications={"c": ("d", "e")},
    deprecated=frozenset({"gone"}),
)


class Post(NamedTuple):
    id: str | None
    tags: Sequence[str]
    score: int | None = 0
    side: int | None = 100  # pixels, of the width; the height is 100
    deleted: bool | None = False


@dataclass(frozen=True)
class Posts(Source):
    """A source of posts in batches, some of them left out by the source itself."""

    batches: Sequence[Sequence[Post]]
    refused: Sequence[str] = ()

    def read(self) -> Iterator[PostBatch]:
        refused = [(name, "no sidecar", "it is not there") for name in self.refused]
        for batch in self.batches:
            columns: dict[str, list[Any]] = {
                "id": [post.id for post in batch],
                "score": [post.score for post in batch],
                "width": [post.side for post in batch],
                "height": [100 for _ in batch],
                "deleted": [post.deleted for post in batch],
            }
            posts = {name: pa.array(values, COLUMNS[name]) for name, values in columns.items()}
            tags = pa.array([list(post.tags) for post in batch], pa.list_(pa.string()))
            left_out = [dict(zip(REJECTED.names, row, strict=True)) for row in refused]
            yield PostBatch(pa.table(posts), {None: tags}, pa.Table.from_pylist(left_out, REJECTED))
            refused = []


@pytest.fixture(scope="module")
def want(default_params: Params) -> Want:
    """The filters as shipped, which want all, but for those named."""

    def want(**wanted: Any) -> params.FilterParams:
        return params.FilterParams.model_validate(
            default_params.prepare.filters.model_dump() | wanted
        )

    return want


def taken(
    source: Posts, p: params.FilterParams, known: Rules = RULES
) -> tuple[pa.Table, Lexicon, RejectedPosts]:
    lexicon, left_out = Lexicon(known), RejectedPosts()
    found = ingest.read_posts(source, lexicon, p, left_out)
    return ingest.choose(found, lexicon, p, left_out), lexicon, left_out


def posts_of(*ids: str | None, tags: Sequence[str] = ("a",)) -> Posts:
    return Posts([[Post(one, tags) for one in ids]])


def ids_of(found: pa.Table) -> list[Any]:
    ids: list[Any] = found["id"].to_pylist()
    return ids


def names_of(found: pa.Table, names: Sequence[str]) -> list[set[str]]:
    lists = found["tags"].to_pylist()
    assert all(len(set(numbers)) == len(numbers) for numbers in lists)
    return [{names[number] for number in numbers} for numbers in lists]


def put_right(post: Post) -> set[str]:
    """Return the tags of a post after RULES, by hand."""
    named = {RULES.aliases.get(name, name) for name in post.tags} - RULES.deprecated
    return named | {other for name in named for other in RULES.implications.get(name, ())}


def first_reason(post: Post, p: params.FilterParams) -> str | None:
    """Return why a post is left out, by hand, in the order of params.Filters."""
    tags = put_right(post)
    low = p.min_score is not None and (post.score is None or post.score < p.min_score)
    reasons = {
        "score": low,
        "deleted": bool(post.deleted) and not p.keep_deleted,
        "no tags": not tags,
        "rating": p.ratings is not None and not tags & set(p.ratings),
        "required tag": not set(p.required_tags) <= tags,
        "excluded tag": bool(set(p.excluded_tags) & tags),
        "few tags": len(tags - {*RATINGS, "artist"}) < p.min_tags,
        "too small": post.side is not None and min(post.side, 100) < p.min_side,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@st.composite
def sources(draw: st.DrawFn) -> Posts:
    """Draw posts with an id of their own each, in batches, one of which may be empty."""
    count = draw(st.integers(0, 14))
    ids = draw(st.permutations([str(number) for number in range(count)]))
    one = st.builds(
        Post,
        id=st.none(),
        tags=st.lists(st.sampled_from(TAGS), max_size=4),
        score=st.none() | st.integers(-2, 2),
        side=st.none() | st.integers(50, 150),
        deleted=st.none() | st.booleans(),
    )
    posts = [draw(one)._replace(id=name) for name in ids]
    cuts = sorted(draw(st.lists(st.integers(0, count), min_size=1, max_size=3)))
    ends = zip([0, *cuts], [*cuts, count], strict=True)
    return Posts([posts[start:end] for start, end in ends], draw(st.sampled_from([(), ("x", "y")])))


WANTED = st.fixed_dictionaries(
    {},
    optional={
        "min_score": st.integers(-2, 1),
        "keep_deleted": st.booleans(),
        "ratings": st.lists(st.sampled_from(["general", "explicit"]), unique=True),
        "required_tags": st.lists(st.sampled_from(TAGS[:4]), max_size=1),
        "excluded_tags": st.lists(st.sampled_from(TAGS[:4]), max_size=2),
        "min_tags": st.integers(0, 3),
        "min_side": st.integers(0, 120),
    },
)


@settings(max_examples=80)
@given(source=sources(), wanted=WANTED)
def test_what_is_taken_and_why_the_rest_is_not_is_as_by_hand(
    want: Want, source: Posts, wanted: dict[str, Any]
) -> None:
    p = want(**wanted)
    found, lexicon, left_out = taken(source, p)
    posts = [post for batch in source.batches for post in batch]
    reasons = {post.id: first_reason(post, p) for post in posts}
    assert ids_of(found) == [name for name, reason in reasons.items() if reason is None]
    kept = [put_right(post) for post in posts if reasons[post.id] is None]
    assert names_of(found, lexicon.names) == kept
    given_up = left_out.table().to_pydict()
    given_reasons = dict(zip(given_up["id"], given_up["reason"], strict=True))
    expected = {name: reason for name, reason in reasons.items() if reason}
    assert given_reasons == expected | dict.fromkeys(source.refused, "no sidecar")


@settings(max_examples=80)
@given(
    source=sources(),
    wanted=WANTED,
    cap=st.none() | st.integers(1, 4),
    capped=st.lists(st.sampled_from(["general", "artist", "rating"]), unique=True),
    sample=st.none() | st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_post_is_once_either_taken_or_left_out(
    want: Want,
    source: Posts,
    wanted: dict[str, Any],
    cap: int | None,
    capped: list[str],
    sample: int | None,
    seed: int,
) -> None:
    chosen = {
        "max_posts_per_tag": cap,
        "capped_categories": capped,
        "sample_size": sample,
        "seed": seed,
    }
    found, lexicon, left_out = taken(source, want(**wanted, **chosen))
    seen = [post.id for batch in source.batches for post in batch]
    both = ids_of(found) + left_out.table()["id"].to_pylist()
    assert sorted(map(str, both)) == sorted([*map(str, seen), *source.refused])
    assert len(left_out) == sum(left_out.counts().values()) == len(both) - len(found)
    counts = ingest.count_labels(found, len(lexicon))
    assert counts.tolist() == [
        sum(name in names for names in names_of(found, lexicon.names)) for name in lexicon.names
    ]
    if sample:
        assert len(found) <= sample
    categories = {"general": 0, "artist": 1, "rating": 9}
    for number in range(len(lexicon)):
        if cap and lexicon.category(number) in {categories[name] for name in capped}:
            assert counts[number] <= cap


def test_the_source_is_read_in_its_order_with_the_columns_that_it_knows(want: Want) -> None:
    source = Posts([[Post("2", ["a"], side=7)], [], [Post("1", ["a"], side=None)]])
    found, _, _ = taken(source, want())
    assert ids_of(found) == ["2", "1"]
    assert found["width"].to_pylist() == [7, None]
    assert found["parent"].to_pylist() == [None, None]
    assert {name: found.schema.field(name).type for name in ingest.KEPT} == {
        name: COLUMNS[name] for name in ingest.KEPT
    }


def test_of_posts_with_one_id_the_first_is_taken_and_without_an_id_none(want: Want) -> None:
    source = Posts(
        [
            [Post("1", ["a"]), Post(None, ["a"]), Post("2", ["b"]), Post("1", ["b"])],
            [Post("2", ["c"]), Post("3", ["c"]), Post(None, ["a"])],
        ]
    )
    found, lexicon, left_out = taken(source, want())
    assert ids_of(found) == ["1", "2", "3"]
    assert names_of(found, lexicon.names) == [{"a"}, {"b"}, {"c", "d", "e"}]
    assert left_out.table()["id"].to_pylist() == [None, None, "1", "2"]
    assert left_out.counts() == {"no id": 2, "duplicate id": 2}


def test_only_the_categories_named_are_capped(want: Want) -> None:
    posts = [Post(str(number), ["a", "artist"] if number < 6 else ["a"]) for number in range(9)]
    artists = want(max_posts_per_tag=2, capped_categories=["artist"])
    found, lexicon, left_out = taken(Posts([posts]), artists)
    assert sum("artist" in names for names in names_of(found, lexicon.names)) == 2
    assert {str(number) for number in (6, 7, 8)} < set(ids_of(found))
    assert left_out.counts() == {"cap": 4}
    nothing = want(max_posts_per_tag=2, capped_categories=[])
    assert len(taken(Posts([posts]), nothing)[0]) == 9


def test_a_sample_is_drawn_from_what_passes_the_rest(want: Want) -> None:
    posts = [Post(str(number), ["a"] if number % 2 else ["b"]) for number in range(20)]
    found, _, left_out = taken(Posts([posts]), want(excluded_tags=["b"], sample_size=10))
    assert ids_of(found) == [str(number) for number in range(1, 20, 2)]
    assert left_out.counts() == {"excluded tag": 10}


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 35), st.integers(0, 99), st.data())
def test_a_sample_has_its_size_and_changes_by_one_post_where_one_is_added(
    posts: int, size: int, seed: int, data: st.DataObject
) -> None:
    ids = data.draw(st.permutations([str(number) for number in range(posts + 1)]))
    more = pa.table({"id": ids})
    fewer = pa.table({"id": [name for name in ids if name != "0"]})

    def drawn(table: pa.Table) -> set[str]:
        out = ingest.beyond_sample(table, size, seed).rejected
        return set(table.filter(pa.array(~out))["id"].to_pylist())

    assert len(drawn(fewer)) == min(size, posts)
    assert drawn(fewer) == drawn(fewer.take(np.arange(posts)[::-1]))
    assert len(drawn(more) & drawn(fewer)) >= min(size, posts) - (size <= posts)
    assert drawn(more) - drawn(fewer) <= {"0"}


def test_the_seed_decides_the_sample(want: Want) -> None:
    source = posts_of(*map(str, range(40)))
    drawn = [ids_of(taken(source, want(sample_size=9, seed=seed))[0]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_where_all_are_left_out_the_reasons_are_told_in_one_line_and_listed(
    want: Want, tmp_path: Path
) -> None:
    source = Posts([[Post("1", ["a"], score=-1), Post("2", ["gone"]), Post("3", [])]])
    found, _, left_out = taken(source, want(min_score=0, max_posts_per_tag=1, sample_size=3))
    with pytest.raises(
        TaggerError, match=r"^No post is left to use \(2 no tags, 1 score\): see \S+/left\.csv\.$"
    ) as raised:
        ingest.require(found, left_out, tmp_path / "left.csv")
    assert "\n" not in str(raised.value)
    rows = files.read_csv(tmp_path / "left.csv")
    assert sorted(row["id"] for row in rows) == ["1", "2", "3"]


def test_a_source_without_posts_is_told_too(want: Want, tmp_path: Path) -> None:
    found, _, left_out = taken(Posts([]), want(max_posts_per_tag=1, sample_size=3))
    with pytest.raises(TaggerError, match=r"^No post is left to use \(there was none\): see "):
        ingest.require(found, left_out, tmp_path / "left.csv")


def test_some_posts_are_passed_on(want: Want, tmp_path: Path) -> None:
    found, _, left_out = taken(posts_of("1"), want())
    assert ingest.require(found, left_out, tmp_path / "left.csv") is found


def test_tags_come_by_category_then_count_then_name_with_ids(want: Want) -> None:
    known = {"artist": (1, 77), "general": (9, 9_999_999), "miku": (4, 5), "meta": (5, -1)}
    batches = [
        [Post("1", ["z", "y", "general", "artist"]), Post("2", ["z", "x", "general", "miku"])],
        [Post("3", ["meta", "y", "z", "general"]), Post("4", ["unwanted"])],
    ]
    found, lexicon, _ = taken(
        Posts(batches), want(excluded_tags=["unwanted"]), Rules(known_tags=known)
    )
    tags = ingest.used_tags(lexicon, ingest.count_labels(found, len(lexicon)))
    assert tags == [
        Tag(9_999_999, "general", 9, 3),
        Tag(-2, "z", 0, 3),
        Tag(-3, "y", 0, 2),
        Tag(-4, "x", 0, 1),
        Tag(5, "miku", 4, 1),
        Tag(77, "artist", 1, 1),
        Tag(-7, "meta", 5, 1),
    ]


@settings(max_examples=40)
@given(source=sources(), wanted=WANTED)
def test_renumbered_tags_are_the_same_tags(
    want: Want, source: Posts, wanted: dict[str, Any]
) -> None:
    found, lexicon, _ = taken(source, want(**wanted))
    tags = ingest.used_tags(lexicon, ingest.count_labels(found, len(lexicon)))
    assert tags == sort_tags(tags)
    assert len({tag.tag_id for tag in tags if tag.tag_id < 0}) == sum(t.tag_id < 0 for t in tags)
    renumbered = ingest.renumber(found, lexicon, tags)
    before = names_of(found, lexicon.names)
    assert names_of(renumbered, [tag.name for tag in tags]) == before
    assert renumbered.drop_columns("tags") == found.drop_columns("tags")
    assert renumbered.schema.field("tags").type == pa.list_(pa.int32())
    counts = Counter(name for names in before for name in names)
    assert {tag.name: tag.count for tag in tags} == counts
