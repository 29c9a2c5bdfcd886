"""Right, wrong and missed tags follow from the thresholds; the hardest tags come with images."""

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

THRESHOLD = 0.4
TILE = 10  # images


def probabilities(predictions: RandomPredictions) -> Floats:
    return sigmoid(predictions.logits)


def find(
    predictions: RandomPredictions,
    thresholds: Floats | None = None,
    unlabelled: list[Ints] | None = None,
) -> Mistakes:
    thresholds = (
        np.full(predictions.truth.shape[1], THRESHOLD) if thresholds is None else thresholds
    )
    with TemporaryStore(predictions, unlabelled=unlabelled or [], tile_size=TILE) as store:
        return mistakes.find(store, thresholds)


def inspect(predictions: RandomPredictions, images: list[int]) -> list[ImageMistakes]:
    with TemporaryStore(predictions, tile_size=TILE) as store:
        decisions = mistakes.find(store, np.full(store.tag_count, THRESHOLD))
        return mistakes.image_mistakes(store, decisions, images)


def hard_tags(predictions: RandomPredictions, **most: int) -> list[HardTag]:
    tags = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions, tile_size=TILE) as store:
        return mistakes.hard_tags(
            store, score_counts.count(store, tag_metrics.pool_numbers(tags)), **most
        )


@settings(max_examples=60)
@given(small_predictions(), st.integers(0, 2**32 - 1))
def test_each_pair_is_decided_by_the_threshold_of_its_tag(
    predictions: RandomPredictions, seed: int
) -> None:
    thresholds = np.random.default_rng(seed).uniform(0.05, 0.95, predictions.truth.shape[1:])
    decisions = find(predictions, thresholds)
    high, truth = probabilities(predictions) >= thresholds, predictions.truth
    assert np.array_equal(decisions.right.toarray(), high & truth)
    assert np.array_equal(decisions.wrong.toarray(), high & ~truth)
    assert np.array_equal(decisions.missed.toarray(), ~high & truth)
    assert {kind.dtype for kind in vars(decisions).values()} == {np.dtype(np.bool_)}


def test_mistakes_agree_with_the_counted_decisions() -> None:
    predictions, tags = random_predictions(300, 8), make_tags(8)
    thresholds: Floats = np.linspace(0.2, 0.8, 8)
    decisions = find(predictions, thresholds)
    with TemporaryStore(predictions, tile_size=TILE) as store:
        quantized = quantized_logits.quantize_thresholds(thresholds)[:, None]
        counts = score_counts.count(store, tag_metrics.pool_numbers(tags), thresholds=quantized)
    true, predicted, support, _ = counts.decisions(0)
    right, wrong, missed = (kind.sum(axis=0) for kind in vars(decisions).values())
    assert right.tolist() == true.tolist()
    assert (right + wrong).tolist() == predicted.tolist()
    assert (right + missed).tolist() == support.tolist()


@pytest.mark.parametrize("limit", [1e-9, 0.4, 0.999])
def test_unknown_labels_are_neither_right_nor_wrong_nor_missed(limit: float) -> None:
    predictions = random_predictions(60, 4)
    predictions.truth[::3, :2] = False
    unknown = ~predictions.truth[:, :2].any(axis=1)
    decisions = find(predictions, np.full(4, limit), [np.array([0, 1])])
    for kind in vars(decisions).values():
        assert not kind.toarray()[unknown, :2].any()
    alone = find(predictions, np.full(4, limit))
    assert np.array_equal(decisions.wrong.toarray()[~unknown], alone.wrong.toarray()[~unknown])
    assert np.array_equal(decisions.wrong.toarray()[:, 2:], alone.wrong.toarray()[:, 2:])


def test_an_empty_store_has_no_mistakes() -> None:
    predictions = random_predictions(0, 3)
    assert {kind.shape for kind in vars(find(predictions)).values()} == {(0, 3)}
    assert inspect(predictions, []) == []
    assert hard_tags(predictions) == []


@settings(max_examples=40)
@given(small_predictions(), st.randoms(use_true_random=False))
def test_images_are_returned_in_the_order_of_the_request(
    predictions: RandomPredictions, random: Random
) -> None:
    images = random.choices(range(len(predictions.truth)), k=5)
    image_mistakes = inspect(predictions, images)
    assert [entry.image for entry in image_mistakes] == images
    for entry in image_mistakes:
        p, truth = probabilities(predictions)[entry.image], predictions.truth[entry.image]
        high = p >= THRESHOLD
        kinds = (
            (entry.right, high & truth),
            (entry.wrong, high & ~truth),
            (entry.missed, ~high & truth),
        )
        for actual, inside in kinds:
            expected = sorted(np.flatnonzero(inside).tolist(), key=lambda tag: (-p[tag], tag))
            assert actual == [TagConfidence(tag, float(p[tag])) for tag in expected]


