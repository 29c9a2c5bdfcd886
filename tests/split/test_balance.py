"""The balance of a split is what a count by hand gives, and any of it can be drawn."""

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

SHARES = (0.8, 0.1, 0.1)


class Case(NamedTuple):
    labels: npt.NDArray[np.bool_]  # (posts, tags)
    parts: SplitIndices
    chance: SplitIndices
    groups: Groups

    def measured(self) -> SplitBalance:
        return balance.measure(self.parts, csr_array(self.labels), SHARES)

    def by_chance(self) -> SplitBalance:
        return balance.measure(self.chance, csr_array(self.labels), SHARES)

    def tags(self) -> list[Tag]:
        return [Tag(n, f"tag_{n}", (0, 4, 9)[n % 3], 0) for n in range(self.labels.shape[1])]

    def posts_in(self, part: int, tag: int) -> int:
        rows = zip(self.labels, self.parts, strict=True)
        return sum(bool(row[tag]) and p == part for row, p in rows)

    def deviation(self, part: int, tag: int) -> float:
        total = sum(bool(row[tag]) for row in self.labels)
        return abs(self.posts_in(part, tag) / total - SHARES[part]) if total else 0.0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw labels, some tags on no post, and parts, some without a post."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, tags = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    labels = random.random((count, tags)) < random.choice([0.0, 0.1, 0.6, 1.0], tags)
    parts, chance = random.integers(0, draw(st.integers(1, 3)), (2, count)).astype(np.int8)
    return Case(labels, parts, chance, random.integers(-2, draw(st.integers(-1, 40)), count))


@settings(max_examples=100)
@given(cases())
def test_counts_and_deviations_are_those_by_hand(case: Case) -> None:
    found = case.measured()
    tags = range(case.labels.shape[1])
    assert found.sizes.tolist() == [case.parts.tolist().count(part) for part in range(3)]
    assert found.counts.tolist() == [[case.posts_in(part, t) for t in tags] for part in range(3)]
    expected = [[case.deviation(part, tag) for tag in tags] for part in range(3)]
    assert found.deviations == pytest.approx(np.array(expected))


@settings(max_examples=60)
@given(cases(), st.integers(1, 50))
def test_counted_by_a_few_posts_at_a_time_it_is_the_same(case: Case, at_a_time: int) -> None:
    whole = case.measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "BLOCK_POSTS", at_a_time)
        blocks = case.measured()
    assert np.array_equal(blocks.counts, whole.counts)
    assert np.array_equal(blocks.sizes, whole.sizes)


@settings(max_examples=60)
@given(cases())
def test_the_report_sums_up_each_part(case: Case) -> None:
    report = balance.report(case.measured(), case.by_chance(), case.tags(), SPLITS)
    used = [tag for tag in range(case.labels.shape[1]) if case.labels[:, tag].any()]
    assert list(report) == list(SPLITS)
    for way, of in ((case, ""), (case._replace(parts=case.chance), "_of_random")):
        for part, name in enumerate(SPLITS):
            deviations = [way.deviation(part, tag) for tag in used] or [0.0]
            mean = pytest.approx(np.mean(deviations), abs=1e-6)
            missing = sum(not way.posts_in(part, tag) for tag in range(case.labels.shape[1]))
            assert report[name]["mean_deviation" + of] == mean
            assert report[name]["tags_without_post" + of] == missing
            if not of:
                size = case.parts.tolist().count(part)
                assert report[name]["posts"] == size
                assert report[name]["share"] == pytest.approx(size / len(case.parts), abs=1e-6)
                assert report[name]["wanted"] == SHARES[part]
                assert report[name]["worst_deviation"] == pytest.approx(max(deviations), abs=1e-6)


