"""Every tag is selected, or dropped for one reason, whatever the order of the tags."""

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
SELECT_ALL: dict[str, Any] = {
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


def make_params(**changes: Any) -> params.VocabularyParams:
    """Return parameters that select every tag, with changes."""
    return params.VocabularyParams.model_validate(SELECT_ALL | changes)


def tags(**counts: dict[str, int]) -> list[Tag]:
    """Return tags by category, name and count; `general={"a": 3}`."""
    rows = [(CODES[code], *item) for code, names in counts.items() for item in names.items()]  # type: ignore[index]
    return [Tag(row, name, code, count) for row, (code, name, count) in enumerate(rows, 1)]


def kept(seen: Sequence[Tag], listed: Listed | None = None, **changes: Any) -> list[str]:
    return [tag.name for tag in select.select_tags(seen, make_params(**changes), listed).kept]


def dropped(seen: Sequence[Tag], listed: Listed | None = None, **changes: Any) -> dict[str, str]:
    selection = select.select_tags(seen, make_params(**changes), listed)
    return {tag.name: reason for tag, reason in selection.dropped}


def listing(*names: str, count: int = UNKNOWN) -> dict[str, Tag]:
    """Return a list of tags with a name, and perhaps a count."""
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


@pytest.mark.parametrize(("changes", "names", "reason"), LIMITS)
def test_limits_keep_tags_within_and_drop_the_others(
    changes: dict[str, Any], names: str, reason: str
) -> None:
    assert kept(SEEN, **changes) == names.split()
    others = [tag.name for tag in SEEN if tag.name not in names.split()]
    assert dropped(SEEN, **changes) == dict.fromkeys(others, reason)


DROPPING_Z = [
    {"min_count": 3},
    {"min_counts": {"artist": 3}},
    {"categories": ["general"]},
    {"exclude": ["z"]},
    {"max_tags": 1},
    {"max_tags_of": {"artist": 0}},
    {"listed": listing("a")},
    {"listed": listing("a", "z", count=1), "min_count": 2},
]


@pytest.mark.parametrize("changes", DROPPING_Z)
def test_included_tags_are_kept_whatever_else_would_drop_them(changes: dict[str, Any]) -> None:
    assert "z" in dropped(SEEN, **changes, include=["a"])
    assert "z" in kept(SEEN, **changes, include=["z"])


INCLUDED_IN_MAXIMUM = [
    ({"include": ["z"], "max_tags": 3}, "safe a z"),
    ({"include": ["z"], "max_tags_of": {"artist": 2, "general": 0}}, "safe x z"),
    ({"include": ["z"], "max_tags_of": {"artist": 1}, "max_tags": 3}, "safe a z"),
    ({"include": ["z"], "max_tags_of": {"artist": 0}, "max_tags": 3}, "safe a z"),
    ({"include": ["x", "y", "z"], "max_tags": 2}, "x y z"),
]


@pytest.mark.parametrize(("changes", "names"), INCLUDED_IN_MAXIMUM)
def test_included_tags_count_toward_the_maximum(changes: dict[str, Any], names: str) -> None:
    assert kept(SEEN, **changes) == names.split()


def test_globs_match_and_unmatched_globs_are_listed() -> None:
    seen = tags(general={"red_hair": 9, "hair": 8, "hat_(cosplay)": 7, "gone_hat": 0})
    p = make_params(exclude=["*_hair", "gone*"], include=["hat*", "hai", "h??r"])
    selection = select.select_tags(seen, p)
    assert selection.kept == seen[1:3]
    assert [(tag.name, reason) for tag, reason in selection.dropped] == [("red_hair", EXCLUDED)]
    assert selection.unmatched_globs == ["hai", "gone*"]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_tag_matches_its_own_name(name: str) -> None:
    seen = tags(general={"other": 9, name: 1})
    assert name in kept(seen, min_count=5, include=[name])
    assert dropped(seen, exclude=[name]) == {name: EXCLUDED}
    assert kept(seen, listing(name)) == [name]


@pytest.mark.parametrize("spelled", ["Long Hair", "long_hair", " LONG  HAIR ", "Long H*"])
def test_globs_are_normalized_like_tags(spelled: str) -> None:
    seen = tags(general={"long_hair": 1, "short_hair": 1})
    assert dropped(seen, exclude=[spelled]) == {"long_hair": EXCLUDED}


def test_tags_on_no_post_are_never_kept() -> None:
    seen = tags(general={"a": 1, "gone": 0})
    for changes in ({}, {"include": ["gone"]}, {"listed": listing("a", "gone")}):
        assert kept(seen, **changes) == ["a"]


def test_dropping_every_tag_is_an_error_with_the_reasons() -> None:
    with pytest.raises(TaggerError) as error:
        kept(SEEN, categories=["general", "rating"], exclude=["safe", "a"], min_count=6)
    assert str(error.value) == (
        "No tag remains of 9 (4 too rare, 3 category, 2 excluded). The most frequent one is on "
        "9 posts. Loosen the limits under vocabulary, or add images."
    )
    with pytest.raises(TaggerError, match=r"^No tag remains of 0 \(there was none\)"):
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
    """Draw tags, parameters, and perhaps a list. The tag z is always included."""
    amounts, globs = st.integers(0, 3), st.lists(st.sampled_from([*GLOBS]), max_size=1)
    codes = st.sampled_from(["rating", "general"])
    of_category = st.dictionaries(codes, amounts)
    seen = [*draw(drawn_tags(sorted(GLOBS["*"] - {"z"}))), Tag(1, "z", 0, 1 + draw(amounts))]
    p = make_params(
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


def matches_any(tag: Tag, globs: Sequence[str]) -> bool:
    return any(tag.name in GLOBS[glob] for glob in globs)


def expected_reason(
    tag: Tag, selection: Selection, p: params.VocabularyParams, listed: Listed | None
) -> str:
    """Return the first reason to drop a tag, empty if there is none."""
    category = CATEGORIES[tag.category]
    count = tag.count if listed is None else listed.get(tag.name, tag).count
    before = [
        other.category
        for other in selection.kept
        if matches_any(other, p.include) or (-other.count, other.name) < (-tag.count, tag.name)
    ]
    of_category = p.max_tags_of.get(category, len(before) + 1)
    applies = {
        NOT_LISTED: listed is not None and tag.name not in listed,
        CATEGORY: category not in p.categories,
        EXCLUDED: matches_any(tag, p.exclude),
        COUNT: UNKNOWN != count < p.min_counts.get(category, p.min_count),
        MAXIMUM: before.count(tag.category) >= of_category
        or len(before) >= (p.max_tags or len(before) + 1),
    }
    return (
        ""
        if matches_any(tag, p.include)
        else next((reason for reason in applies if applies[reason]), "")
    )


@settings(max_examples=150)
@given(cases())
def test_every_tag_is_kept_or_has_the_first_reason_that_applies(case: Case) -> None:
    seen, p, listed = case
    selection = select.select_tags(seen, p, listed)
    outcomes = [*((tag, "") for tag in selection.kept), *selection.dropped]
    assert sorted(tag.name for tag, _ in outcomes) == sorted(tag.name for tag in seen if tag.count)
    assert outcomes == [(tag, expected_reason(tag, selection, p, listed)) for tag, _ in outcomes]


@settings(max_examples=100)
@given(cases(), st.randoms(use_true_random=False))
def test_selection_does_not_depend_on_the_order_of_tags(case: Case, random: Random) -> None:
    seen, p, listed = case
    selection = select.select_tags(seen, p, listed)
    assert selection.kept == sort_tags(selection.kept)
    assert [tag for tag, _ in selection.dropped] == sort_tags(tag for tag, _ in selection.dropped)
    assert select.select_tags(random.sample(seen, len(seen)), p, listed) == selection


@settings(max_examples=100)
@given(cases(), st.sampled_from([9, 0]), st.integers(1, 5))
def test_a_new_tag_keeps_the_order_and_displaces_at_most_one_tag(
    case: Case, category: int, count: int
) -> None:
    seen, p, listed = case
    before = select.select_tags(seen, p, listed).kept
    after = select.select_tags([Tag(0, "ac", category, count), *seen], p, listed).kept
    rest = [tag for tag in after if tag.name != "ac"]
    assert rest == [tag for tag in before if tag in rest]
    assert len(before) - len(rest) <= (len(after) > len(rest))
