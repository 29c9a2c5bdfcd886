"""How tags are written for prompts and captions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagger.inference import tag_format
from tagger.inference.tag_format import TagFormat


@pytest.mark.parametrize(
    ("tag", "spaced"),
    [
        ("long_hair", "long hair"),
        ("saber_(fate)", "saber (fate)"),
        ("^_^", "^_^"),
        (">_<", ">_<"),
        ("o_o", "o_o"),
        ("3_3", "3_3"),
        ("<|>_<|>", "<|>_<|>"),
        ("(o)_(o)", "(o)_(o)"),
        (";_;", ";_;"),
        ("1girl", "1girl"),
        ("looking_at_viewer", "looking at viewer"),
        ("k-on!", "k-on!"),
    ],
)
def test_spaces_take_the_place_of_underscores_but_in_faces(tag: str, spaced: str) -> None:
    assert TagFormat(spaces=True).format(tag) == spaced
    assert TagFormat().format(tag) == tag


def test_prompts_take_parentheses_escaped_and_weights() -> None:
    assert TagFormat(escape=True).format("saber_(fate)") == r"saber_\(fate\)"
    weighted = TagFormat(spaces=True, escape=True, confidence=True)
    assert weighted.format_weighted("saber_(fate)", 0.987) == r"(saber \(fate\):0.99)"


@given(
    st.from_regex(r"[a-z0-9^<>:;()=+-]{1,8}(_[a-z0-9^<>()]{1,8}){0,2}", fullmatch=True),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_written_tag_is_recognised_however_it_was_written(
    tag: str, spaces: bool, escape: bool, confidence: bool
) -> None:
    if not confidence and tag_format.parse_tag(tag) != tag:  # "(a:1)" looks like a weight
        return
    how = TagFormat(spaces=spaces, escape=escape, confidence=confidence)
    assert tag_format.parse_tag(how.format_weighted(tag, 0.5)) == tag


def test_merging_keeps_what_is_there_and_adds_what_is_not() -> None:
    present = ["my_trigger", "Long Hair", " ", r"saber \(fate\)"]
    added = ["long_hair", "smile", "saber_(fate)"]
    assert tag_format.merge_tags(present, added) == [
        "my_trigger",
        "Long Hair",
        r"saber \(fate\)",
        "smile",
    ]


def test_a_known_tag_goes_first_where_given_and_another_word_always() -> None:
    known = frozenset(("solo", "smile", "long_hair"))
    written = ["smile", "long hair"]
    assert tag_format.reorder_tags(written, ["long_hair"], known) == ["long hair", "smile"]
    assert tag_format.reorder_tags(written, ["solo"], known) == written
    assert tag_format.reorder_tags(written, ["sks", "long_hair"], known) == [
        "sks",
        "long hair",
        "smile",
    ]
