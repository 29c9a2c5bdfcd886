"""Ways to part by tags, side by side: how even each is, and what each refuses."""

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

SHARES = (0.8, 0.1, 0.1)
SEEDS = range(3)


def zipf(posts: int, tags: int) -> Labels:
    """Return labels whose counts fall as Zipf's law has it."""
    frequencies = 0.9 / np.arange(1, tags + 1) ** 0.8
    return csr_array(np.random.default_rng(0).random((posts, tags)) < frequencies)


def deviation(parts: SplitIndices, labels: Bools, shares: Any = SHARES) -> float:
    """Return the mean distance of a tag's share in a part from the one wanted."""
    counts = np.stack([labels[parts == part].sum(axis=0) for part in range(len(shares))])
    return float(np.abs(counts / counts.sum(axis=0) - np.array(shares)[:, None]).mean())


def mean(way: Callable[[int], SplitIndices], labels: Bools, shares: Any = SHARES) -> float:
    """Return the mean deviation over some seeds."""
    return float(np.mean([deviation(way(seed), labels, shares) for seed in SEEDS]))


@pytest.fixture(scope="module")
def large() -> Labels:
    return zipf(2000, 100)


def test_stratified_is_evener_than_scikit_multilearn_and_chance(large: Labels) -> None:
    labels = large.toarray()
    ours = mean(lambda seed: methods.stratified(large, SHARES, seed=seed), labels)
    reference = mean(lambda seed: methods.iterative(large, SHARES, seed=seed), labels)
    chance = mean(lambda seed: methods.random(large, SHARES, seed=seed), labels)
    assert ours <= reference
    assert ours < chance / 3


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_stratified_is_evener_than_iterative_stratification(large: Labels, share: float) -> None:
    labels, shares = large.toarray(), (1 - share, share)

    def reference(seed: int) -> SplitIndices:
        parts = np.zeros(len(labels), dtype=np.int8)
        way = MultilabelStratifiedShuffleSplit(1, test_size=share, random_state=seed)
        parts[next(way.split(labels, labels))[1]] = 1
        return parts

    ours = mean(lambda seed: methods.stratified(large, shares, seed=seed), labels, shares)
    assert ours <= mean(reference, labels, shares)


def test_stratified_sizes_are_exact_and_no_frequent_tag_is_missing(large: Labels) -> None:
    assert large.sum(axis=0).min() >= 30
    for seed in SEEDS:
        parts = methods.stratified(large, SHARES, seed=seed)
        assert np.bincount(parts).tolist() == [1600, 200, 200]
        for part in range(3):
            assert large[parts == part].sum(axis=0).min() > 0


def test_order_two_evens_out_pairs_of_tags() -> None:
    labels = zipf(600, 40)
    single = labels.toarray()
    one, two = np.triu_indices(40, 1)
    pairs = single[:, one] & single[:, two]
    pairs = pairs[:, pairs.sum(axis=0) >= 10]  # enough for the smallest part to have one
    assert pairs.shape[1] > 100
    ours = mean(lambda seed: methods.stratified(labels, SHARES, seed=seed, order=2), pairs)
    single_tags = mean(lambda seed: methods.stratified(labels, SHARES, seed=seed), pairs)
    reference = mean(lambda seed: methods.iterative(labels, SHARES, seed=seed, order=2), pairs)
    assert ours < 0.8 * single_tags
    assert ours < 0.8 * reference


def test_stratified_with_groups_is_evener_than_chance() -> None:
    labels = zipf(400, 60)
    groups = np.random.default_rng(1).integers(0, 150, 400)

    def of(method: Callable[..., SplitIndices]) -> float:
        return mean(lambda seed: method(labels, SHARES, groups=groups, seed=seed), labels.toarray())

    assert of(methods.stratified) < 0.8 * of(methods.random)


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from(["random", "iterative"]), st.integers(2, 4))
def test_the_others_part_no_group_and_lose_no_post(seed: int, method: str, count: int) -> None:
    random = np.random.default_rng(seed)
    posts = int(random.integers(count, 40))
    labels = csr_array(random.random((posts, 5)) < 0.4)
    groups = random.permutation([*range(count), *random.integers(0, 20, posts - count)])
    parts = getattr(methods, method)(labels, [1 / count] * count, groups=groups, seed=seed)
    assert parts.shape == (posts,)
    assert set(parts.tolist()) <= set(range(count))
    for group in np.unique(groups):
        assert len(set(parts[groups == group])) == 1


