"""Tags that follow from others: one mechanism to take them away, one to add them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core.errors import TaggerError
from tagger.inference import implications
from tagger.inference.captions import PredictedTag

IMPLICATIONS = {"tabby_cat": ("animal", "cat"), "cat": ("animal",), "x": ("y",), "y": ("x",)}


def given(**confidences: float) -> list[PredictedTag]:
    return [PredictedTag(tag, "general", confidence) for tag, confidence in confidences.items()]


def test_what_another_tag_implies_is_removed() -> None:
    left = implications.remove_implied(
        given(tabby_cat=0.9, cat=0.8, animal=0.7, tree=0.6), IMPLICATIONS
    )
    assert left == given(tabby_cat=0.9, tree=0.6)
    assert implications.remove_implied(given(animal=0.7), IMPLICATIONS) == given(animal=0.7)


def test_tags_that_imply_each_other_both_stay() -> None:
    assert implications.remove_implied(given(x=0.9, y=0.8), IMPLICATIONS) == given(x=0.9, y=0.8)


def test_what_is_implied_is_added_as_sure_as_the_surest_that_implies_it() -> None:
    found = implications.add_implied(
        given(tabby_cat=0.9, cat=0.5), IMPLICATIONS, {"animal": "meta"}
    )
    assert found == [
        PredictedTag("tabby_cat", "general", 0.9),
        PredictedTag("animal", "meta", 0.9),
        PredictedTag("cat", "general", 0.5),  # given by the model itself: as it said
    ]
    twice = implications.add_implied(
        given(cat=0.4, tabby_cat=0.3), {"cat": ("a",), "tabby_cat": ("a",)}, {}
    )
    assert twice == given(cat=0.4, a=0.4, tabby_cat=0.3)


def test_without_a_table_the_way_out_is_told(tmp_path: Path) -> None:
    assert implications.build_implications(None, tmp_path, {})(given(cat=0.5)) == given(cat=0.5)
    with pytest.raises(TaggerError, match=r"holds no implications\. Put tag_implications\.csv"):
        implications.build_implications("add", tmp_path, {})


def test_a_folder_of_rules_is_read(write_file: Callable[[str, str], Path]) -> None:
    table = write_file(
        "rules/tag_implications.csv",
        "antecedent_name,consequent_name\ntabby_cat,cat\ncat,animal\n",
    )
    change = implications.build_implications("remove", table.parent, {})
    assert change(given(tabby_cat=0.9, animal=0.8)) == given(tabby_cat=0.9)
