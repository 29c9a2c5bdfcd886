"""The summary adds up, the tables match the posts, and any data set has plots and sheets."""

import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagger.core.vocabulary import Tag
from tagger.data import overview
from tagger.data.rejected import SCHEMA
from tagger.data.tags.lexicon import Lexicon
from tagger.data.tags.rules import Rules

Size = tuple[int | None, int | None]

TAGS = [
    Tag(9_999_999, "general", 9, 3),
    Tag(1, "smile", 0, 2),
    Tag(2, "初音ミク", 4, 1),
    Tag(3, "a_very_long_name_without_end_" * 20, 4, 1),
]
LISTS = [[0, 1], [0], [0, 1, 2, 3]]
SIZES: list[Size] = [(64, 64), (300, 100), (31, None)]


def posts_of(
    paths: Iterable[Path] = (),
    lists: Sequence[Sequence[int]] = LISTS,
    sizes: Sequence[Size] = SIZES,
    groups: Sequence[int] = (0, 1, 0),
) -> pa.Table:
    files = [*map(str, paths), *["none.png"] * len(lists)][: len(lists)]
    width, height = zip(*sizes, strict=True)
    return pa.table(
        {
            "id": [f"{number}.png" for number in range(len(lists))],
            "file": files,
            "shard": pa.nulls(len(lists), pa.string()),
            "offset": [0] * len(lists),
            "size": [Path(file).stat().st_size if Path(file).exists() else 9 for file in files],
            "width": pa.array(width, pa.int32()),
            "height": pa.array(height, pa.int32()),
            "group": list(groups),
            "tags": pa.array(lists, pa.list_(pa.int32())),
        }
    )


def rejected_posts(*rows: tuple[str | None, str, str | None]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return pa.table(columns, schema=SCHEMA)


@pytest.fixture
def lexicon() -> Lexicon:
    """A lexicon after two batches that every kind of rule changes."""
    rules = Rules(
        known_tags={},
        aliases={"lh": "long_hair", "grin": "smile"},
        implications={"long_hair": ("hair",)},
        deprecated=frozenset({"old"}),
        renames={"bad_id": "", "smile": "smiling"},
        cycles=("alias a -> b",),
    )
    lexicon = Lexicon(rules)
    lexicon.labels({None: pa.array([["lh", "old", "bad_id"], ["lh", "grin", "smile"]])})
    lexicon.labels({None: pa.array([["grin"], ["lh", "hair"]])})
    return lexicon


def test_summary_adds_up(lexicon: Lexicon) -> None:
    rejected = rejected_posts(("a", "no tags", None), ("b", "score", "1"), ("c", "no tags", None))
    numbers = overview.summarize(posts_of(), TAGS, lexicon, rejected, ["a note"])
    assert numbers == {
        "posts": 3,
        "tags": 4,
        "labels": sum(map(len, LISTS)),
        "categories": {"rating": 1, "general": 1, "character": 2},
        "rejected": {"no tags": 2, "score": 1},
        "labels_changed": {
            "alias": 5,
            "deprecated": 1,
            "implication": 2,
            "rename": 3,
            "repeated": 1,
        },
        "cycles": ["alias a -> b"],
        "groups": {"of_several": 1, "posts_in_them": 2, "largest": 2},
        "notes": ["a note"],
    }


def test_tag_changes_are_sorted_by_rule_and_labels(lexicon: Lexicon) -> None:
    assert overview.list_changes(lexicon) == [
        ("alias", "lh", "long_hair", 3),
        ("alias", "grin", "smile", 2),
        ("deprecated", "old", "", 1),
        ("implication", "", "hair", 2),
        ("rename", "smile", "smiling", 2),
        ("rename", "bad_id", "", 1),
        ("repeated", "", "", 1),
    ]
    assert overview.list_changes(Lexicon(Rules(known_tags={}))) == []


def test_tables_count_posts() -> None:
    assert overview.tag_frequency(TAGS) == [(1, 3), (2, 2), (3, 1), (4, 1)]
    assert overview.tags_per_post(posts_of()) == [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1)]
    assert overview.count_sides(posts_of()) == [(0, 0), (32, 0), (64, 1), (96, 1)]
    counts: dict[float, int] = dict(overview.count_aspects(posts_of()))
    assert (counts[0.25], counts[1.0], sum(counts.values())) == (0, 1, 2)
    assert max(edge for edge, count in counts.items() if count) == pytest.approx(2.83, abs=0.01)


def test_frequency_of_many_tags_has_at_most_200_rows() -> None:
    rows = overview.tag_frequency([Tag(n, str(n), 0, 100_000 - n) for n in range(50_000)])
    assert (rows[0], rows[-1]) == ((1, 100_000), (50_000, 50_001))
    assert 100 < len(rows) <= 200
    assert rows == sorted(set(rows))