@pytest.mark.parametrize("method", [methods.random, methods.iterative])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_others_come_near_the_sizes_and_follow_the_seed(
    method: Callable[..., SplitIndices], grouped: bool
) -> None:
    groups = np.random.default_rng(2).integers(0, 300, 400) if grouped else None
    labels = zipf(400, 20)
    first, again, other = (
        method(labels, SHARES, groups=groups, seed=seed) for seed in (1, 1, 2**32 - 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.bincount(first) / 400 == pytest.approx(SHARES, abs=0.04)


def test_random_looks_at_no_tag_and_fills_parts_to_the_post() -> None:
    one, other = zipf(1000, 5), csr_array((1000, 1))
    assert np.array_equal(
        methods.random(one, SHARES, seed=3), methods.random(other, SHARES, seed=3)
    )
    assert np.bincount(methods.random(other, SHARES)).tolist() == [800, 100, 100]


def test_the_reference_leaves_the_global_generator_as_it_was() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    methods.iterative(zipf(50, 10), SHARES, seed=1)
    assert np.random.random() == expected


METHODS = pytest.mark.parametrize("method", [methods.stratified, methods.iterative, methods.random])
EYE: Labels = csr_array(np.eye(9, dtype=np.bool_))


@METHODS
@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ((0.8, 0.1), "sum to 0.9, not 1"),
        ((0.8, 0.1, 0.2), "sum to 1.1, not 1"),
        ((1.0, 0.0), "1 to 127, all above 0"),
        ((1.1, -0.1), "1 to 127, all above 0"),
        ((), "1 to 127, all above 0"),
        ((1 / 128,) * 128, "1 to 127, all above 0"),
        ((0.1,) * 10, "9 groups of posts cannot fill 10 parts"),
    ],
)
def test_proportions_that_cannot_be_are_refused(
    method: Callable[..., SplitIndices], shares: tuple[float, ...], reason: str
) -> None:
    assert_refused(lambda: method(EYE, shares), reason)


def test_so_many_parts_as_a_byte_counts_are_filled() -> None:
    parts = methods.stratified(csr_array(np.ones((127, 1))), (1 / 127,) * 127)
    assert sorted(parts.tolist()) == list(range(127))


@METHODS
@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1, 1], "2 groups of posts cannot fill 3 parts"),
        (range(8), "8 groups are given for 9 posts"),
        ([[0], [1]], "2 groups are given for 9 posts"),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    method: Callable[..., SplitIndices], groups: Any, reason: str
) -> None:
    assert_refused(lambda: method(EYE, SHARES, groups=np.array(groups)), reason)


@METHODS
def test_labels_that_cannot_be_are_refused(method: Callable[..., SplitIndices]) -> None:
    assert_refused(lambda: method(csr_array((9, 0)), SHARES), "vocabulary is empty")
    assert_refused(lambda: method(csr_array((0, 9)), SHARES), "0 groups of posts cannot fill 3")
    labels = EYE.copy()
    for tag in (9, -1):
        labels.indices[4] = tag
        assert_refused(lambda: method(labels, SHARES), "out of range: there are 9")


def test_too_many_pairs_are_refused_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = csr_array(np.ones((5, 4)))  # six pairs on each post
    monkeypatch.setattr(methods, "_MOST_PAIRS", 30)
    methods.stratified(labels, SHARES, order=2)
    monkeypatch.setattr(methods, "_MOST_PAIRS", 29)
    methods.stratified(labels, SHARES)
    assert_refused(lambda: methods.stratified(labels, SHARES, order=2), "30 pairs .* 1.8 kB")


def test_the_reference_refuses_what_would_take_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_MOST_LABELS", 9)
    methods.iterative(EYE, SHARES)
    monkeypatch.setattr(methods, "_MOST_LABELS", 8)
    assert_refused(lambda: methods.iterative(EYE, SHARES), "9 labels .* 1.3 kB.*Use stratified")


def assert_refused(call: Callable[[], Any], reason: str) -> None:
    """The mistake is told in one line."""
    with pytest.raises(TaggerError, match=reason) as told:
        call()
    assert "\n" not in str(told.value)


def test_a_part_without_posts_or_without_tags_is_refused() -> None:
    labels = csr_array(np.array([[1], [1], [0]], dtype=np.float32))
    methods.check_split_sizes(np.array([0, 1, 1], dtype=np.int8), labels, SPLITS[:2])
    with pytest.raises(TaggerError, match=r"No post falls to test.*split\.test"):
        methods.check_split_sizes(np.array([0, 1, 1], dtype=np.int8), labels, SPLITS)
    with pytest.raises(TaggerError, match="No post of test has a tag"):
        methods.check_split_sizes(np.array([0, 1, 2], dtype=np.int8), labels, SPLITS)
