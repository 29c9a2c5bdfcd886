"""What a vocabulary covers, counted again post by post, and drawn whatever the data."""

import io
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.sparse import csr_array

from tagger.core import manifest
from tagger.core.vocabulary import CATEGORIES, Tag, sort_tags
from tagger.data.tags import coverage
from tagger.data.tags.coverage import Coverage
from tagger.data.tags.select import COUNT, EXCLUDED, Selection

Case = tuple[Selection, list[Tag], npt.NDArray[np.bool_]]


def chosen(seen: list[Tag], kept: set[str]) -> Selection:
    """Return a selection of these names; the other tags on a post are dropped."""
    present = sort_tags(tag for tag in seen if tag.count)
    return Selection(
        kept=[tag for tag in present if tag.name in kept],
        dropped=[(tag, EXCLUDED) for tag in present if tag.name not in kept],
        unseen_names=[],
        unmatched_globs=[],
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw labels, (posts, tags), and which of the tags, in any order, are kept."""
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = random.random(shape) < draw(st.floats(0.05, 0.9))
    labels[0, 0] = True
    codes = random.choice([*CATEGORIES], shape[1]).tolist()
    counts = labels.sum(axis=0).tolist()
    seen = [Tag(-1, f"tag_{i}", codes[i], counts[i]) for i in range(shape[1])]
    names = {tag.name for tag in seen[1:] if draw(st.booleans())}
    return chosen(seen, names | {"tag_0"}), seen, labels


def tags_left(found: Selection, seen: list[Tag], labels: npt.NDArray[np.bool_]) -> list[list[Tag]]:
    """Return the tags kept of each post."""
    return [[seen[i] for i in np.flatnonzero(post) if seen[i] in found.kept] for post in labels]


def measured(case: Case) -> Coverage:
    found, seen, labels = case
    return coverage.measure_coverage(found, seen, csr_array(labels))


@settings(max_examples=100)
@given(cases())
def test_what_is_left_is_what_counting_by_hand_says(case: Case) -> None:
    left = tags_left(*case)
    covered = measured(case)
    per_post = Counter(map(len, left))
    assert covered.posts_by_tag_count.tolist() == [
        per_post[size] for size in range(max(per_post) + 1)
    ]
    assert covered.posts_by_tag_count.sum() == len(case[2])
    of_category = Counter(code for post in left for code in {tag.category for tag in post})
    assert covered.posts_by_category == {CATEGORIES[code]: n for code, n in of_category.items()}


@settings(max_examples=100)
@given(cases())
def test_the_report_says_what_counting_by_hand_says(case: Case) -> None:
    found, seen, labels = case
    left = tags_left(*case)
    told = json.loads(json.dumps(coverage.summarize(found, measured(case))))
    kept = {code: [tag for tag in found.kept if tag.category == code] for code in CATEGORIES}
    assert told == {
        "seen": int(labels.any(axis=0).sum()),
        "kept": len(found.kept),
        "dropped": {EXCLUDED: len(found.dropped)} if found.dropped else {},
        "label_coverage": round(sum(map(len, left)) / int(labels.sum()), 6),
        "posts_without_tag": left.count([]),
        "categories": {
            name: {
                "seen": sum(tag.category == code and tag.count > 0 for tag in seen),
                "kept": len(kept[code]),
                "post_coverage": round(
                    sum(any(tag in kept[code] for tag in post) for post in left) / len(left), 6
                ),
            }
            for code, name in CATEGORIES.items()
            if kept[code]
        },
        "without_post": [],
        "globs_without_tag": [],
    }


@settings(max_examples=50)
@given(cases(), st.integers(1, 30))
def test_some_posts_at_a_time_give_the_same(case: Case, posts_at_a_time: int) -> None:
    whole = measured(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "_AT_A_TIME", posts_at_a_time)
        parts = measured(case)
    assert parts.posts_by_tag_count.tolist() == whole.posts_by_tag_count.tolist()
    assert parts.posts_by_category == whole.posts_by_category


def test_a_category_that_a_list_gives_is_the_one_that_counts() -> None:
    seen = [Tag(1, "miku", 0, 2), Tag(2, "hair", 0, 1)]
    found = Selection([seen[1], Tag(1, "miku", 4, 2)], [], [], [])
    covered = coverage.measure_coverage(
        found, seen, csr_array(np.array([[1, 1], [1, 0]], dtype=bool))
    )
    assert covered.posts_by_category == {"general": 1, "character": 2}
    assert covered.posts_by_tag_count.tolist() == [0, 1, 1]


def test_what_is_unknown_or_idle_is_reported() -> None:
    seen = [Tag(1, "a", 0, 3), Tag(2, "b", 0, 1), Tag(3, "c", 4, 1), Tag(4, "d", 4, 1)]
    dropped = [(seen[1], COUNT), (seen[2], EXCLUDED), (seen[3], EXCLUDED)]
    found = Selection(seen[:1], dropped, ["miku"], ["*_(cosplay)"])
    told = coverage.summarize(found, Coverage(np.array([2, 3]), {"general": 3}))
    assert list(told["dropped"].items()) == [(EXCLUDED, 2), (COUNT, 1)]
    assert told["without_post"] == ["miku"]
    assert told["globs_without_tag"] == ["*_(cosplay)"]
    assert told["posts_without_tag"] == 2
    assert told["categories"] == {"general": {"seen": 2, "kept": 1, "post_coverage": 0.6}}


@settings(max_examples=100)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=600).filter(any))
def test_the_labels_of_the_most_frequent_tags_rise_to_all(counts: list[int]) -> None:
    rows = coverage.coverage_by_size([Tag(-1, str(i), 0, count) for i, count in enumerate(counts)])
    assert rows[0][0] == 1
    assert rows[-1] == (len(counts), 1.0)
    assert all(a < b and x <= y for (a, x), (b, y) in pairwise(rows))
    falling = sorted(counts, reverse=True)
    assert rows == [(size, round(sum(falling[:size]) / sum(counts), 6)) for size, _ in rows]


def test_few_tags_each_have_a_row_and_many_some_two_hundred() -> None:
    few, many = ([Tag(-1, "a", 0, 1)] * tags for tags in (20, 50_000))
    assert [size for size, _ in coverage.coverage_by_size(few)] == list(range(1, 21))
    assert 100 < len(coverage.coverage_by_size(many)) <= 200


def odd(*tags: tuple[int, int], kept: int, per_post: list[int]) -> tuple[Selection, Coverage]:
    """Return a selection of the first of some tags, by category and count, and what it covers."""
    seen = [Tag(i, f"tag_{i}", *tag) for i, tag in enumerate(tags)]
    found = chosen(seen, {tag.name for tag in seen[:kept]})
    return found, Coverage(np.array(per_post, dtype=np.int64), {})


ODD: dict[str, tuple[Selection, Coverage]] = {
    "one tag on one post": odd((0, 1), kept=1, per_post=[0, 1]),
    "one tag on very many posts": odd((0, 10**9), kept=1, per_post=[0, 10**9]),
    "nothing dropped": odd((9, 30), (0, 20), (4, 3), kept=3, per_post=[0, 5, 20]),
    "one category": odd(*[(4, 9)] * 40, kept=20, per_post=[3, 9, 9]),
    "every category": odd(*[(code, 2) for code in CATEGORIES], kept=3, per_post=[1, 2]),
    "no post has a tag left": odd((0, 5), (1, 5), kept=1, per_post=[7]),
    "all on one post": odd(*[(0, 1)] * 300, kept=299, per_post=[0] * 299 + [1]),
    "nearly all dropped": odd(*[(5, 1)] * 300, kept=1, per_post=[299, 1]),
}


@pytest.mark.parametrize("name", ODD)
def test_any_outcome_is_drawn_with_every_tag_in_it(name: str) -> None:
    found, covered = ODD[name]
    drawing = coverage.plot(found, covered)
    file = io.BytesIO()
    drawing.savefig(file, format="png")
    assert Image.open(file).size == (1300, 400)
    outcome, frequency, *_ = drawing.axes
    bars = [bar for bar in outcome.patches if isinstance(bar, Rectangle)]
    tags = len(found.kept) + len(found.dropped)
    assert sum(bar.get_width() for bar in bars) == tags
    points: list[Any] = [group.get_offsets() for group in frequency.collections]
    assert sorted(map(len, points)) == sorted([len(found.kept), len(found.dropped)])


def test_the_bars_of_a_category_lie_side_by_side() -> None:
    found, covered = ODD["one category"]
    outcome = coverage.plot(found, covered).axes[0]
    bars = [bar for bar in outcome.patches if isinstance(bar, Rectangle)]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 20), (20, 20)]
