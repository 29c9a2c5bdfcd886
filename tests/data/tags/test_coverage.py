"""Coverage equals counting post by post, and any selection has a plot."""

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


def select(seen: list[Tag], kept: set[str]) -> Selection:
    """Return a selection that keeps these names, and drops other tags on a post."""
    present = sort_tags(tag for tag in seen if tag.count)
    return Selection(
        kept=[tag for tag in present if tag.name in kept],
        dropped=[(tag, EXCLUDED) for tag in present if tag.name not in kept],
        unseen_names=[],
        unmatched_globs=[],
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw labels, (posts, tags), and which of the tags are kept."""
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = random.random(shape) < draw(st.floats(0.05, 0.9))
    labels[0, 0] = True
    codes = random.choice([*CATEGORIES], shape[1]).tolist()
    counts = labels.sum(axis=0).tolist()
    seen = [Tag(-1, f"tag_{i}", codes[i], counts[i]) for i in range(shape[1])]
    names = {tag.name for tag in seen[1:] if draw(st.booleans())}
    return select(seen, names | {"tag_0"}), seen, labels


def tags_left(
    selection: Selection, seen: list[Tag], labels: npt.NDArray[np.bool_]
) -> list[list[Tag]]:
    """Return the kept tags of each post."""
    return [[seen[i] for i in np.flatnonzero(post) if seen[i] in selection.kept] for post in labels]


def measure(case: Case) -> Coverage:
    selection, seen, labels = case
    return coverage.measure_coverage(selection, seen, csr_array(labels))


@settings(max_examples=60)
@given(cases())
def test_coverage_equals_counting_by_hand(case: Case) -> None:
    left = tags_left(*case)
    covered = measure(case)
    per_post = Counter(map(len, left))
    assert covered.posts_by_tag_count.tolist() == [
        per_post[size] for size in range(max(per_post) + 1)
    ]
    assert covered.posts_by_tag_count.sum() == len(case[2])
    by_category = Counter(code for post in left for code in {tag.category for tag in post})
    assert covered.posts_by_category == {CATEGORIES[code]: n for code, n in by_category.items()}


@settings(max_examples=60)
@given(cases())
def test_report_equals_counting_by_hand(case: Case) -> None:
    selection, seen, labels = case
    left = tags_left(*case)
    report = json.loads(json.dumps(coverage.summarize(selection, measure(case))))
    kept = {code: [tag for tag in selection.kept if tag.category == code] for code in CATEGORIES}
    assert report == {
        "seen": int(labels.any(axis=0).sum()),
        "kept": len(selection.kept),
        "dropped": {EXCLUDED: len(selection.dropped)} if selection.dropped else {},
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
def test_coverage_does_not_depend_on_the_block_size(case: Case, block_posts: int) -> None:
    whole = measure(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "BLOCK_POSTS", block_posts)
        blocks = measure(case)
    assert blocks.posts_by_tag_count.tolist() == whole.posts_by_tag_count.tolist()
    assert blocks.posts_by_category == whole.posts_by_category


def test_listed_categories_count() -> None:
    seen = [Tag(1, "miku", 0, 2), Tag(2, "hair", 0, 1)]
    selection = Selection([seen[1], Tag(1, "miku", 4, 2)], [], [], [])
    covered = coverage.measure_coverage(
        selection, seen, csr_array(np.array([[1, 1], [1, 0]], dtype=bool))
    )
    assert covered.posts_by_category == {"general": 1, "character": 2}
    assert covered.posts_by_tag_count.tolist() == [0, 1, 1]


def test_report_lists_unseen_names_and_unmatched_globs() -> None:
    seen = [Tag(1, "a", 0, 3), Tag(2, "b", 0, 1), Tag(3, "c", 4, 1), Tag(4, "d", 4, 1)]
    dropped = [(seen[1], COUNT), (seen[2], EXCLUDED), (seen[3], EXCLUDED)]
    selection = Selection(seen[:1], dropped, ["miku"], ["*_(cosplay)"])
    report = coverage.summarize(selection, Coverage(np.array([2, 3]), {"general": 3}))
    assert list(report["dropped"].items()) == [(EXCLUDED, 2), (COUNT, 1)]
    assert report["without_post"] == ["miku"]
    assert report["globs_without_tag"] == ["*_(cosplay)"]
    assert report["posts_without_tag"] == 2
    assert report["categories"] == {"general": {"seen": 2, "kept": 1, "post_coverage": 0.6}}


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=600).filter(any))
def test_coverage_by_size_rises_to_all_labels(counts: list[int]) -> None:
    rows = coverage.coverage_by_size([Tag(-1, str(i), 0, count) for i, count in enumerate(counts)])
    assert rows[0][0] == 1
    assert rows[-1] == (len(counts), 1.0)
    assert all(a < b and x <= y for (a, x), (b, y) in pairwise(rows))
    falling = sorted(counts, reverse=True)
    assert rows == [(size, round(sum(falling[:size]) / sum(counts), 6)) for size, _ in rows]


def test_coverage_by_size_has_at_most_200_rows() -> None:
    few, many = ([Tag(-1, "a", 0, 1)] * tags for tags in (20, 50_000))
    assert [size for size, _ in coverage.coverage_by_size(few)] == list(range(1, 21))
    assert 100 < len(coverage.coverage_by_size(many)) <= 200


def odd(*tags: tuple[int, int], kept: int, per_post: list[int]) -> tuple[Selection, Coverage]:
    """Return a selection of the first tags, given by category and count, and its coverage."""
    seen = [Tag(i, f"tag_{i}", *tag) for i, tag in enumerate(tags)]
    selection = select(seen, {tag.name for tag in seen[:kept]})
    return selection, Coverage(np.array(per_post, dtype=np.int64), {})


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
def test_any_selection_has_a_plot_with_every_tag(name: str) -> None:
    selection, covered = ODD[name]
    figure = coverage.plot(selection, covered)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert Image.open(file).size == (1300, 400)
    outcome, frequency, *_ = figure.axes
    bars = [bar for bar in outcome.patches if isinstance(bar, Rectangle)]
    tags = len(selection.kept) + len(selection.dropped)
    assert sum(bar.get_width() for bar in bars) == tags
    points: list[Any] = [group.get_offsets() for group in frequency.collections]
    assert sorted(map(len, points)) == sorted([len(selection.kept), len(selection.dropped)])


def test_bars_of_a_category_are_stacked() -> None:
    selection, covered = ODD["one category"]
    outcome = coverage.plot(selection, covered).axes[0]
    bars = [bar for bar in outcome.patches if isinstance(bar, Rectangle)]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 20), (20, 20)]
