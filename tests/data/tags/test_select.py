"""A tag is learnt, or left out for one reason, whatever the order in which tags come."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger import params
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, UNKNOWN, Tag, sort_tags
from tagger.data.tags import select
from tagger.data.tags.select import CATEGORY, COUNT, EXCLUDED, MAXIMUM, NOT_LISTED, Selection

Listed = Mapping[str, Tag]
CODES = {name: code for code, name in CATEGORIES.items()}
WANTS_ALL: dict[str, Any] = {
    "source": "data/tags.parquet",
    "min_count": 0,
    "min_counts": {},
    "categories": list(CODES),
    "max_tags": None,
    "max_tags_of": {},
    "include": [],
    "exclude": [],
}
KAOMOJI = [":3", ";)", "^_^", ">_<", "[x]", "*_*", "(?)", "!", "[", "]", "[!a]", "\\o/", "=_="]
AWKWARD = [*KAOMOJI, "null", "nan", "true", "1", "1e5", 'don\'t_say_"lazy"', "a,b", "é", "初音"]


def want(**wanted: Any) -> params.VocabularyParams:
    """Return parameters that want every tag, but for those named."""
    return params.VocabularyParams.model_validate(WANTS_ALL | wanted)


def tags(**counts: dict[str, int]) -> list[Tag]:
    """Return tags by category, name and count; `general={"a": 3}`."""
    of_all = [(CODES[code], *item) for code, names in counts.items() for item in names.items()]  # type: ignore[index]
    return [Tag(row, name, code, count) for row, (code, name, count) in enumerate(of_all, 1)]


def kept(seen: Sequence[Tag], listed: Listed | None = None, **wanted: Any) -> list[str]:
    return [tag.name for tag in select.select_tags(seen, want(**wanted), listed).kept]


def dropped(seen: Sequence[Tag], listed: Listed | None = None, **wanted: Any) -> dict[str, str]:
    found = select.select_tags(seen, want(**wanted), listed)
    return {tag.name: reason for tag, reason in found.dropped}


def naming(*names: str, count: int = UNKNOWN) -> dict[str, Tag]:
    """Return a list that gives names, or names and a count."""
    return {name: Tag(UNKNOWN, name, UNKNOWN, count) for name in names}


SEEN = tags(
    rating={"safe": 9},
    general={"a": 9, "b": 5, "c": 4, "d": 4, "e": 1},
    artist={"x": 4, "y": 3, "z": 2},
)


LIMITS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "safe a b c d e x y z", ""),
    ({"min_count": 4}, "safe a b c d x", COUNT),
    ({"min_count": 4, "min_counts": {"artist": 3, "general": 5}}, "safe a b x y", COUNT),
    ({"categories": ["artist", "rating"]}, "safe x y z", CATEGORY),
    ({"exclude": ["[a-d]", "x"]}, "safe e y z", EXCLUDED),
    ({"max_tags": 1}, "a", MAXIMUM),
    ({"max_tags": 4}, "safe a b c", MAXIMUM),  # c, d and x are on as many posts
    ({"max_tags_of": {"general": 3}}, "safe a b c x y z", MAXIMUM),
    ({"max_tags_of": {"general": 0, "artist": 1}}, "safe x", MAXIMUM),
    ({"max_tags_of": {"general": 1}, "max_tags": 3}, "safe a x", MAXIMUM),
]


@pytest.mark.parametrize(("wanted", "names", "why"), LIMITS)
def test_what_is_within_a_limit_stays(wanted: dict[str, Any], names: str, why: str) -> None:
    assert kept(SEEN, **wanted) == names.split()
    left_out = [tag.name for tag in SEEN if tag.name not in names.split()]
    assert dropped(SEEN, **wanted) == dict.fromkeys(left_out, why)


AGAINST = [
    {"min_count": 3},
    {"min_counts": {"artist": 3}},
    {"categories": ["general"]},
    {"exclude": ["z"]},
    {"max_tags": 1},
    {"max_tags_of": {"artist": 0}},
    {"listed": naming("a")},
    {"listed": naming("a", "z", count=1), "min_count": 2},
]


@pytest.mark.parametrize("against", AGAINST)
def test_a_tag_included_stays_whatever_the_rest_says(against: dict[str, Any]) -> None:
    assert "z" in dropped(SEEN, **against, include=["a"])
    assert "z" in kept(SEEN, **against, include=["z"])


PLACES = [
    ({"include": ["z"], "max_tags": 3}, "safe a z"),
    ({"include": ["z"], "max_tags_of": {"artist": 2, "general": 0}}, "safe x z"),
    ({"include": ["z"], "max_tags_of": {"artist": 1}, "max_tags": 3}, "safe a z"),
    ({"include": ["z"], "max_tags_of": {"artist": 0}, "max_tags": 3}, "safe a z"),
    ({"include": ["x", "y", "z"], "max_tags": 2}, "x y z"),
]


@pytest.mark.parametrize(("wanted", "names"), PLACES)
def test_a_tag_included_takes_a_place_in_the_maximum(wanted: dict[str, Any], names: str) -> None:
    assert kept(SEEN, **wanted) == names.split()


def test_globs_exclude_and_those_that_match_nothing_are_told() -> None:
    seen = tags(general={"red_hair": 9, "hair": 8, "hat_(cosplay)": 7, "gone_hat": 0})
    p = want(exclude=["*_hair", "gone*"], include=["hat*", "hai", "h??r"])
    found = select.select_tags(seen, p)
    assert found.kept == seen[1:3]
    assert [(tag.name, reason) for tag, reason in found.dropped] == [("red_hair", EXCLUDED)]
    assert found.unmatched_globs == ["hai", "gone*"]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_tag_can_be_named_as_it_is(name: str) -> None:
    seen = tags(general={"other": 9, name: 1})
    assert name in kept(seen, min_count=5, include=[name])
    assert dropped(seen, exclude=[name]) == {name: EXCLUDED}
    assert kept(seen, naming(name)) == [name]


@pytest.mark.parametrize("spelled", ["Long Hair", "long_hair", " LONG  HAIR ", "Long H*"])
def test_globs_are_spelled_as_people_spell(spelled: str) -> None:
    seen = tags(general={"long_hair": 1, "short_hair": 1})
    assert dropped(seen, exclude=[spelled]) == {"long_hair": EXCLUDED}


def test_a_tag_on_no_post_is_never_kept() -> None:
    seen = tags(general={"a": 1, "gone": 0})
    for wanted in ({}, {"include": ["gone"]}, {"listed": naming("a", "gone")}):
        assert kept(seen, **wanted) == ["a"]


def test_where_no_tag_is_left_the_reasons_are_told_in_one_line() -> None:
    with pytest.raises(TaggerError) as told:
        kept(SEEN, categories=["general", "rating"], exclude=["safe", "a"], min_count=6)
    assert str(told.value) == (
        "No tag is left of 9 (4 too rare, 3 category, 2 excluded); the most common one is on "
        "9 posts. Loosen the limits under vocabulary, or bring more pictures."
    )
    with pytest.raises(TaggerError, match=r"^No tag is left of 0 \(there was none\)"):
        kept(tags(general={"gone": 0}))


GLOBS = {  # and the names they match
    "*": {"a", "ab", "[a]", "*", "null", "z"},
    "A*": {"a", "ab"},
    "?": {"a", "*", "z"},
    "[a]": {"a", "[a]"},
    "z": {"z"},
    "b": set(),
}
Case = tuple[list[Tag], params.VocabularyParams, dict[str, Tag] | None]


def drawn_tags(names: Sequence[str], least: int = 0) -> st.SearchStrategy[list[Tag]]:
    numbers, codes = st.integers(least, 5), st.sampled_from([9, 0, min(least, 0)])
    tag = st.builds(Tag, numbers, st.sampled_from(names), codes, numbers)
    return st.lists(tag, min_size=3, unique_by=lambda tag: tag.name)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw tags, what is wanted of them, and a list or none. The tag z is always included."""
    amounts, globs = st.integers(0, 3), st.lists(st.sampled_from([*GLOBS]), max_size=1)
    codes = st.sampled_from(["rating", "general"])
    of_category = st.dictionaries(codes, amounts)
    seen = [*draw(drawn_tags(sorted(GLOBS["*"] - {"z"}))), Tag(1, "z", 0, 1 + draw(amounts))]
    p = want(
        min_count=draw(amounts),
        min_counts=draw(of_category),
        categories=draw(st.lists(codes, min_size=1)),
        max_tags=draw(st.none() | st.integers(1, 3)),
        max_tags_of=draw(of_category),
        include=["z", *draw(globs)],
        exclude=draw(globs),
    )
    listed = draw(st.none() | drawn_tags([*sorted(GLOBS["*"]), "unknown"], UNKNOWN))
    return seen, p, None if listed is None else {tag.name: tag for tag in listed}


