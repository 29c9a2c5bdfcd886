"""Batches follow from seed and number alone; unlabelled categories are unknown."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.images import loader
from tagger.images.augment import Augmentation
from tagger.images.dataset import ImageDataset, Sample, SampleKey, Split
from tagger.images.loader import Batch, Collate, ResumableBatchSampler
from tagger.images.preprocess import Preprocess

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LENGTH, SIZE = st.integers(1, 200), st.integers(1, 50)
SEED = st.none() | st.integers(0, 2**32)


def rows(batches: Sequence[Sequence[SampleKey]]) -> list[int]:
    return [key.row for key in chain.from_iterable(batches)]


def equal(batches: Sequence[Batch], others: Sequence[Batch]) -> bool:
    return len(batches) == len(others) and all(
        batch.rows == other.rows
        and torch.equal(batch.pixels, other.pixels)
        and torch.equal(batch.targets, other.targets)
        and batch.failures == other.failures
        for batch, other in zip(batches, others, strict=True)
    )


@given(LENGTH, SIZE, SEED, st.booleans(), st.integers(0, 60), st.integers(0, 30), st.integers(1, 3))
def test_batches_from_any_number_equal_those_of_an_uninterrupted_training(
    length: int, size: int, seed: int | None, whole: bool, start: int, count: int, ranks: int
) -> None:
    """A training goes on after a break as if there had been none."""
    sizes, share = (16, 24, 32), (ranks - 1, ranks)

    def order(batches: range) -> ResumableBatchSampler:
        return ResumableBatchSampler(
            length,
            size,
            seed,
            sizes=sizes,
            drop_last=whole,
            batch_numbers=batches,
            rank_and_size=share,
        )

    whole_training = list(order(range(start + count)))
    assert list(order(range(start, start + count))) == whole_training[start:]
    assert len(order(range(start, start + count))) == count == len(whole_training[start:])


@given(LENGTH, SIZE, SEED, st.integers(1, 7), st.booleans())
def test_processes_share_each_batch_without_overlap(
    length: int, size: int, seed: int | None, ranks: int, whole: bool
) -> None:
    def order(rank: int, ranks: int) -> ResumableBatchSampler:
        share, batches = (rank, ranks), range(2, 9)
        return ResumableBatchSampler(
            length,
            size,
            seed,
            sizes=(16, 32),
            drop_last=whole,
            batch_numbers=batches,
            rank_and_size=share,
        )

    shares = zip(*(order(rank, ranks) for rank in range(ranks)), strict=True)
    for batch, parts in zip(order(0, 1), shares, strict=True):
        lengths = [len(part) for part in parts]
        assert len(set(batch)) == len(batch)
        assert set(chain.from_iterable(parts)) == set(batch)
        assert sum(lengths) == max(len(batch), ranks)  # none is without a image
        assert max(lengths) - min(lengths) <= 1


@given(LENGTH, SIZE, SEED, st.integers(0, 1000))
def test_every_epoch_is_a_permutation(length: int, size: int, seed: int | None, epoch: int) -> None:
    per_epoch = ResumableBatchSampler(length, size).batches_per_epoch
    assert per_epoch == -(-length // size)
    first = epoch * per_epoch
    batches = list(
        ResumableBatchSampler(length, size, seed, batch_numbers=range(first, first + per_epoch))
    )
    assert sorted(rows(batches)) == list(range(length))
    assert {key.epoch for batch in batches for key in batch} == {epoch}
    assert all(len(batch) == size for batch in batches[:-1])


@given(LENGTH, SIZE, st.integers(0, 2**32))
def test_drop_last_leaves_full_batches_unless_there_are_none(
    length: int, size: int, seed: int
) -> None:
    batches = list(ResumableBatchSampler(length, size, seed, drop_last=True))
    assert [len(batch) for batch in batches] == [size] * (length // size) or [length]
    assert len(set(rows(batches))) == len(rows(batches))


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [
        tuple(
            rows(list(ResumableBatchSampler(50, 50, seed, batch_numbers=range(epoch, epoch + 1))))
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_drop_last_skips_other_images_in_each_epoch() -> None:
    epochs = [
        set(
            rows(
                list(
                    ResumableBatchSampler(
                        24, 10, 0, drop_last=True, batch_numbers=range(2 * epoch, 2 * epoch + 2)
                    )
                )
            )
        )
        for epoch in range(5)
    ]
    assert {len(epoch) for epoch in epochs} == {20}
    assert set.union(*epochs) == set(range(24))


def test_without_a_seed_the_order_is_that_of_the_rows() -> None:
    assert list(ResumableBatchSampler(3, 2)) == [
        [SampleKey(0, 0), SampleKey(0, 1)],
        [SampleKey(0, 2)],
    ]


def test_no_images_make_no_batches() -> None:
    assert (
        list(ResumableBatchSampler(0, 4, 0))
        == list(ResumableBatchSampler(0, 4, drop_last=True))
        == []
    )


def test_every_size_is_drawn_and_each_batch_has_one_on_all_processes(split: Split) -> None:
    def order(batches: range, rank: int = 0) -> list[list[SampleKey]]:
        sizes = (16, 24, 32)
        return list(
            ResumableBatchSampler(
                200, 8, seed=0, sizes=sizes, batch_numbers=batches, rank_and_size=(rank, 2)
            )
        )

    batches = order(range(25))
    assert all(len({key.size for key in batch}) == 1 for batch in batches)
    drawn = [batch[0].size for batch in batches]
    assert set(drawn) == {16, 24, 32}
    assert [batch[0].size for batch in order(range(25), rank=1)] == drawn
    assert [batch[0].size for batch in order(range(25, 50))] != drawn

    sampler = ResumableBatchSampler(len(split), 3, seed=0, sizes=(16, 24, 32))
    loaded = loader.build_loader(ImageDataset(split, PREPROCESS), sampler, workers=0)
    for batch, keys in zip(loaded, sampler, strict=True):
        assert batch.pixels.shape == (3, keys[0].size, keys[0].size, 3)


@pytest.mark.parametrize("batches", [range(8), range(3, 11)])
def test_batches_are_the_same_with_and_without_workers(split: Split, batches: range) -> None:
    images = ImageDataset(split, PREPROCESS, Augmentation(3, 0.5, 0.5))
    groups = [np.arange(3), np.array([], dtype=np.int64)]
    results = []
    for workers in (0, 2):
        order = ResumableBatchSampler(len(split), 7, seed=3, sizes=(16, 24), batch_numbers=batches)
        results.append(list(loader.build_loader(images, order, workers=workers, unlabelled=groups)))
    assert equal(*results)
    assert len(results[0]) == 8
    assert len({tuple(batch.rows) for batch in results[0]}) == 8  # of two epochs


def test_a_loader_that_starts_late_gives_the_same_bits(split: Split) -> None:
    images = ImageDataset(split, PREPROCESS, Augmentation(3, 0.5, 0.5))

    def load(batches: range) -> list[Batch]:
        order = ResumableBatchSampler(len(split), 7, seed=3, drop_last=True, batch_numbers=batches)
        return list(loader.build_loader(images, order, workers=0))

    assert equal(load(range(5, 9)), load(range(9))[5:])


@pytest.mark.parametrize(
    ("size", "whole", "batches"), [(7, False, 4), (7, True, 3), (100, True, 1), (24, True, 1)]
)
def test_drop_last_skips_only_an_incomplete_last_batch(
    split: Split, size: int, whole: bool, batches: int
) -> None:
    images = ImageDataset(split, PREPROCESS)
    loaded = loader.build_loader(
        images, ResumableBatchSampler(24, size, drop_last=whole), workers=0
    )
    assert len(list(loaded)) == len(loaded) == batches


TAGS = 9
LABELS = st.lists(st.sets(st.integers(0, TAGS - 1)), max_size=6)


@given(LABELS, st.lists(st.integers(0, 3), min_size=TAGS, max_size=TAGS))
def test_a_group_without_a_tag_of_an_image_is_unknown_and_nothing_else(
    labels: list[set[int]], group_of: list[int]
) -> None:
    groups = [{tag for tag in range(TAGS) if group_of[tag] == group} for group in range(3)]
    pixels = np.zeros((2, 2, 3), np.uint8)
    samples = [
        Sample(row, pixels, np.array(sorted(has), np.int32), []) for row, has in enumerate(labels)
    ]
    columns = tuple(np.array(sorted(group), np.int64) for group in groups)
    targets = Collate(TAGS, columns)(samples).targets
    assert targets.shape == (len(labels), TAGS)
    for has, row in zip(labels, targets.tolist(), strict=True):
        unknown = set().union(*(group for group in groups if not group & has))
        assert [tag for tag in range(TAGS) if row[tag] == 1] == sorted(has)
        assert {tag for tag in range(TAGS) if row[tag] == -1} == unknown


def test_unlabelled_categories_are_unknown_for_images_without_them(
    split: Split, tags: list[Tag]
) -> None:
    groups = {
        category: np.flatnonzero([CATEGORIES[tag.category] == category for tag in tags])
        for category in ("rating", "artist")
    }
    images, order = ImageDataset(split, PREPROCESS), ResumableBatchSampler(len(split), len(split))
    batches = loader.build_loader(images, order, workers=0, unlabelled=list(groups.values()))
    (batch,) = batches
    truth = torch.from_numpy(split.labels.toarray())
    unknown = torch.zeros_like(truth)
    without = ~truth[:, groups["artist"]].any(dim=1)
    unknown[np.ix_(without.numpy(), groups["artist"])] = True
    assert 0 < without.sum() < len(split)
    assert truth[:, groups["rating"]].any(dim=1).all()
    assert torch.equal(batch.targets == -1, unknown)
    assert torch.equal(batch.targets == 1, truth)
