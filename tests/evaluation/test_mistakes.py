"""Right, wrong and missed are what the thresholds say; the worst tags show why they are."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core.arrays import Floats, Ints
from tagger.core.logits import sigmoid
from tagger.evaluation import (
    mistakes,
    quantized_logits,
    score_counts,
    tag_metrics,
)
from tagger.evaluation.mistakes import (
    HardTag,
    ImageConfidence,
    ImageMistakes,
    Mistakes,
    TagConfidence,
)
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import QuantizedLogits

LIMIT = 0.4
TILE = 10  # images


def shares(predictions: RandomPredictions) -> Floats:
    return sigmoid(predictions.logits)


def judge(
    predictions: RandomPredictions,
    limits: Floats | None = None,
    unlabelled: list[Ints] | None = None,
) -> Mistakes:
    limits = np.full(predictions.truth.shape[1], LIMIT) if limits is None else limits
    with TemporaryStore(predictions, unlabelled=unlabelled or [], tile_size=TILE) as part:
        return mistakes.find(part, limits)


def look(predictions: RandomPredictions, pictures: list[int]) -> list[ImageMistakes]:
    with TemporaryStore(predictions, tile_size=TILE) as part:
        found = mistakes.find(part, np.full(part.tag_count, LIMIT))
        return mistakes.image_mistakes(part, found, pictures)


def worst(predictions: RandomPredictions, **most: int) -> list[HardTag]:
    listed = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions, tile_size=TILE) as part:
        return mistakes.hard_tags(
            part, score_counts.count(part, tag_metrics.pool_numbers(listed)), **most
        )


@settings(max_examples=60)
@given(small_predictions(), st.integers(0, 2**32 - 1))
def test_each_pair_is_what_its_tags_threshold_says(
    predictions: RandomPredictions, seed: int
) -> None:
    limits = np.random.default_rng(seed).uniform(0.05, 0.95, predictions.truth.shape[1:])
    found = judge(predictions, limits)
    high, truth = shares(predictions) >= limits, predictions.truth
    assert np.array_equal(found.right.toarray(), high & truth)
    assert np.array_equal(found.wrong.toarray(), high & ~truth)
    assert np.array_equal(found.missed.toarray(), ~high & truth)
    assert {kind.dtype for kind in vars(found).values()} == {np.dtype(np.bool_)}


def test_mistakes_are_those_that_figures_are_worked_out_from() -> None:
    predictions, listed = random_predictions(300, 8), make_tags(8)
    limits: Floats = np.linspace(0.2, 0.8, 8)
    found = judge(predictions, limits)
    with TemporaryStore(predictions, tile_size=TILE) as part:
        marks = quantized_logits.quantize_thresholds(limits)[:, None]
        counts = score_counts.count(part, tag_metrics.pool_numbers(listed), thresholds=marks)
    true, given_, support, _ = counts.decisions(0)
    right, wrong, missed = (kind.sum(axis=0) for kind in vars(found).values())
    assert right.tolist() == true.tolist()
    assert (right + wrong).tolist() == given_.tolist()
    assert (right + missed).tolist() == support.tolist()


@pytest.mark.parametrize("limit", [1e-9, 0.4, 0.999])
def test_what_is_unknown_is_neither_right_nor_wrong_nor_missed(limit: float) -> None:
    predictions = random_predictions(60, 4)
    predictions.truth[::3, :2] = False
    unknown = ~predictions.truth[:, :2].any(axis=1)
    found = judge(predictions, np.full(4, limit), [np.array([0, 1])])
    for kind in vars(found).values():
        assert not kind.toarray()[unknown, :2].any()
    alone = judge(predictions, np.full(4, limit))
    assert np.array_equal(found.wrong.toarray()[~unknown], alone.wrong.toarray()[~unknown])
    assert np.array_equal(found.wrong.toarray()[:, 2:], alone.wrong.toarray()[:, 2:])


def test_without_a_picture_there_is_no_mistake() -> None:
    predictions = random_predictions(0, 3)
    assert {kind.shape for kind in vars(judge(predictions)).values()} == {(0, 3)}
    assert look(predictions, []) == []
    assert worst(predictions) == []


@settings(max_examples=40)
@given(small_predictions(), st.randoms(use_true_random=False))
def test_pictures_are_looked_at_in_the_order_asked_for(
    predictions: RandomPredictions, random: Random
) -> None:
    pictures = random.choices(range(len(predictions.truth)), k=5)
    found = look(predictions, pictures)
    assert [one.image for one in found] == pictures
    for one in found:
        p, truth = shares(predictions)[one.image], predictions.truth[one.image]
        high = p >= LIMIT
        kinds = (one.right, high & truth), (one.wrong, high & ~truth), (one.missed, ~high & truth)
        for said, inside in kinds:
            expected = sorted(np.flatnonzero(inside).tolist(), key=lambda tag: (-p[tag], tag))
            assert said == [TagConfidence(tag, float(p[tag])) for tag in expected]


def test_only_the_tiles_of_the_images_are_read() -> None:
    class CountingStore(PredictionStore):
        def tiles(self) -> Iterator[tuple[slice, QuantizedLogits]]:
            for tile in super().tiles():
                read.append(tile[0])
                yield tile

    predictions = random_predictions(95, 3)
    with TemporaryStore(predictions, tile_size=TILE) as part:
        found = mistakes.find(part, np.full(3, LIMIT))
        read: list[slice] = []
        store = CountingStore(**vars(part))
        mistakes.image_mistakes(store, found, [12, 3])
    assert len(read) == 2


@settings(max_examples=60)
@given(small_predictions())
def test_the_worst_tags_are_those_of_lowest_average_precision(
    predictions: RandomPredictions,
) -> None:
    listed = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions, tile_size=TILE) as part:
        counted = score_counts.count(part, tag_metrics.pool_numbers(listed))
        found = mistakes.hard_tags(part, counted, tags=3, images=4, min_support=2)
    enough = np.flatnonzero(predictions.truth.sum(axis=0) >= 2).tolist()
    expected = sorted(enough, key=lambda tag: (counted.average_precision[tag], tag))[:3]
    assert [one.tag for one in found] == expected
    for tag, missed, wrong in found:
        p, truth = shares(predictions)[:, tag], predictions.truth[:, tag]
        rows = range(len(p))
        lowest = sorted((row for row in rows if truth[row]), key=lambda row: (p[row], row))[:4]
        highest = sorted((row for row in rows if not truth[row]), key=lambda row: (-p[row], row))
        assert missed == [ImageConfidence(row, float(p[row])) for row in lowest]
        assert wrong == [ImageConfidence(row, float(p[row])) for row in highest[:4]]


def test_a_tag_that_the_model_has_wrong_is_the_worst() -> None:
    predictions = random_predictions(200, 10)
    predictions.logits[:, 7] = np.where(predictions.truth[:, 7], -5, 5)
    found = worst(predictions, tags=1)
    assert [one.tag for one in found] == [7]
    assert {seen.confidence < 0.01 for seen in found[0].missed} == {True}
    assert {seen.confidence > 0.99 for seen in found[0].wrong} == {True}


def test_a_tag_on_too_few_pictures_is_not_told_to_be_the_worst() -> None:
    predictions = random_predictions(100, 5)
    predictions.truth[:, 2] = np.arange(100) < 4
    predictions.truth[:, 3] = False
    assert sorted(one.tag for one in worst(predictions)) == [0, 1, 4]


def test_a_tag_on_every_picture_is_wrong_on_none() -> None:
    predictions = random_predictions(20, 1, density=1.0)
    (found,) = worst(predictions)
    assert (len(found.missed), found.wrong) == (4, [])


@pytest.mark.parametrize("labelled", [True, False])
def test_pictures_on_which_a_tag_is_unknown_do_not_show_it(labelled: bool) -> None:
    predictions, listed = random_predictions(90, 2), make_tags(2)
    predictions.truth[::3] = False
    known = predictions.truth.sum(axis=1) > 0
    with TemporaryStore(predictions, unlabelled=[np.array([0, 1])]) as part:
        counted = score_counts.count(part, tag_metrics.pool_numbers(listed))
        if labelled:
            labels = predictions.truth | ~known[:, None]
            part = replace(part, labels=csr_array(labels))
        for one in mistakes.hard_tags(part, counted, images=90):
            shown = {seen.image for seen in (*one.missed, *one.wrong)}
            assert shown == set(np.flatnonzero(known).tolist())
        missed = mistakes.find(part, np.full(2, LIMIT)).missed.toarray()
        assert not missed[~known].any()
