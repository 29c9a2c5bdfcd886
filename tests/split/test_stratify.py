"""A stratified split holds every post once, whole groups, and sizes and tags near the targets."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, csr_matrix

from tagger.split import methods, stratify
from tagger.split.methods import Groups, SplitIndices
from tagger.system import jit

Bools = npt.NDArray[np.bool_]

FRACTIONS = (0.8, 0.1, 0.1)


class Task(NamedTuple):
    """Labels to split, (posts, tags), and the fractions."""

    labels: Bools
    groups: Groups | None  # (posts,)
    fractions: list[float]

    def splits(self, labels: Any = None, *, seed: int = 0, order: int = 1) -> SplitIndices:
        if labels is None:
            labels = csr_array(self.labels)
        return methods.stratified(
            labels, self.fractions, groups=self.groups, seed=seed, order=order
        )


def fractions_of(weights: Any) -> list[float]:
    return list(np.asarray(weights) / np.sum(weights))


@st.composite
def tasks(draw: st.DrawFn, single: bool | None = None) -> Task:
    """Draw one to six splits and at least as many groups, some large, and posts without a tag."""
    fractions = fractions_of(draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)))
    posts, tags = draw(st.integers(len(fractions), 50)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = random.random((posts, tags)) < draw(st.floats(0, 0.7))
    if draw(st.booleans()) if single is None else single:
        return Task(labels, None, fractions)
    further = random.integers(0, draw(st.integers(1, 50)), posts - len(fractions))
    numbers = random.permutation(100)[:50] - 30  # neither from 0 on nor without a gap
    groups = numbers[random.permutation([*range(len(fractions)), *further])]
    return Task(labels, groups, fractions)


def planted(seed: int) -> Task | None:
    """Return posts in which each tag can be in every split, for they were made split by split."""
    random = np.random.default_rng(seed)
    posts, tags = random.integers(10, 60), random.integers(1, 12)
    fractions = fractions_of(random.integers(1, 10, random.integers(2, 5)))
    places = (np.arange(posts) + 0.5) / posts
    part_of = random.permutation(np.searchsorted(np.cumsum(fractions)[:-1], places))
    if np.bincount(part_of, minlength=len(fractions)).min() < 3 * tags:
        return None
    labels = random.random((posts, tags)) < 0.3 * random.random()
    for split in range(len(fractions)):
        members = np.flatnonzero(part_of == split)
        for tag in np.flatnonzero(~labels[members].any(axis=0)):
            labels[random.choice(members), tag] = True
    return Task(labels, None, fractions)


def largest(groups: Groups | None) -> int:
    return 1 if groups is None else int(np.unique(groups, return_counts=True)[1].max())


def assert_whole(splits: SplitIndices, task: Task) -> None:
    """Each post has one split, no group has two, each size is within the largest group."""
    assert splits.shape == (len(task.labels),)
    assert set(splits.tolist()) <= set(range(len(task.fractions)))
    if task.groups is not None:
        for group in np.unique(task.groups):
            assert len(set(splits[task.groups == group])) == 1
    off = np.bincount(splits, minlength=len(task.fractions)) - np.multiply(
        task.fractions, len(splits)
    )
    assert np.abs(off).max() <= largest(task.groups) + 1e-9


def missing(splits: SplitIndices, task: Task) -> int:
    """Return how many times a split has no post of a tag."""
    return sum(
        int((~task.labels[splits == p].any(axis=0)).sum()) for p in range(len(task.fractions))
    )


@settings(max_examples=300)
@given(tasks(), st.integers(0, 2**40), st.sampled_from([1, 2]))
def test_every_post_has_one_split_groups_stay_whole_and_sizes_are_near(
    task: Task, seed: int, order: int
) -> None:
    assert_whole(task.splits(seed=seed, order=order), task)


@settings(max_examples=200)
@given(tasks(single=True), st.integers(0, 99))
def test_single_posts_fill_each_split_to_the_post(task: Task, seed: int) -> None:
    sizes = np.bincount(task.splits(seed=seed), minlength=len(task.fractions))
    assert sizes == pytest.approx(np.multiply(task.fractions, len(task.labels)), abs=1 + 1e-9)


@settings(max_examples=60)
@given(tasks(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_groups_stay_whole_whatever_the_order_of_tags(task: Task, seed: int, random: Any) -> None:
    columns = list(range(task.labels.shape[1]))
    random.shuffle(columns)
    turned = task._replace(labels=task.labels[:, columns])
    assert_whole(turned.splits(seed=seed), turned)


@settings(max_examples=60)
@given(tasks(), st.integers(0, 99), st.sampled_from([1, 2]))
def test_the_same_arguments_give_the_same_splits(task: Task, seed: int, order: int) -> None:
    assert np.array_equal(task.splits(seed=seed, order=order), task.splits(seed=seed, order=order))


@pytest.mark.parametrize("grouped", [False, True])
def test_another_seed_gives_other_splits(grouped: bool) -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 60, 120) if grouped else None
    task = Task(random.random((120, 20)) < 0.2, groups, list(FRACTIONS))
    assert len({task.splits(seed=seed).tobytes() for seed in range(6)}) == 6


def messy(labels: Bools, random: np.random.Generator) -> csr_array:
    """Return the labels with entries out of order, some twice, and zeros among them."""
    columns: list[int] = []
    data: list[float] = []
    starts = [0]
    for row in labels:
        entries = [(int(tag), 0.5) for tag in np.flatnonzero(row)]
        entries += [entry for entry in entries if random.random() < 0.5]
        entries += [(int(tag), 0.0) for tag in range(len(row)) if random.random() < 0.5]
        random.shuffle(entries)
        columns += [column for column, _ in entries]
        data += [value for _, value in entries]
        starts.append(len(data))
    return csr_array((np.array(data), np.array(columns, int), starts), shape=labels.shape)


def contents(labels: Any) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in (labels.data, labels.indices, labels.indptr))


@settings(max_examples=60)
@given(tasks(), st.integers(0, 99), st.sampled_from([1, 2]))
def test_labels_mean_the_same_however_stored_and_stay_as_they_are(
    task: Task, seed: int, order: int
) -> None:
    expected = task.splits(seed=seed, order=order)
    stored = [kind(task.labels.astype(d)) for kind in (csr_array, csr_matrix) for d in "?ifd"]
    for labels in (*stored, messy(task.labels, np.random.default_rng(seed))):
        before = contents(labels)
        assert np.array_equal(task.splits(labels, seed=seed, order=order), expected)
        assert contents(labels) == before


def test_a_tag_on_enough_posts_is_in_every_split() -> None:
    """Not so for every set of posts: single moves may not get there, but these they do."""
    instances = [task for seed in range(1500) if (task := planted(seed))]
    assert len(instances) > 150
    for seed, task in enumerate(instances):
        assert missing(task.splits(seed=seed), task) == 0


def test_a_tag_on_enough_posts_is_in_every_split_in_any_order_of_tags() -> None:
    instances = [task for seed in range(1500, 2000) if (task := planted(seed))]
    for seed, task in enumerate(instances):
        columns = np.random.default_rng(seed).permutation(task.labels.shape[1])
        turned = task._replace(labels=task.labels[:, columns])
        assert missing(turned.splits(seed=seed), turned) == 0


def test_compiled_and_interpreted_splits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels = csr_array(random.random((150, 30)) < 0.15)
    numbers = random.integers(0, 70, 150)
    choices = jit.compiled_if_long, lambda function, _: jit.compiled(function)
    for fractions in (FRACTIONS, (1.0,), (0.3, 0.25, 0.2, 0.15, 0.1)):
        for groups, order in ((None, 1), (numbers, 1), (None, 2), (numbers, 2)):
            splits = []
            for choice in choices:
                monkeypatch.setattr(stratify, "compiled_if_long", choice)
                arguments: Any = {"groups": groups, "seed": 5, "order": order}
                splits.append(methods.stratified(labels, fractions, **arguments))
            assert np.array_equal(splits[0], splits[1])


def test_a_tag_on_ten_posts_is_split_by_the_fractions() -> None:
    labels = csr_array(np.eye(5, dtype=np.float32).repeat(10, axis=0))
    splits = methods.stratified(labels, FRACTIONS, seed=0)
    for tag in range(5):
        members = labels.toarray()[:, tag] > 0
        assert np.bincount(splits[members], minlength=3).tolist() == [8, 1, 1]


def test_a_tag_on_one_post_goes_to_training_if_there_is_room() -> None:
    labels = csr_array(np.eye(10, 8, dtype=np.float32))  # two posts have no tag
    for seed in range(20):
        assert set(methods.stratified(labels, FRACTIONS, seed=seed)[:8]) == {0}


def test_posts_without_tags_are_split_by_size() -> None:
    splits = methods.stratified(csr_array(np.zeros((100, 3), dtype=np.float32)), FRACTIONS, seed=0)
    assert np.bincount(splits).tolist() == [80, 10, 10]


def test_one_large_group_goes_to_training() -> None:
    labels = csr_array(np.ones((20, 2), dtype=np.float32))
    groups = np.array([0] * 14 + list(range(1, 7)))
    for seed in range(20):
        assert set(methods.stratified(labels, FRACTIONS, groups=groups, seed=seed)[:14]) == {0}
