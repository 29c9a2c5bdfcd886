"""Confused tags are missed and predicted on the same images, beyond chance."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core.vocabulary import Tag
from tagger.evaluation import confusions, mistakes
from tagger.evaluation.confusions import Confusion

THRESHOLD = 0.4


def find(predictions: RandomPredictions, tags: list[Tag], *limits: int) -> list[Confusion]:
    with TemporaryStore(predictions) as store:
        decisions = mistakes.find(store, np.full(store.tag_count, THRESHOLD))
    return confusions.find(decisions, tags, predictions.truth.sum(axis=0), *limits)


def count_pairs(predictions: RandomPredictions, tags: list[Tag]) -> list[Confusion]:
    """Count all pairs of tags, one by one."""
    high = 1 / (1 + np.exp(-predictions.logits.astype(float))) >= THRESHOLD
    missed, wrong = predictions.truth & ~high, high & ~predictions.truth
    confused_pairs = []
    for tag, other in permutations(range(len(tags)), 2):
        both = int((missed[:, tag] & wrong[:, other]).sum())
        times = int(missed[:, tag].sum())
        surplus = both - times * int(wrong[:, other].sum()) / len(high)
        if both >= 2 and surplus > 0 and tags[tag].category == tags[other].category:
            support = int(predictions.truth[:, tag].sum())
            confused_pairs.append((-surplus, Confusion(tag, other, both, support, both / times)))
    return [pair for _, pair in sorted(confused_pairs)]


@settings(max_examples=100)
@given(small_predictions())
def test_confusions_equal_a_count_of_all_pairs(predictions: RandomPredictions) -> None:
    tags = make_tags(predictions.truth.shape[1])
    assert find(predictions, tags) == count_pairs(predictions, tags)


@pytest.mark.parametrize("chunk", [1, 20, 10_000])
def test_confusions_do_not_depend_on_the_chunk(chunk: int) -> None:
    predictions, tags = random_predictions(400, 30), make_tags(30, (0, 4, 3))
    everything = count_pairs(predictions, tags)
    assert len(everything) > 50
    for limit in (0, 1, 20, 500):
        assert find(predictions, tags, limit, chunk) == everything[:limit]


def test_swapped_tags_come_first() -> None:
    predictions = random_predictions(1000, 12)
    logits = np.where(predictions.truth, 4, -4).astype(np.float32)
    noise = np.random.default_rng(1).random(logits.shape) < 0.05
    logits[noise] *= -1
    swapped = predictions.truth[:, 2] & ~predictions.truth[:, 5] & (np.arange(1000) % 3 == 0)
    logits[swapped, 2], logits[swapped, 5] = -4, 4
    pairs = find(RandomPredictions(logits, predictions.truth), make_tags(12))
    first, second = pairs[:2]
    assert (first.tag, first.taken_for) == (2, 5)
    assert first.images >= swapped.sum()
    assert first.support == predictions.truth[:, 2].sum()
    assert first.fraction > 0.7
    assert second.images < first.images / 5


def test_tags_of_different_categories_are_not_confused() -> None:
    truth = np.tile([True, False], (10, 1))
    swapped = RandomPredictions(np.where(truth, -4, 4).astype(np.float32), truth)
    swapped.logits[5:] *= -1
    assert find(swapped, make_tags(2)) == []
    assert find(swapped, make_tags(2, (0,))) == [Confusion(0, 1, 5, 10, 1.0)]


def test_mistakes_on_one_image_or_on_all_are_no_confusion() -> None:
    truth = np.tile([True, False], (10, 1))
    logits = np.where(truth, 4, -4).astype(np.float32)
    logits[0] *= -1
    assert find(RandomPredictions(logits, truth), make_tags(2, (0,))) == []
    assert (
        find(
            RandomPredictions(np.where(truth, -4, 4).astype(np.float32), truth), make_tags(2, (0,))
        )
        == []
    )


@pytest.mark.parametrize("images", [0, 6])
def test_perfect_predictions_have_no_confusions(images: int) -> None:
    truth = random_predictions(images, 4).truth
    assert (
        find(RandomPredictions(np.where(truth, 4, -4).astype(np.float32), truth), make_tags(4))
        == []
    )


def test_rows_name_both_tags() -> None:
    (row,) = confusions.rows([Confusion(3, 2, 8, 40, 2 / 3)], make_tags(4))
    assert dict(zip(confusions.HEADER, row, strict=True)) == {
        **{"tag": "tag_3", "taken_for": "tag_2", "category": "character"},
        **{"images": 8, "support": 40, "fraction": 0.666667},
    }
