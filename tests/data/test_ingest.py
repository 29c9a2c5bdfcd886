"""Every post of a source is either ingested with normalized tags or rejected with a reason."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger import params
from tagger.core.vocabulary import RATINGS, Tag, sort_tags
from tagger.data import ingest, rejected, sampling
from tagger.data.posts import COLUMNS
from tagger.data.sources import PostBatch, Source
from tagger.data.tags.lexicon import Lexicon
from tagger.data.tags.rules import Rules

MakeFilters = Callable[..., params.FilterParams]

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
    """A source of posts in batches. It rejects posts of some ids itself."""

    batches: Sequence[Sequence[Post]]
    rejected_ids: Sequence[str] = ()

    def read(self, stop: threading.Event | None = None) -> Iterator[PostBatch]:
        rows = [(name, "no sidecar", "it is missing") for name in self.rejected_ids]
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
            names = rejected.SCHEMA.names
            dicts = [dict(zip(names, row, strict=True)) for row in rows]
            table = pa.Table.from_pylist(dicts, rejected.SCHEMA)
            yield PostBatch(pa.table(posts), {None: tags}, table)
            rows = []


def ingested(
    source: Posts, p: params.FilterParams, rules: Rules = RULES
) -> tuple[pa.Table, Lexicon, pa.Table]:
    """Return the posts of all steps before their images are located, and the rejected ones."""
    lexicon = Lexicon(rules)
    posts, unwanted = ingest.read_posts(source, lexicon, p)
    posts, duplicates = ingest.drop_duplicate_ids(posts)
    posts, over_cap = sampling.cap_posts_per_tag(posts, lexicon, p)
    posts, not_drawn = sampling.draw_sample(posts, p)
    return posts, lexicon, pa.concat_tables([unwanted, duplicates, over_cap, not_drawn])


def ids_of(posts: pa.Table) -> list[Any]:
    ids: list[Any] = posts["id"].to_pylist()
    return ids


def names_of(posts: pa.Table, names: Sequence[str]) -> list[set[str]]:
    lists = posts["tags"].to_pylist()
    assert all(len(set(numbers)) == len(numbers) for numbers in lists)
    return [{names[number] for number in numbers} for numbers in lists]


def normalized(post: Post) -> set[str]:
    """Return the expected tags of a post after RULES."""
    names = {RULES.aliases.get(name, name) for name in post.tags} - RULES.deprecated
    return names | {other for name in names for other in RULES.implications.get(name, ())}


def first_reason(post: Post, p: params.FilterParams) -> str | None:
    """Return the expected reason to reject a post, in the order of the filters."""
    tags = normalized(post)
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
    """Draw posts with distinct ids in batches, which may be empty."""
    count = draw(st.integers(0, 14))
    ids = draw(st.permutations([str(number) for number in range(count)]))
    any_post = st.builds(
        Post,
        id=st.none(),
        tags=st.lists(st.sampled_from(TAGS), max_size=4),
        score=st.none() | st.integers(-2, 2),
        side=st.none() | st.integers(50, 150),
        deleted=st.none() | st.booleans(),
    )
    posts = [draw(any_post)._replace(id=name) for name in ids]
    cuts = sorted(draw(st.lists(st.integers(0, count), min_size=1, max_size=3)))
    ends = zip([0, *cuts], [*cuts, count], strict=True)
    return Posts([posts[start:end] for start, end in ends], draw(st.sampled_from([(), ("x", "y")])))


FILTERS = st.fixed_dictionaries(
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
@given(source=sources(), changes=FILTERS)
def test_posts_are_ingested_or_rejected_with_the_first_reason(
    make_filters: MakeFilters, source: Posts, changes: dict[str, Any]
) -> None:
    p = make_filters(**changes)
    remaining, lexicon, rejected_posts = ingested(source, p)
    posts = [post for batch in source.batches for post in batch]
    reasons = {post.id: first_reason(post, p) for post in posts}
    assert ids_of(remaining) == [name for name, reason in reasons.items() if reason is None]
    tags = [normalized(post) for post in posts if reasons[post.id] is None]
    assert names_of(remaining, lexicon.names) == tags
    columns = rejected_posts.to_pydict()
    expected = {name: reason for name, reason in reasons.items() if reason}
    expected |= dict.fromkeys(source.rejected_ids, "no sidecar")
    assert dict(zip(columns["id"], columns["reason"], strict=True)) == expected


@settings(max_examples=80)
@given(
    source=sources(),
    changes=FILTERS,
    cap=st.none() | st.integers(1, 4),
    capped=st.lists(st.sampled_from(["general", "artist", "rating"]), unique=True),
    sample=st.none() | st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_post_is_ingested_or_rejected_exactly_once(
    make_filters: MakeFilters,
    source: Posts,
    changes: dict[str, Any],
    cap: int | None,
    capped: list[str],
    sample: int | None,
    seed: int,
) -> None:
    changes |= {
        "max_posts_per_tag": cap,
        "capped_categories": capped,
        "sample_size": sample,
        "seed": seed,
    }
    posts, lexicon, rejected_posts = ingested(source, make_filters(**changes))
    seen = [post.id for batch in source.batches for post in batch]
    both = ids_of(posts) + ids_of(rejected_posts)
    assert sorted(map(str, both)) == sorted([*map(str, seen), *source.rejected_ids])
    assert sum(rejected.count_reasons(rejected_posts).values()) == len(both) - len(posts)
    counts = ingest.count_labels(posts, len(lexicon))
    names = names_of(posts, lexicon.names)
    assert counts.tolist() == [sum(name in tags for tags in names) for name in lexicon.names]
    if sample:
        assert len(posts) <= sample
    categories = {"general": 0, "artist": 1, "rating": 9}
    for number in range(len(lexicon)):
        if cap and lexicon.category(number) in {categories[name] for name in capped}:
            assert counts[number] <= cap


def test_posts_keep_the_order_and_the_columns_of_the_source(make_filters: MakeFilters) -> None:
    source = Posts([[Post("2", ["a"], side=7)], [], [Post("1", ["a"], side=None)]])
    posts, _, _ = ingested(source, make_filters())
    assert ids_of(posts) == ["2", "1"]
    assert posts["width"].to_pylist() == [7, None]
    assert posts["parent"].to_pylist() == [None, None]
    types = {name: kind for name, kind in COLUMNS.items() if name in posts.column_names}
    assert {*COLUMNS} - {*types} == {"score", "deleted", "banned"}
    assert {name: posts.schema.field(name).type for name in types} == types


def test_posts_without_an_id_and_with_a_repeated_id_are_rejected(make_filters: MakeFilters) -> None:
    source = Posts(
        [
            [Post("1", ["a"]), Post(None, ["a"]), Post("2", ["b"]), Post("1", ["b"])],
            [Post("2", ["c"]), Post("3", ["c"]), Post(None, ["a"])],
        ]
    )
    posts, lexicon, rejected_posts = ingested(source, make_filters())
    assert ids_of(posts) == ["1", "2", "3"]
    assert names_of(posts, lexicon.names) == [{"a"}, {"b"}, {"c", "d", "e"}]
    assert ids_of(rejected_posts) == [None, None, "1", "2"]
    assert rejected.count_reasons(rejected_posts) == {"no id": 2, "duplicate id": 2}


def test_max_posts_per_tag_applies_to_capped_categories_only(make_filters: MakeFilters) -> None:
    source = Posts([[Post(str(n), ["a", "artist"] if n < 6 else ["a"]) for n in range(9)]])
    artists = make_filters(max_posts_per_tag=2, capped_categories=["artist"])
    posts, lexicon, rejected_posts = ingested(source, artists)
    assert sum("artist" in names for names in names_of(posts, lexicon.names)) == 2
    assert {"6", "7", "8"} < set(ids_of(posts))
    assert rejected.count_reasons(rejected_posts) == {"cap": 4}
    nothing = make_filters(max_posts_per_tag=2, capped_categories=[])
    assert len(ingested(source, nothing)[0]) == 9


def test_sample_is_drawn_from_posts_that_pass_the_other_filters(make_filters: MakeFilters) -> None:
    source = Posts([[Post(str(n), ["a"] if n % 2 else ["b"]) for n in range(20)]])
    p = make_filters(excluded_tags=["b"], sample_size=10)
    posts, _, rejected_posts = ingested(source, p)
    assert ids_of(posts) == [str(number) for number in range(1, 20, 2)]
    assert rejected.count_reasons(rejected_posts) == {"excluded tag": 10}


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 35), st.integers(0, 99), st.data())
def test_sample_has_its_size_and_changes_by_at_most_one_post_if_one_is_added(
    make_filters: MakeFilters, count: int, size: int, seed: int, data: st.DataObject
) -> None:
    ids = data.draw(st.permutations([str(number) for number in range(count + 1)]))
    more = pa.table({"id": ids})
    fewer = pa.table({"id": [name for name in ids if name != "0"]})
    p = make_filters(sample_size=size, seed=seed)

    def drawn(posts: pa.Table) -> set[str]:
        return set(ids_of(sampling.draw_sample(posts, p)[0]))

    assert len(drawn(fewer)) == min(size, count)
    assert drawn(fewer) == drawn(fewer.take(np.arange(count)[::-1]))
    assert len(drawn(more) & drawn(fewer)) >= min(size, count) - (size <= count)
    assert drawn(more) - drawn(fewer) <= {"0"}


def test_seed_decides_the_sample(make_filters: MakeFilters) -> None:
    source = Posts([[Post(str(number), ["a"]) for number in range(40)]])
    drawn = [
        ids_of(ingested(source, make_filters(sample_size=9, seed=seed))[0]) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_used_tags_are_in_vocabulary_order_with_ids(make_filters: MakeFilters) -> None:
    known_tags = {"artist": (1, 77), "general": (9, 9_999_999), "miku": (4, 5), "meta": (5, -1)}
    batches = [
        [Post("1", ["z", "y", "general", "artist"]), Post("2", ["z", "x", "general", "miku"])],
        [Post("3", ["meta", "y", "z", "general"]), Post("4", ["excluded"])],
    ]
    p = make_filters(excluded_tags=["excluded"])
    posts, lexicon, _ = ingested(Posts(batches), p, Rules(known_tags=known_tags))
    _, tags = ingest.renumber(posts, lexicon)
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
@given(source=sources(), changes=FILTERS)
def test_renumbered_tags_are_the_same_tags(
    make_filters: MakeFilters, source: Posts, changes: dict[str, Any]
) -> None:
    posts, lexicon, _ = ingested(source, make_filters(**changes))
    renumbered, tags = ingest.renumber(posts, lexicon)
    assert tags == sort_tags(tags)
    assert len({tag.tag_id for tag in tags if tag.tag_id < 0}) == sum(t.tag_id < 0 for t in tags)
    names = names_of(posts, lexicon.names)
    assert names_of(renumbered, [tag.name for tag in tags]) == names
    assert renumbered.drop_columns("tags") == posts.drop_columns("tags")
    assert renumbered.schema.field("tags").type == pa.list_(pa.int32())
    counts = Counter(name for tags_of_post in names for name in tags_of_post)
    assert {tag.name: tag.count for tag in tags} == counts