def test_the_report_tells_sizes_and_deviations_by_hand() -> None:
    labels = csr_array(np.array([[1, 0], [1, 0], [1, 1], [1, 0]], dtype=np.float32))
    found = balance.measure(np.array([0, 0, 1, 2], dtype=np.int8), labels, (0.5, 0.25, 0.25))
    chance = balance.measure(np.array([1, 0, 0, 0], dtype=np.int8), labels, (0.5, 0.25, 0.25))
    tags = [Tag(1, "a", 0, 4), Tag(2, "b", 4, 1)]
    assert balance.report(found, chance, tags, SPLITS)["train"] == {
        "posts": 2,
        "share": 0.5,
        "wanted": 0.5,
        "tags_without_post": 1,
        "mean_deviation": 0.25,  # none of the second tag, a half wanted
        "worst_deviation": 0.5,
        "mean_deviation_of_random": 0.375,
        "tags_without_post_of_random": 0,
    }
    assert list(balance.tag_rows(found, tags)) == [
        ("a", "general", 4, 0.0, 2, 1, 1),
        ("b", "character", 1, 0.75, 0, 1, 0),
    ]
    assert list(balance.band_rows(found, chance, SPLITS)) == [
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
        assert counts == [case.posts_in(part, tag) for part in range(3)]
        assert total == sum(counts) == case.labels[:, tag].sum()
        assert worst == pytest.approx(max(case.deviation(p, tag) for p in range(3)), abs=1e-6)


@settings(max_examples=60)
@given(cases())
def test_each_tag_in_use_is_in_one_band_of_each_part(case: Case) -> None:
    totals = case.labels.sum(axis=0)
    rows = list(balance.band_rows(case.measured(), case.by_chance(), SPLITS))
    for part, name in enumerate(SPLITS):
        mine = [row for row in rows if row[0] == name]
        starts = [row[1] for row in mine]
        assert starts == sorted(set(starts))
        assert sum(row[2] for row in mine) == (totals > 0).sum()
        for _, low, count, mean, _, missing in mine:
            high = {1: 3, 3: 10, 10: 30, 30: 100}[low]
            members = np.flatnonzero((totals >= low) & (totals < high)).tolist()
            assert count == len(members) > 0
            deviations = [case.deviation(part, tag) for tag in members]
            assert mean == pytest.approx(np.mean(deviations), abs=1e-6)
            assert missing == sum(not case.posts_in(part, tag) for tag in members)


def test_bands_know_no_largest_tag() -> None:
    counts = np.array([[1, 2, 3, 999, 1_000, 999_999, 1_000_000, 5_000_000_000]])
    found = SplitBalance(np.array([9]), np.ones(1), counts)
    members = [
        (low, found.totals[inside].tolist()) for low, inside in balance.frequency_bands(found)
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
def test_groups_are_counted_and_parted_ones_found(case: Case) -> None:
    members: dict[int, list[int]] = {}
    for group, part in zip(case.groups.tolist(), case.parts.tolist(), strict=True):
        members.setdefault(group, []).append(part)
    assert balance.group_counts(case.parts, case.groups) == {
        "of_several": sum(len(parts) > 1 for parts in members.values()),
        "parted": sum(len(set(parts)) > 1 for parts in members.values()),
    }


ODD = {
    "one tag": ([[1], [1], [1]], [0, 1, 2]),
    "one post of each tag": (np.eye(3), [0, 1, 2]),
    "a part with nothing of a tag": ([[1, 1], [1, 0], [1, 0]], [0, 1, 2]),
    "tags on no post": ([[1, 0, 0]] * 3, [0, 1, 2]),
    "a part without a post": ([[1, 1]] * 3, [0, 1, 1]),
    "no deviation at all": ([[1]] * 10, [0] * 8 + [1, 2]),
}


@pytest.mark.parametrize("name", ODD)
def test_any_balance_can_be_drawn(name: str) -> None:
    labels, parts = ODD[name]
    found = balance.measure(
        np.array(parts, dtype=np.int8), csr_array(np.array(labels, dtype=np.bool_)), SHARES
    )
    drawn = io.BytesIO()
    balance.plot(found, found, SPLITS).savefig(drawn, format="png")
    with Image.open(drawn) as image:
        assert image.size == (1300, 400)
        assert len(set(image.convert("L").tobytes())) > 10
