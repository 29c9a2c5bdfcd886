"""The balance of a split equals a count by hand, and any balance can be plotted."""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_array

from tagger.core import manifest
from tagger.core.manifest import SPLITS
from tagger.core.vocabulary import Tag
from tagger.split import balance
from tagger.split.balance import SplitBalance
from tagger.split.methods import Groups, SplitIndices

FRACTIONS = (0.8, 0.1, 0.1)


class Case(NamedTuple):
    labels: npt.NDArray[np.bool_]  # (posts, tags)
    splits: SplitIndices
    random: SplitIndices
    groups: Groups

    def measured(self) -> SplitBalance:
        return balance.measure(self.splits, csr_array(self.labels), FRACTIONS)

    def measured_random(self) -> SplitBalance:
        return balance.measure(self.random, csr_array(self.labels), FRACTIONS)

    def tags(self) -> list[Tag]:
        return [Tag(n, f"tag_{n}", (0, 4, 9)[n % 3], 0) for n in range(self.labels.shape[1])]

    def posts_in(self, split: int, tag: int) -> int:
        rows = zip(self.labels, self.splits, strict=True)
        return sum(bool(row[tag]) and p == split for row, p in rows)

    def deviation(self, split: int, tag: int) -> float:
        total = sum(bool(row[tag]) for row in self.labels)
        return abs(self.posts_in(split, tag) / total - FRACTIONS[split]) if total else 0.0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw labels, some tags on no post, and splits, some without a post."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, tags = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    labels = random.random((count, tags)) < random.choice([0.0, 0.1, 0.6, 1.0], tags)
    splits, others = random.integers(0, draw(st.integers(1, 3)), (2, count)).astype(np.int8)
    return Case(labels, splits, others, random.integers(-2, draw(st.integers(-1, 40)), count))


@settings(max_examples=100)
@given(cases())
def test_counts_and_deviations_equal_a_count_by_hand(case: Case) -> None:
    split_balance = case.measured()
    tags = range(case.labels.shape[1])
    assert split_balance.sizes.tolist() == [case.splits.tolist().count(split) for split in range(3)]
    assert split_balance.counts.tolist() == [
        [case.posts_in(split, t) for t in tags] for split in range(3)
    ]
    expected = [[case.deviation(split, tag) for tag in tags] for split in range(3)]
    assert split_balance.deviations == pytest.approx(np.array(expected))


@settings(max_examples=60)
@given(cases(), st.integers(1, 50))
def test_the_balance_does_not_depend_on_the_block_of_posts(case: Case, block_posts: int) -> None:
    whole = case.measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "BLOCK_POSTS", block_posts)
        blocks = case.measured()
    assert np.array_equal(blocks.counts, whole.counts)
    assert np.array_equal(blocks.sizes, whole.sizes)


@settings(max_examples=60)
@given(cases())
def test_the_report_summarizes_each_split(case: Case) -> None:
    report = balance.report(case.measured(), case.measured_random(), case.tags(), SPLITS)
    used = [tag for tag in range(case.labels.shape[1]) if case.labels[:, tag].any()]
    assert list(report) == list(SPLITS)
    for way, of in ((case, ""), (case._replace(splits=case.random), "_of_random")):
        for split, name in enumerate(SPLITS):
            deviations = [way.deviation(split, tag) for tag in used] or [0.0]
            mean = pytest.approx(np.mean(deviations), abs=1e-6)
            missing = sum(not way.posts_in(split, tag) for tag in range(case.labels.shape[1]))
            assert report[name]["mean_deviation" + of] == mean
            assert report[name]["tags_without_post" + of] == missing
            if not of:
                size = case.splits.tolist().count(split)
                assert report[name]["posts"] == size
                assert report[name]["fraction"] == pytest.approx(size / len(case.splits), abs=1e-6)
                assert report[name]["target"] == FRACTIONS[split]
                assert report[name]["worst_deviation"] == pytest.approx(max(deviations), abs=1e-6)