def test_only_the_tiles_of_the_images_are_read() -> None:
    class CountingStore(PredictionStore):
        def tiles(self) -> Iterator[tuple[slice, QuantizedLogits]]:
            for tile in super().tiles():
                read.append(tile[0])
                yield tile

    predictions = random_predictions(95, 3)
    with TemporaryStore(predictions, tile_size=TILE) as store:
        decisions = mistakes.find(store, np.full(3, THRESHOLD))
        read: list[slice] = []
        store = CountingStore(**vars(store))
        mistakes.image_mistakes(store, decisions, [12, 3])
    assert len(read) == 2


@settings(max_examples=60)
@given(small_predictions())
def test_the_hardest_tags_have_the_lowest_average_precision(
    predictions: RandomPredictions,
) -> None:
    tags = make_tags(predictions.truth.shape[1])
    with TemporaryStore(predictions, tile_size=TILE) as store:
        counts = score_counts.count(store, tag_metrics.pool_numbers(tags))
        hardest_tags = mistakes.hard_tags(store, counts, tags=3, images=4, min_support=2)
    enough = np.flatnonzero(predictions.truth.sum(axis=0) >= 2).tolist()
    expected = sorted(enough, key=lambda tag: (counts.average_precision[tag], tag))[:3]
    assert [hard_tag.tag for hard_tag in hardest_tags] == expected
    for tag, missed, wrong in hardest_tags:
        p, truth = probabilities(predictions)[:, tag], predictions.truth[:, tag]
        rows = range(len(p))
        lowest = sorted((row for row in rows if truth[row]), key=lambda row: (p[row], row))[:4]
        highest = sorted((row for row in rows if not truth[row]), key=lambda row: (-p[row], row))
        assert missed == [ImageConfidence(row, float(p[row])) for row in lowest]
        assert wrong == [ImageConfidence(row, float(p[row])) for row in highest[:4]]


def test_a_tag_that_is_always_wrong_is_the_hardest() -> None:
    predictions = random_predictions(200, 10)
    predictions.logits[:, 7] = np.where(predictions.truth[:, 7], -5, 5)
    hardest_tags = hard_tags(predictions, tags=1)
    assert [hard_tag.tag for hard_tag in hardest_tags] == [7]
    assert {seen.confidence < 0.01 for seen in hardest_tags[0].missed} == {True}
    assert {seen.confidence > 0.99 for seen in hardest_tags[0].wrong} == {True}


def test_a_tag_on_too_few_images_is_not_a_hard_tag() -> None:
    predictions = random_predictions(100, 5)
    predictions.truth[:, 2] = np.arange(100) < 4
    predictions.truth[:, 3] = False
    assert sorted(hard_tag.tag for hard_tag in hard_tags(predictions)) == [0, 1, 4]


def test_a_tag_on_every_image_is_wrong_on_none() -> None:
    predictions = random_predictions(20, 1, density=1.0)
    (hard_tag,) = hard_tags(predictions)
    assert (len(hard_tag.missed), hard_tag.wrong) == (4, [])


@pytest.mark.parametrize("labelled", [True, False])
def test_images_with_an_unknown_label_do_not_show_a_hard_tag(labelled: bool) -> None:
    predictions, tags = random_predictions(90, 2), make_tags(2)
    predictions.truth[::3] = False
    labelled_images = predictions.truth.sum(axis=1) > 0
    with TemporaryStore(predictions, unlabelled=[np.array([0, 1])]) as store:
        counts = score_counts.count(store, tag_metrics.pool_numbers(tags))
        if labelled:
            labels = predictions.truth | ~labelled_images[:, None]
            store = replace(store, labels=csr_array(labels))
        for hard_tag in mistakes.hard_tags(store, counts, images=90):
            shown = {seen.image for seen in (*hard_tag.missed, *hard_tag.wrong)}
            assert shown == set(np.flatnonzero(labelled_images).tolist())
        missed = mistakes.find(store, np.full(2, THRESHOLD)).missed.toarray()
        assert not missed[~labelled_images].any()
