"""Label issues equal cleanlab's for each tag; planted errors are the most certain."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cleanlab.filter import find_label_issues
from hypothesis import given, settings
from scipy.special import expit

from support.predictions import (
    RandomPredictions,
    TemporaryStore,
    make_tags,
    random_predictions,
    small_predictions,
)
from tagger.core.arrays import Ints, Truth
from tagger.core.logits import sigmoid
from tagger.evaluation import label_issues
from tagger.evaluation.label_issues import LabelIssue, LabelIssues

ALL = 1_000_000


def find(
    predictions: RandomPredictions, *, unlabelled: list[Ints] | None = None, **limits: int
) -> LabelIssues:
    with TemporaryStore(predictions, unlabelled=unlabelled or []) as store:
        return label_issues.find(store, **limits)


def issue_mask(issues: LabelIssues, shape: tuple[int, ...]) -> Truth:
    """Return the labels that are issues, (images, tags)."""
    mask = np.zeros(shape, np.bool_)
    for issue in issues.most_certain:
        mask[issue.image, issue.tag] = True
    return mask


def cleanlab_mask(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Truth:
    """Return which labels of one tag are that are issues, (images,)."""
    p = sigmoid(logits)
    both = np.column_stack([1 - p, p])
    kinds = labels.astype(int)
    return np.asarray(find_label_issues(kinds, both, filter_by="confident_learning", n_jobs=1))


def flipped(predictions: RandomPredictions, fraction: float) -> tuple[RandomPredictions, Truth]:
    """Return predictions with labels of which a fraction is false, and which they are."""
    false = np.random.default_rng(9).random(predictions.truth.shape) < fraction
    return RandomPredictions(predictions.logits, predictions.truth ^ false), false


def clear(images: int, count: int, apart: float = 9.0) -> RandomPredictions:
    """Predictions that tell true tags from others by so many logits more than `draw` does."""
    logits, truth = random_predictions(images, count, density=0.1)
    moved = logits + apart * (truth - np.float32(0.4))
    return RandomPredictions(moved.astype(np.float16).astype(np.float32), truth)


@settings(max_examples=150)
@given(small_predictions())
def test_label_issues_equal_cleanlab(predictions: RandomPredictions) -> None:
    issues = find(predictions, limit=ALL, min_support=1)
    mask = issue_mask(issues, predictions.truth.shape)
    for tag, (logits, labels) in enumerate(zip(*(a.T for a in predictions), strict=True)):
        both = 0 < labels.sum() < len(labels)
        expected = cleanlab_mask(logits, labels) if both else np.zeros(len(labels), np.bool_)
        assert mask[:, tag].tolist() == expected.tolist()
        assert issues.missing[tag] == (expected & ~labels).sum()
        assert issues.wrong[tag] == (expected & labels).sum()


@pytest.mark.parametrize("apart", [-2.0, 0.0, 3.0, 12.0])
def test_label_issues_of_many_images_equal_cleanlab(apart: float) -> None:
    predictions, _ = flipped(clear(3000, 8, apart), 0.05)
    mask = issue_mask(find(predictions, limit=ALL), predictions.truth.shape)
    assert mask.any()
    for tag, (logits, labels) in enumerate(zip(*(a.T for a in predictions), strict=True)):
        assert np.array_equal(mask[:, tag], cleanlab_mask(logits, labels))


@pytest.mark.parametrize("missing", [True, False])
def test_confidences_equal_but_for_rounding_are_issues(missing: bool) -> None:
    predictions = clear(1000, 4, 50.0)
    planted = np.random.default_rng(9).random(predictions.truth.shape) < 0.05
    planted &= predictions.truth == missing
    labelled = RandomPredictions(predictions.logits, predictions.truth ^ planted)
    mask = issue_mask(find(labelled), planted.shape)
    assert np.array_equal(mask, planted)
    for tag, (logits, labels) in enumerate(zip(*(a.T for a in labelled), strict=True)):
        assert np.array_equal(mask[:, tag], cleanlab_mask(logits, labels))


def test_an_issue_contradicts_its_label() -> None:
    predictions, _ = flipped(clear(500, 6), 0.05)
    issues = find(predictions, limit=ALL)
    assert len(issues.most_certain) == issues.missing.sum() + issues.wrong.sum()
    for image, tag, missing, confidence, _ in issues.most_certain:
        assert missing == (not predictions.truth[image, tag])
        assert missing == (confidence > 0.5)
        assert confidence == pytest.approx(expit(predictions.logits[image, tag]))


def test_planted_errors_are_the_most_certain_issues() -> None:
    """By chance a twentieth would be, the fraction that is planted."""
    predictions, planted = flipped(clear(2000, 20), 0.05)
    most_certain = find(predictions).most_certain
    hits = np.array([planted[issue.image, issue.tag] for issue in most_certain])
    assert 1900 < planted.sum() < 2100
    assert hits[:1000].mean() > 0.99
    assert hits[: planted.sum()].mean() > 0.95
    missing = np.array([issue.missing for issue in most_certain])
    for kind, least in ((missing, 150), (~missing, 1000)):
        assert hits[kind].mean() > 0.9
        assert kind.sum() > least


def test_issues_of_tags_the_model_does_not_know_come_last() -> None:
    """By self-confidence their labels, of which it thinks nothing, come before planted errors."""
    predictions, labels = (
        flipped(clear(2000, 10), 0.01)[0],
        random_predictions(2000, 10, 1, density=0.02).truth,
    )
    noise = np.random.default_rng(2).normal(-6, 1, labels.shape)
    both = RandomPredictions(
        *(np.hstack(pair) for pair in zip(predictions, (noise, labels), strict=True))
    )
    issues = find(both, limit=ALL)
    mask = int(issues.missing[:10].sum() + issues.wrong[:10].sum())
    assert issues.wrong[10:].sum() > 150
    assert {issue.tag < 10 for issue in issues.most_certain[:mask]} == {True}
    sure = [
        issue.confidence if issue.missing else 1 - issue.confidence for issue in issues.most_certain
    ]
    by_confidence = np.argsort(sure)[::-1][:100]
    assert np.mean([issues.most_certain[place].tag >= 10 for place in by_confidence]) > 0.5


def test_of_equally_confident_errors_that_of_the_better_known_tag_comes_first() -> None:
    truth = np.arange(600)[:, None] < [20, 20]
    logits = np.where(truth, [4, 0], [-4, -8]).astype(np.float32)
    logits[50] = 4
    first, second = find(RandomPredictions(logits, truth)).most_certain
    assert (first.tag, first.image) == (0, 50)
    assert (second.tag, second.image) == (1, 50)


def test_the_most_certain_issues_do_not_depend_on_how_tags_are_read() -> None:
    predictions, _ = flipped(random_predictions(400, 9, steps=5), 0.1)
    everything = find(predictions, limit=ALL).most_certain
    assert len(everything) > 100
    with TemporaryStore(predictions) as store:
        for block_bytes in (1, 1 << 20):
            blocks = replace(store, block_bytes=block_bytes)
            for limit in (0, 1, 50, ALL):
                issues = label_issues.find(blocks, limit=limit).most_certain
                assert issues == everything[:limit]


def test_equally_certain_issues_are_in_the_order_of_tags_and_images() -> None:
    truth = np.zeros((40, 2), np.bool_)
    truth[:20] = True
    logits = np.where(truth, 3, -3).astype(np.float32)
    labels = truth.copy()
    labels[[25, 23, 30]] = True
    issues = find(RandomPredictions(logits, labels)).most_certain
    assert [(issue.tag, issue.image) for issue in issues] == [
        (tag, row) for tag in (0, 1) for row in (23, 25, 30)
    ]


def test_unknown_labels_are_never_issues() -> None:
    predictions, _ = flipped(clear(600, 4), 0.05)
    predictions.truth[::3, :2] = False
    labelled_images = predictions.truth[:, :2].any(axis=1)
    mask = issue_mask(find(predictions, unlabelled=[np.array([0, 1])]), predictions.truth.shape)
    assert not mask[~labelled_images, :2].any()
    for tag in (0, 1):
        expected = cleanlab_mask(
            predictions.logits[labelled_images, tag], predictions.truth[labelled_images, tag]
        )
        assert np.array_equal(mask[labelled_images, tag], expected)


@pytest.mark.parametrize("few", [True, False])
def test_tags_with_too_few_positives_or_negatives_have_no_issues(few: bool) -> None:
    truth = np.zeros((50, 3), np.bool_)
    for tag, count in enumerate((4, 5, 25)):
        truth[:count, tag] = True
    labels = truth if few else ~truth
    logits = np.where(labels, 4, -4).astype(np.float32)
    logits[0] = -logits[0]
    logits[-1] = -logits[-1]
    issues = find(RandomPredictions(logits, labels))
    assert (issues.missing + issues.wrong).tolist() == [0, 2, 2]
    assert {issue.tag for issue in issues.most_certain} == {1, 2}


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("images", [0, 20])
def test_a_tag_on_no_image_or_on_all_has_no_issues(images: int, density: float) -> None:
    issues = find(random_predictions(images, 3, density=density), min_support=0)
    assert (issues.missing.tolist(), issues.wrong.tolist()) == ([0] * 3, [0] * 3)
    assert issues.most_certain == []


def test_the_largest_logits_can_be_issues() -> None:
    truth = np.arange(40)[:, None] < [20]
    logits = np.where(truth, 65504, -65504).astype(np.float32)
    labels = truth.copy()
    labels[[3, 35]] ^= True
    issues = find(RandomPredictions(logits, labels)).most_certain
    assert sorted((issue.image, issue.missing) for issue in issues) == [(3, True), (35, False)]


def test_rows_name_the_image_the_tag_and_the_issue() -> None:
    issues = [LabelIssue(1, 0, True, 0.98765432, 9.0), LabelIssue(0, 3, False, 0.01, 8.0)]
    listed = label_issues.rows("test", issues, ["7", "9"], ["a.png", "b.png"], make_tags(4))
    assert [dict(zip(label_issues.HEADER, row, strict=True)) for row in listed] == [
        {
            **{"split": "test", "id": "9", "file": "b.png", "category": "general"},
            **{"tag": "tag_0", "issue": "missing", "confidence": 0.987654},
        },
        {
            **{"split": "test", "id": "7", "file": "a.png", "category": "character"},
            **{"tag": "tag_3", "issue": "wrong", "confidence": 0.01},
        },
    ]
