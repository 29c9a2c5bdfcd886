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
def test_spaces_replace_underscores_but_in_kaomoji(tag: str, spaced: str) -> None:
    assert TagFormat(spaces=True).format(tag) == spaced
    assert TagFormat().format(tag) == tag


def test_parentheses_are_escaped_and_weights_written() -> None:
    assert TagFormat(escape=True).format("saber_(fate)") == r"saber_\(fate\)"
    weighted = TagFormat(spaces=True, escape=True, confidence=True)
    assert weighted.format_weighted("saber_(fate)", 0.987) == r"(saber \(fate\):0.99)"


@given(
    st.from_regex(r"[a-z0-9^<>:;()=+-]{1,8}(_[a-z0-9^<>()]{1,8}){0,2}", fullmatch=True),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_tag_is_parsed_from_every_form(
    tag: str, spaces: bool, escape: bool, confidence: bool
) -> None:
    if not confidence and tag_format.parse_tag(tag) != tag:  # "(a:1)" looks like a weight
        return
    style = TagFormat(spaces=spaces, escape=escape, confidence=confidence)
    assert tag_format.parse_tag(style.format_weighted(tag, 0.5)) == tag


def test_merged_tags_keep_the_present_ones_and_add_others() -> None:
    present = ["my_trigger", "Long Hair", " ", r"saber \(fate\)"]
    added = ["long_hair", "smile", "saber_(fate)"]
    assert tag_format.merge_tags(present, added) == [
        "my_trigger",
        "Long Hair",
        r"saber \(fate\)",
        "smile",
    ]


def test_a_tag_goes_first_if_present_and_another_word_always() -> None:
    names = frozenset(("solo", "smile", "long_hair"))
    texts = ["smile", "long hair"]
    assert tag_format.reorder_tags(texts, ["long_hair"], names) == ["long hair", "smile"]
    assert tag_format.reorder_tags(texts, ["solo"], names) == texts
    assert tag_format.reorder_tags(texts, ["sks", "long_hair"], names) == [
        "sks",
        "long hair",
        "smile",
    ]