def test_the_report_of_a_small_split_is_as_by_hand() -> None:
    labels = csr_array(np.array([[1, 0], [1, 0], [1, 1], [1, 0]], dtype=np.float32))
    split_balance = balance.measure(
        np.array([0, 0, 1, 2], dtype=np.int8), labels, (0.5, 0.25, 0.25)
    )
    chance = balance.measure(np.array([1, 0, 0, 0], dtype=np.int8), labels, (0.5, 0.25, 0.25))
    tags = [Tag(1, "a", 0, 4), Tag(2, "b", 4, 1)]
    assert balance.report(split_balance, chance, tags, SPLITS)["train"] == {
        "posts": 2,
        "fraction": 0.5,
        "target": 0.5,
        "tags_without_post": 1,
        "mean_deviation": 0.25,  # none of the second tag, the target is a half
        "worst_deviation": 0.5,
        "mean_deviation_of_random": 0.375,
        "tags_without_post_of_random": 0,
    }
    assert list(balance.tag_rows(split_balance, tags)) == [
        ("a", "general", 4, 0.0, 2, 1, 1),
        ("b", "character", 1, 0.75, 0, 1, 0),
    ]
    assert list(balance.band_rows(split_balance, chance, SPLITS)) == [
        ("train", 1, 1, 0.5, 0.5, 1),
        ("train", 3, 1, 0.0, 0.25, 0),
        ("validation", 1, 1, 0.75, 0.25, 0),
        ("validation", 3, 1, 0.0, 0.0, 0),
        ("test", 1, 1, 0.25, 0.25, 1),
        ("test", 3, 1, 0.0, 0.25, 0),
    ]


@settings(max_examples=60)
@given(cases())
def test_rows_of_tags_add_up(case: Case) -> None:
    rows = list(balance.tag_rows(case.measured(), case.tags()))
    assert [row[0] for row in rows] == [tag.name for tag in case.tags()]
    for tag, (_, category, total, worst, *counts) in enumerate(rows):
        assert category == ("general", "character", "rating")[tag % 3]
        assert counts == [case.posts_in(split, tag) for split in range(3)]
        assert total == sum(counts) == case.labels[:, tag].sum()
        assert worst == pytest.approx(max(case.deviation(p, tag) for p in range(3)), abs=1e-6)


@settings(max_examples=60)
@given(cases())
def test_each_tag_in_use_is_in_one_band_of_each_split(case: Case) -> None:
    totals = case.labels.sum(axis=0)
    rows = list(balance.band_rows(case.measured(), case.measured_random(), SPLITS))
    for split, name in enumerate(SPLITS):
        mine = [row for row in rows if row[0] == name]
        starts = [row[1] for row in mine]
        assert starts == sorted(set(starts))
        assert sum(row[2] for row in mine) == (totals > 0).sum()
        for _, low, count, mean, _, missing in mine:
            high = {1: 3, 3: 10, 10: 30, 30: 100}[low]
            members = np.flatnonzero((totals >= low) & (totals < high)).tolist()
            assert count == len(members) > 0
            deviations = [case.deviation(split, tag) for tag in members]
            assert mean == pytest.approx(np.mean(deviations), abs=1e-6)
            assert missing == sum(not case.posts_in(split, tag) for tag in members)


def test_bands_have_no_upper_limit() -> None:
    counts = np.array([[1, 2, 3, 999, 1_000, 999_999, 1_000_000, 5_000_000_000]])
    split_balance = SplitBalance(np.array([9]), np.ones(1), counts)
    members = [
        (low, split_balance.totals[inside].tolist())
        for low, inside in balance.frequency_bands(split_balance)
    ]
    assert members == [
        (1, [1, 2]),
        (3, [3]),
        (300, [999]),
        (1_000, [1_000]),
        (100_000, [999_999]),
        (1_000_000, [1_000_000, 5_000_000_000]),
    ]


@settings(max_examples=60)
@given(cases())
def test_divided_groups_are_counted(case: Case) -> None:
    members: dict[int, list[int]] = {}
    for group, split in zip(case.groups.tolist(), case.splits.tolist(), strict=True):
        members.setdefault(group, []).append(split)
    assert balance.group_counts(case.splits, case.groups) == {
        "of_several_posts": sum(len(splits) > 1 for splits in members.values()),
        "divided": sum(len(set(splits)) > 1 for splits in members.values()),
    }


ODD = {
    "one tag": ([[1], [1], [1]], [0, 1, 2]),
    "one post of each tag": (np.eye(3), [0, 1, 2]),
    "a split without a tag": ([[1, 1], [1, 0], [1, 0]], [0, 1, 2]),
    "tags on no post": ([[1, 0, 0]] * 3, [0, 1, 2]),
    "a split without a post": ([[1, 1]] * 3, [0, 1, 1]),
    "no deviation at all": ([[1]] * 10, [0] * 8 + [1, 2]),
}


@pytest.mark.parametrize("name", ODD)
def test_any_balance_can_be_plotted(name: str) -> None:
    labels, splits = ODD[name]
    split_balance = balance.measure(
        np.array(splits, dtype=np.int8), csr_array(np.array(labels, dtype=np.bool_)), FRACTIONS
    )
    plot = io.BytesIO()
    balance.plot(split_balance, split_balance, SPLITS).savefig(plot, format="png")
    with Image.open(plot) as image:
        assert image.size == (1300, 400)
        assert len(set(image.convert("L").tobytes())) > 10
