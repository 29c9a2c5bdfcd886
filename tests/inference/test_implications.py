"""Implied tags are removed or added."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core.errors import TaggerError
from tagger.inference import implications
from tagger.inference.captions import PredictedTag

IMPLICATIONS = {"tabby_cat": ("animal", "cat"), "cat": ("animal",), "x": ("y",), "y": ("x",)}


def predicted(**confidences: float) -> list[PredictedTag]:
    return [PredictedTag(tag, "general", confidence) for tag, confidence in confidences.items()]


def test_implied_tags_are_removed() -> None:
    left = implications.remove_implied(
        predicted(tabby_cat=0.9, cat=0.8, animal=0.7, tree=0.6), IMPLICATIONS
    )
    assert left == predicted(tabby_cat=0.9, tree=0.6)
    assert implications.remove_implied(predicted(animal=0.7), IMPLICATIONS) == predicted(animal=0.7)


def test_tags_that_imply_each_other_both_stay() -> None:
    assert implications.remove_implied(predicted(x=0.9, y=0.8), IMPLICATIONS) == predicted(
        x=0.9, y=0.8
    )


def test_implied_tags_are_added_with_the_highest_confidence() -> None:
    predicted_tags = implications.add_implied(
        predicted(tabby_cat=0.9, cat=0.5), IMPLICATIONS, {"animal": "meta"}
    )
    assert predicted_tags == [
        PredictedTag("tabby_cat", "general", 0.9),
        PredictedTag("animal", "meta", 0.9),
        PredictedTag("cat", "general", 0.5),  # predicted by the model: with its confidence
    ]
    twice = implications.add_implied(
        predicted(cat=0.4, tabby_cat=0.3), {"cat": ("a",), "tabby_cat": ("a",)}, {}
    )
    assert twice == predicted(cat=0.4, a=0.4, tabby_cat=0.3)


def test_a_missing_table_of_implications_is_refused(tmp_path: Path) -> None:
    assert implications.build_implications(None, tmp_path, {})(predicted(cat=0.5)) == predicted(
        cat=0.5
    )
    with pytest.raises(TaggerError, match=r"holds no implications\. Put tag_implications\.csv"):
        implications.build_implications("add", tmp_path, {})


def test_a_folder_of_rules_is_read(write_file: Callable[[str, str], Path]) -> None:
    table = write_file(
        "rules/tag_implications.csv",
        "antecedent_name,consequent_name\ntabby_cat,cat\ncat,animal\n",
    )
    remove = implications.build_implications("remove", table.parent, {})
    assert remove(predicted(tabby_cat=0.9, animal=0.8)) == predicted(tabby_cat=0.9)