def matched(tag: Tag, globs: Sequence[str]) -> bool:
    return any(tag.name in GLOBS[glob] for glob in globs)


def reason(tag: Tag, found: Selection, p: params.VocabularyParams, listed: Listed | None) -> str:
    """Return the first reason that keeps a tag out, or nothing: the rules, one by one."""
    category = CATEGORIES[tag.category]
    count = tag.count if listed is None else listed.get(tag.name, tag).count
    before = [
        one.category
        for one in found.kept
        if matched(one, p.include) or (-one.count, one.name) < (-tag.count, tag.name)
    ]
    of_category = p.max_tags_of.get(category, len(before) + 1)
    holds = {
        NOT_LISTED: listed is not None and tag.name not in listed,
        CATEGORY: category not in p.categories,
        EXCLUDED: matched(tag, p.exclude),
        COUNT: UNKNOWN != count < p.min_counts.get(category, p.min_count),
        MAXIMUM: before.count(tag.category) >= of_category
        or len(before) >= (p.max_tags or len(before) + 1),
    }
    return "" if matched(tag, p.include) else next((why for why in holds if holds[why]), "")


@settings(max_examples=300)
@given(cases())
def test_every_tag_is_kept_or_has_the_first_reason_that_holds(case: Case) -> None:
    seen, p, listed = case
    found = select.select_tags(seen, p, listed)
    told = [*((tag, "") for tag in found.kept), *found.dropped]
    assert sorted(tag.name for tag, _ in told) == sorted(tag.name for tag in seen if tag.count)
    assert told == [(tag, reason(tag, found, p, listed)) for tag, _ in told]


@settings(max_examples=200)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(case: Case, random: Random) -> None:
    seen, p, listed = case
    found = select.select_tags(seen, p, listed)
    assert found.kept == sort_tags(found.kept)
    assert [tag for tag, _ in found.dropped] == sort_tags(tag for tag, _ in found.dropped)
    assert select.select_tags(random.sample(seen, len(seen)), p, listed) == found


@settings(max_examples=200)
@given(cases(), st.sampled_from([9, 0]), st.integers(1, 5))
def test_a_new_tag_moves_no_other_and_displaces_one_at_most(
    case: Case, category: int, count: int
) -> None:
    seen, p, listed = case
    before = select.select_tags(seen, p, listed).kept
    after = select.select_tags([Tag(0, "ac", category, count), *seen], p, listed).kept
    rest = [tag for tag in after if tag.name != "ac"]
    assert rest == [tag for tag in before if tag in rest]
    assert len(before) - len(rest) <= (len(after) > len(rest))
