"""Split methods by tags: how balanced each is, and what each refuses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
from scipy.sparse import csr_array

from tagger.core.errors import TaggerError
from tagger.core.manifest import SPLITS
from tagger.split import methods
from tagger.split.methods import Labels, SplitIndices

Bools = npt.NDArray[np.bool_]

FRACTIONS = (0.8, 0.1, 0.1)
SEEDS = range(3)


def zipf(posts: int, tags: int) -> Labels:
    """Return labels whose counts fall as Zipf's law has it."""
    frequencies = 0.9 / np.arange(1, tags + 1) ** 0.8
    return csr_array(np.random.default_rng(0).random((posts, tags)) < frequencies)


def deviation(splits: SplitIndices, labels: Bools, fractions: Any = FRACTIONS) -> float:
    """Return the mean distance of a tag's fraction in a split from the target."""
    counts = np.stack([labels[splits == split].sum(axis=0) for split in range(len(fractions))])
    return float(np.abs(counts / counts.sum(axis=0) - np.array(fractions)[:, None]).mean())


def mean(way: Callable[[int], SplitIndices], labels: Bools, fractions: Any = FRACTIONS) -> float:
    """Return the mean deviation over some seeds."""
    return float(np.mean([deviation(way(seed), labels, fractions) for seed in SEEDS]))


@pytest.fixture(scope="module")
def large() -> Labels:
    return zipf(2000, 100)


def test_stratified_is_more_balanced_than_scikit_multilearn_and_random(large: Labels) -> None:
    labels = large.toarray()
    ours = mean(lambda seed: methods.stratified(large, FRACTIONS, seed=seed), labels)
    reference = mean(lambda seed: methods.iterative(large, FRACTIONS, seed=seed), labels)
    random = mean(lambda seed: methods.random(large, FRACTIONS, seed=seed), labels)
    assert ours <= reference
    assert ours < random / 3


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_stratified_is_more_balanced_than_iterative_stratification(
    large: Labels, fraction: float
) -> None:
    labels, fractions = large.toarray(), (1 - fraction, fraction)

    def reference(seed: int) -> SplitIndices:
        splits = np.zeros(len(labels), dtype=np.int8)
        way = MultilabelStratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
        splits[next(way.split(labels, labels))[1]] = 1
        return splits

    ours = mean(lambda seed: methods.stratified(large, fractions, seed=seed), labels, fractions)
    assert ours <= mean(reference, labels, fractions)


def test_stratified_sizes_are_exact_and_no_frequent_tag_is_missing(large: Labels) -> None:
    assert large.sum(axis=0).min() >= 30
    for seed in SEEDS:
        splits = methods.stratified(large, FRACTIONS, seed=seed)
        assert np.bincount(splits).tolist() == [1600, 200, 200]
        for split in range(3):
            assert large[splits == split].sum(axis=0).min() > 0


def test_order_two_balances_pairs_of_tags() -> None:
    labels = zipf(600, 40)
    single = labels.toarray()
    first_tags, second_tags = np.triu_indices(40, 1)
    pairs = single[:, first_tags] & single[:, second_tags]
    pairs = pairs[:, pairs.sum(axis=0) >= 10]  # enough for the smallest split to have one
    assert pairs.shape[1] > 100
    ours = mean(lambda seed: methods.stratified(labels, FRACTIONS, seed=seed, order=2), pairs)
    single_tags = mean(lambda seed: methods.stratified(labels, FRACTIONS, seed=seed), pairs)
    reference = mean(lambda seed: methods.iterative(labels, FRACTIONS, seed=seed, order=2), pairs)
    assert ours < 0.8 * single_tags
    assert ours < 0.8 * reference


def test_stratified_with_groups_is_more_balanced_than_random() -> None:
    labels = zipf(400, 60)
    groups = np.random.default_rng(1).integers(0, 150, 400)

    def of(method: Callable[..., SplitIndices]) -> float:
        return mean(
            lambda seed: method(labels, FRACTIONS, groups=groups, seed=seed), labels.toarray()
        )

    assert of(methods.stratified) < 0.8 * of(methods.random)


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from(["random", "iterative"]), st.integers(2, 4))
def test_the_other_methods_divide_no_group_and_lose_no_post(
    seed: int, method: str, count: int
) -> None:
    random = np.random.default_rng(seed)
    posts = int(random.integers(count, 40))
    labels = csr_array(random.random((posts, 5)) < 0.4)
    groups = random.permutation([*range(count), *random.integers(0, 20, posts - count)])
    splits = getattr(methods, method)(labels, [1 / count] * count, groups=groups, seed=seed)
    assert splits.shape == (posts,)
    assert set(splits.tolist()) <= set(range(count))
    for group in np.unique(groups):
        assert len(set(splits[groups == group])) == 1


