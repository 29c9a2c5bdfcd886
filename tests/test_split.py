"""A split deals out every post once, whole groups together, and tags in their proportions."""

import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tagger import split
from tagger.errors import TaggerError
from tagger.posts import PARTS

SHARES = (0.8, 0.1, 0.1)
Groups = npt.NDArray[np.int64]


@st.composite
def matrices(draw: st.DrawFn) -> tuple[csr_array, Groups]:
    """Draw labels, (posts, tags), some posts without any, and a group for each post."""
    posts, tags = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = random.random((posts, tags)) < draw(st.floats(0, 0.7))
    groups = random.integers(-3, draw(st.integers(-2, 40)), posts)
    return csr_array(labels.astype(np.float32)), groups


@st.composite
def shares(draw: st.DrawFn) -> list[float]:
    weights = np.array([draw(st.integers(1, 9)) for _ in PARTS], dtype=np.float64)
    return list(weights / weights.sum())


@pytest.fixture(scope="module")
def zipf() -> csr_array:
    """400 posts with 60 tags whose counts fall as Zipf's law has it."""
    random = np.random.default_rng(0)
    frequencies = 0.9 / np.arange(1, 61) ** 0.8
    return csr_array((random.random((400, 60)) < frequencies).astype(np.float32))


@pytest.fixture
def old_scikit_multilearn() -> Iterator[None]:
    """scikit-multilearn builds its sparse rows by ways that SciPy calls inefficient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def deviation(parts: split.Parts, labels: csr_array) -> float:
    report = split.report(parts, labels, PARTS)
    return float(np.mean([report[part]["mean_deviation"] for part in PARTS]))


@pytest.mark.parametrize("method", ["stratified", "random"])
@settings(max_examples=60, deadline=None)
@given(matrices(), shares(), st.integers(0, 99))
def test_every_post_is_in_one_part_and_no_group_is_parted(
    method: str, drawn: tuple[csr_array, Groups], proportions: list[float], seed: int
) -> None:
    labels, groups = drawn
    parts = split.METHODS[method](labels, proportions, groups=groups, seed=seed)
    again = split.METHODS[method](labels, proportions, groups=groups, seed=seed)
    assert parts.shape == (labels.shape[0],)
    assert set(parts) <= {0, 1, 2}
    assert np.array_equal(parts, again)
    for group in np.unique(groups):
        assert len(set(parts[groups == group])) == 1


@pytest.mark.parametrize("method", split.METHODS)
def test_sizes_are_near_those_asked_for(
    zipf: csr_array, method: str, old_scikit_multilearn: None
) -> None:
    parts = split.METHODS[method](zipf, SHARES, seed=3)
    assert np.bincount(parts) / len(parts) == pytest.approx(SHARES, abs=0.03)


@pytest.mark.parametrize("method", split.METHODS)
def test_the_seed_decides(zipf: csr_array, method: str, old_scikit_multilearn: None) -> None:
    labels = zipf[:120]
    first, again, other = (split.METHODS[method](labels, SHARES, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_reference_leaves_the_global_generator_as_it_was(
    zipf: csr_array, old_scikit_multilearn: None
) -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    split.iterative(zipf[:50], SHARES, seed=1)
    assert np.random.random() == expected


def test_stratified_is_as_even_as_the_reference_and_evener_than_chance(
    zipf: csr_array, old_scikit_multilearn: None
) -> None:
    reference = deviation(split.iterative(zipf, SHARES, seed=0), zipf)
    ours = np.mean([deviation(split.stratified(zipf, SHARES, seed=s), zipf) for s in range(5)])
    chance = np.mean([deviation(split.random(zipf, SHARES, seed=s), zipf) for s in range(5)])
    assert ours <= reference * 1.05
    assert ours < chance / 2


def test_stratified_with_groups_keeps_sizes_and_is_evener_than_chance(zipf: csr_array) -> None:
    groups = np.random.default_rng(1).integers(0, 150, zipf.shape[0])
    ours, chance = (
        [method(zipf, SHARES, groups=groups, seed=seed) for seed in range(5)]
        for method in (split.stratified, split.random)
    )
    for parts in ours:
        assert np.bincount(parts) / len(parts) == pytest.approx(SHARES, abs=0.03)
    assert np.mean([deviation(parts, zipf) for parts in ours]) < 0.8 * np.mean(
        [deviation(parts, zipf) for parts in chance]
    )


def test_a_tag_on_ten_posts_is_dealt_out_in_its_proportions() -> None:
    labels = csr_array(np.eye(5, dtype=np.float32).repeat(10, axis=0))
    parts = split.stratified(labels, SHARES, seed=0)
    for tag in range(5):
        members = labels.toarray()[:, tag] > 0
        assert np.bincount(parts[members], minlength=3).tolist() == [8, 1, 1]


def test_a_tag_on_one_post_is_learnt_where_there_is_room() -> None:
    labels = csr_array(np.eye(10, 8, dtype=np.float32))  # two posts have no tag
    assert set(split.stratified(labels, SHARES, seed=0)[:8]) == {0}


def test_parts_have_the_sizes_asked_for() -> None:
    labels = csr_array(np.random.default_rng(0).random((1000, 40)) < 0.1)
    parts = split.stratified(labels, SHARES, seed=0)
    assert np.bincount(parts).tolist() == [800, 100, 100]


def test_posts_without_tags_are_dealt_out_by_size() -> None:
    parts = split.stratified(csr_array(np.zeros((100, 3), dtype=np.float32)), SHARES, seed=0)
    assert np.bincount(parts).tolist() == [80, 10, 10]


def test_one_large_group_goes_to_training() -> None:
    labels = csr_array(np.ones((20, 2), dtype=np.float32))
    groups = np.array([0] * 14 + list(range(1, 7)))
    for method in ("stratified", "random"):
        parts = split.METHODS[method](labels, SHARES, groups=groups, seed=4)
        assert set(parts[:14]) == {0}


def test_the_report_tells_sizes_and_deviations_by_hand() -> None:
    labels = csr_array(np.array([[1, 0], [1, 0], [1, 1], [1, 0]], dtype=np.float32))
    parts = np.array([0, 0, 1, 2], dtype=np.int8)
    report = split.report(parts, labels, PARTS)
    assert report["posts"] == 4
    assert report["train"] == {
        "posts": 2,
        "tags_without_post": 1,
        "mean_deviation": 0.25,  # none of the second tag, a half expected
        "worst_deviation": 0.5,
    }
    assert report["validation"]["worst_deviation"] == 0.75


def test_a_part_without_posts_or_without_tags_is_refused() -> None:
    labels = csr_array(np.array([[1], [1], [0]], dtype=np.float32))
    split.check(np.array([0, 1, 1], dtype=np.int8), labels, PARTS[:2])
    with pytest.raises(TaggerError, match=r"No post falls to test.*split\.test"):
        split.check(np.array([0, 1, 1], dtype=np.int8), labels, PARTS)
    with pytest.raises(TaggerError, match="No post of test has a tag"):
        split.check(np.array([0, 1, 2], dtype=np.int8), labels, PARTS)