@given(st.lists(st.tuples(st.integers(1, 5_000), st.integers(1, 5_000)), min_size=1, max_size=20))
def test_every_known_size_is_counted_once(sizes: list[tuple[int, int]]) -> None:
    posts = posts_of(lists=[[]] * len(sizes), sizes=sizes, groups=[0] * len(sizes))
    for rows in (
        overview.count_sides(posts),
        overview.count_aspects(posts),
        overview.tags_per_post(posts),
    ):
        assert sum(count for _, count in rows) == len(sizes)
    start: dict[int, int] = dict(overview.count_sides(posts))
    for width, height in sizes:
        assert start[min(width, height) // 32 * 32]


def test_extreme_aspects_count_in_the_outer_bins() -> None:
    posts = posts_of(sizes=[(1, 5_000), (5_000, 1), (1, 1)])
    rows: dict[float, int] = dict(overview.count_aspects(posts))
    assert {edge: count for edge, count in rows.items() if count} == {
        0.25: 1,
        1.0: 1,
        max(rows): 1,
    }


@pytest.mark.parametrize(
    ("posts", "tags"),
    [
        (posts_of(), TAGS),
        (posts_of(lists=[[0]], sizes=[(7, 9)], groups=[0]), TAGS[:1]),
        (posts_of(lists=[[0]], sizes=[(None, None)], groups=[0]), TAGS[1:2]),
        (posts_of(sizes=[(None, 1), (1, None), (None, None)]), TAGS[1:]),
        (posts_of(sizes=[(1, 60_000), (60_000, 1), (8, 8)]), TAGS),
    ],
)
def test_any_data_set_has_a_plot(posts: pa.Table, tags: list[Tag]) -> None:
    written = io.BytesIO()
    overview.plot(posts, tags).savefig(written, format="png")
    with Image.open(written) as plot:
        assert plot.size == (1100, 650)
        assert len(plot.convert("L").getcolors() or []) > 10


def test_plots_without_data_say_unknown() -> None:
    def texts(posts: pa.Table, tags: list[Tag]) -> list[list[str]]:
        drawn = overview.plot(posts, tags).axes
        return [[text.get_text() for text in axes.texts] for axes in drawn]

    unknown = posts_of(sizes=[(None, None)] * 3)
    assert texts(unknown, TAGS[1:]) == [[], [], *[["unknown"]] * 4]
    assert texts(posts_of(), TAGS) == [[]] * 6


def test_accepted_images_are_evenly_spaced_and_captioned_with_tags(image_paths: list[Path]) -> None:
    names = [text for _, text in overview.accepted_images(posts_of(image_paths), TAGS)]
    assert names[:2] == ["0.png: general, smile", "1.png: general"]
    many = posts_of(lists=[[1]] * 100, sizes=[(1, 1)] * 100, groups=range(100))
    ids = [text.split(".")[0] for _, text in overview.accepted_images(many, TAGS)]
    assert (len(ids), ids[0], ids[-1]) == (24, "0", "99")
    steps = [int(after) - int(before) for before, after in pairwise(ids)]
    assert set(steps) == {4, 5}


@pytest.fixture
def image_paths(tmp_path: Path) -> list[Path]:
    """Two images."""
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (40, 20), colour).save(path)
    return paths


def test_missing_images_have_a_caption_alone(image_paths: list[Path]) -> None:
    posts = list(overview.accepted_images(posts_of(image_paths), TAGS))
    assert [image.getpixel((0, 0)) if image else None for image, _ in posts] == [
        (255, 0, 0),
        (0, 0, 255),
        None,
    ]


def test_rejected_images_show_each_reason_in_turn() -> None:
    rows = [(str(number), "common", None) for number in range(1_000)]
    rejected = rejected_posts(*rows, ("x", "rare", "why"), ("y", "rare", None))
    texts = [text for _, text in overview.rejected_images(rejected, [])]
    assert len(texts) == 24
    assert texts[:5] == ["0: common. ", "x: rare. why", "1: common. ", "y: rare. ", "2: common. "]


def test_rejected_images_are_found_in_every_folder(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, colour in ((first, "red"), (second, "blue")):
        folder.mkdir()
        Image.new("RGB", (4, 4), colour).save(folder / "a.png")
    (first / "bad.png").write_bytes(b"no image")
    (second / "b.png").write_bytes((second / "a.png").read_bytes())  # not the first's b.png
    ids = ["a.png", f"{second}/a.png", "bad.png", "b.png", "x" * 2_000, ".", None]
    rejected = rejected_posts(*((name, "no sidecar", None) for name in ids))
    shown = [image for image, _ in overview.rejected_images(rejected, [first, second])]
    assert [image.getpixel((0, 0)) if image else None for image in shown] == [
        (255, 0, 0),
        (0, 0, 255),
        *[None] * 5,
    ]
    assert not any(image for image, _ in overview.rejected_images(rejected, []))