@pytest.mark.parametrize("method", [methods.random, methods.iterative])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_other_methods_approximate_the_sizes_and_follow_the_seed(
    method: Callable[..., SplitIndices], grouped: bool
) -> None:
    groups = np.random.default_rng(2).integers(0, 300, 400) if grouped else None
    labels = zipf(400, 20)
    first, again, other = (
        method(labels, FRACTIONS, groups=groups, seed=seed) for seed in (1, 1, 2**32 - 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.bincount(first) / 400 == pytest.approx(FRACTIONS, abs=0.04)


def test_random_ignores_tags_and_fills_splits_to_the_post() -> None:
    labels, other = zipf(1000, 5), csr_array((1000, 1))
    assert np.array_equal(
        methods.random(labels, FRACTIONS, seed=3), methods.random(other, FRACTIONS, seed=3)
    )
    assert np.bincount(methods.random(other, FRACTIONS)).tolist() == [800, 100, 100]


def test_the_reference_restores_the_global_generator() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    methods.iterative(zipf(50, 10), FRACTIONS, seed=1)
    assert np.random.random() == expected


METHODS = pytest.mark.parametrize("method", [methods.stratified, methods.iterative, methods.random])
EYE: Labels = csr_array(np.eye(9, dtype=np.bool_))


@METHODS
@pytest.mark.parametrize(
    ("fractions", "reason"),
    [
        ((0.8, 0.1), "sum to 0.9, not 1"),
        ((0.8, 0.1, 0.2), "sum to 1.1, not 1"),
        ((1.0, 0.0), "1 to 127, all above 0"),
        ((1.1, -0.1), "1 to 127, all above 0"),
        ((), "1 to 127, all above 0"),
        ((1 / 128,) * 128, "1 to 127, all above 0"),
        ((0.1,) * 10, "9 groups of posts cannot fill 10 splits"),
    ],
)
def test_invalid_fractions_are_refused(
    method: Callable[..., SplitIndices], fractions: tuple[float, ...], reason: str
) -> None:
    assert_refused(lambda: method(EYE, fractions), reason)


def test_127_splits_are_filled() -> None:
    splits = methods.stratified(csr_array(np.ones((127, 1))), (1 / 127,) * 127)
    assert sorted(splits.tolist()) == list(range(127))


@METHODS
@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1, 1], "2 groups of posts cannot fill 3 splits"),
        (range(8), "8 group numbers for 9 posts"),
        ([[0], [1]], "2 group numbers for 9 posts"),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    method: Callable[..., SplitIndices], groups: Any, reason: str
) -> None:
    assert_refused(lambda: method(EYE, FRACTIONS, groups=np.array(groups)), reason)


@METHODS
def test_invalid_labels_are_refused(method: Callable[..., SplitIndices]) -> None:
    assert_refused(lambda: method(csr_array((9, 0)), FRACTIONS), "vocabulary is empty")
    assert_refused(lambda: method(csr_array((0, 9)), FRACTIONS), "0 groups of posts cannot fill 3")
    labels = EYE.copy()
    for tag in (9, -1):
        labels.indices[4] = tag
        assert_refused(lambda: method(labels, FRACTIONS), "out of range: there are 9")


def test_too_many_pairs_are_refused_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = csr_array(np.ones((5, 4)))  # six pairs on each post
    monkeypatch.setattr(methods, "MAX_PAIRS", 30)
    methods.stratified(labels, FRACTIONS, order=2)
    monkeypatch.setattr(methods, "MAX_PAIRS", 29)
    methods.stratified(labels, FRACTIONS)
    assert_refused(lambda: methods.stratified(labels, FRACTIONS, order=2), "30 pairs .* 1.8 kB")


def test_the_reference_refuses_what_would_take_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "MAX_LABELS", 9)
    methods.iterative(EYE, FRACTIONS)
    monkeypatch.setattr(methods, "MAX_LABELS", 8)
    assert_refused(lambda: methods.iterative(EYE, FRACTIONS), "9 labels .* 1.3 kB.*Use stratified")


def assert_refused(call: Callable[[], Any], reason: str) -> None:
    """The error is one line."""
    with pytest.raises(TaggerError, match=reason) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_split_without_posts_or_without_tags_is_refused() -> None:
    labels = csr_array(np.array([[1], [1], [0]], dtype=np.float32))
    methods.check_split_sizes(np.array([0, 1, 1], dtype=np.int8), labels, SPLITS[:2])
    with pytest.raises(TaggerError, match=r"The split test has no post.*split\.test"):
        methods.check_split_sizes(np.array([0, 1, 1], dtype=np.int8), labels, SPLITS)
    with pytest.raises(TaggerError, match="No post of the split test has a tag"):
        methods.check_split_sizes(np.array([0, 1, 2], dtype=np.int8), labels, SPLITS)
