"""Groups hold relatives, duplicates and near-duplicates, as comparing every pair finds them."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.data import groups, perceptual_hash
from tagger.demo import draw

Pair = tuple[int, int]


@pytest.fixture(scope="module", autouse=True)
def one_search_thread() -> Iterator[None]:
    """Searches this small are far slower in threads that wait for one another on busy cores."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def union_find(length: int, pairs: Sequence[Pair]) -> list[int]:
    """Return the lowest member of the group of each post. Numbers beyond the posts connect, too."""
    parent = list(range(max([length, *(max(pair) + 1 for pair in pairs)])))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return [root(post) for post in range(length)]


def as_tuples(pairs: groups.PostPairs) -> list[Pair]:
    assert pairs.dtype == np.int64
    assert pairs.shape == (len(pairs), 2)
    return [(first, second) for first, second in pairs.tolist()]


def pair_by_hash(hashes: pa.ChunkedArray, distance: int) -> groups.PostPairs:
    """Return the pairs of equal and of similar hashes, as groups.group connects them."""
    similar = perceptual_hash.pair_similar(hashes, distance)
    return np.concatenate([groups.pair_by_content(hashes), similar])


@settings(max_examples=100)
@given(
    st.integers(1, 25),
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=15), max_size=3),
)
def test_groups_are_connected_components_of_all_pairs(
    length: int, relations: list[list[Pair]]
) -> None:
    arrays = [np.array(pairs, np.int64).reshape(-1, 2) for pairs in relations]
    numbers = groups.number_groups(length, *arrays)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == union_find(length, [pair for pairs in relations for pair in pairs])


def group_by_parent(ids: Sequence[str], parents: Sequence[str | None]) -> list[int]:
    """Return the groups of columns in two chunks."""
    cut = len(ids) // 2
    columns = [pa.chunked_array([c[:cut], c[cut:]], pa.string()) for c in (ids, parents)]
    numbers: list[int] = groups.number_groups(len(ids), groups.pair_by_parent(*columns)).tolist()
    return numbers


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ([None, None, None, None], [0, 1, 2, 3]),
        ([None, "a", "b", None], [0, 0, 0, 3]),  # a grandchild
        (["d", None, None, None], [0, 1, 2, 0]),  # a parent after its child
        (["gone", None, "gone", "lost"], [0, 1, 0, 3]),  # siblings of a parent that is not there
        (["a", "b", None, None], [0, 1, 2, 3]),  # its own parent
        (["b", "a", None, "c"], [0, 0, 2, 2]),  # one another's parents
        (["b", "c", "d", "a"], [0, 0, 0, 0]),
    ],
)
def test_parents_children_and_siblings_form_a_group(
    parents: list[str | None], expected: list[int]
) -> None:
    assert group_by_parent(["a", "b", "c", "d"], parents) == expected


@settings(max_examples=100)
@given(st.data(), st.integers(1, 12))
def test_groups_by_parent_are_those_of_union_find(data: st.DataObject, length: int) -> None:
    ids = [str(number) for number in range(length)]
    names = st.none() | st.sampled_from([*ids, "gone", "lost"])
    parents = data.draw(st.lists(names, min_size=length, max_size=length))
    rows = {name: row for row, name in enumerate([*ids, "gone", "lost"])}
    pairs = [(row, rows[name]) for row, name in enumerate(parents) if name is not None]
    assert group_by_parent(ids, parents) == union_find(length, pairs)


@settings(max_examples=100)
@given(st.lists(st.none() | st.sampled_from([b"a", b"b", b"c"]), max_size=12), st.integers(0, 12))
def test_posts_with_the_same_content_form_a_group(content: list[bytes | None], cut: int) -> None:
    column = pa.chunked_array([content[:cut], content[cut:]], pa.binary())
    pairs = as_tuples(groups.pair_by_content(column))
    assert all(content[a] == content[b] is not None for a, b in pairs)
    equal = [
        (a, b)
        for a, b in combinations(range(len(content)), 2)
        if content[a] is not None and content[a] == content[b]
    ]
    assert union_find(len(content), pairs) == union_find(len(content), equal)
    assert len(pairs) == len([c for c in content if c]) - len({c for c in content if c})


def test_content_is_compared_only_for_files_of_equal_size() -> None:
    sizes = pa.chunked_array([[10, 20, 10, None], [None, 30, 20, 20]], pa.int64())
    content = pa.chunked_array([[None, None, b"x", None], [None, None, None, b"y"]], pa.binary())
    assert groups.find_equal_sizes(sizes, content).tolist() == [0, 1, 6]


def locations(*paths: Path) -> list[Location]:
    """Return the locations of files; a missing file counts as ten bytes."""
    return [Location(str(p), 0, p.stat().st_size if p.exists() else 10) for p in paths]


def test_content_hash_is_sha256_or_null(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"some bytes")
    hashes = groups.hash_content(locations(tmp_path / "a", tmp_path / "none"))["content"]
    assert hashes.to_pylist() == [hashlib.sha256(b"some bytes").digest(), None]


@st.composite
def similar_hashes(draw: st.DrawFn) -> list[bytes | None]:
    """Draw hashes with neighbours at distances up to 40, more than the index can find.

    The bits in which neighbours differ are spread evenly over the bands of the index, which is
    the hardest case for it, or lie anywhere.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = list(random.integers(0, 2, (draw(st.integers(1, 6)), 256), dtype=np.uint8))
    for _ in range(draw(st.integers(0, 24))):
        near = rows[random.integers(len(rows))].copy()
        bits = random.permutation(256)
        if draw(st.booleans()):
            bits = (np.arange(256) % 16 * 16 + random.integers(16) + np.arange(256) // 16) % 256
        near[np.unique(bits[: draw(st.integers(0, 40))])] ^= 1
        rows.append(near)
    packed = [np.packbits(row).tobytes() for row in rows]
    return [*packed, *draw(st.lists(st.none(), max_size=2))]


def compare_all(hashes: Sequence[bytes | None], distance: int) -> set[Pair]:
    """Return every pair that differs in at most `distance` bits."""
    numbers = [None if value is None else int.from_bytes(value) for value in hashes]
    return {
        (a, b)
        for (a, x), (b, y) in combinations(enumerate(numbers), 2)
        if x is not None and y is not None and (x ^ y).bit_count() <= distance
    }


@settings(max_examples=150)
@given(similar_hashes(), st.integers(0, 31))
def test_near_duplicates_are_those_of_comparing_every_pair(
    hashes: list[bytes | None], distance: int
) -> None:
    pairs = as_tuples(pair_by_hash(pa.chunked_array([hashes[:3], hashes[3:]]), distance))
    expected = compare_all(hashes, distance)
    assert {(min(pair), max(pair)) for pair in pairs} <= expected
    assert union_find(len(hashes), pairs) == union_find(len(hashes), sorted(expected))
    if len(set(hashes)) == len(hashes):
        assert {(min(pair), max(pair)) for pair in pairs} == expected


@pytest.mark.parametrize("distance", range(32))
def test_near_duplicates_include_the_distance_and_nothing_beyond(distance: int) -> None:
    random = np.random.default_rng(distance)
    first = random.integers(0, 2, 256, dtype=np.uint8)
    spread = (np.arange(256) % 16 * 16 + np.arange(256) // 16)[:distance]  # over all bands
    rows = [first, first.copy(), first.copy()]
    rows[1][spread] ^= 1
    rows[2][random.permutation(256)[: distance + 1]] ^= 1
    column = pa.chunked_array([[np.packbits(row).tobytes() for row in rows]])
    assert as_tuples(pair_by_hash(column, distance)) == [(0, 1)]


def test_near_duplicates_are_found_across_blocks_of_the_search() -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (20, 32), dtype=np.uint8)
    rows[[7, 19]] = rows[[2, 11]]
    rows[[7, 19], 5] ^= 1
    column = pa.chunked_array([[row.tobytes() for row in rows]])
    assert as_tuples(perceptual_hash.pair_similar(column, 1, block=3)) == [(2, 7), (11, 19)]


def test_many_equal_hashes_need_only_one_pair_each() -> None:
    value = np.random.default_rng(0).integers(0, 256, 32, dtype=np.uint8)
    near = value.copy()
    near[0] ^= 1
    column = pa.chunked_array([[value.tobytes()] * 30_000 + [near.tobytes()] * 30_000])
    pairs = pair_by_hash(column, 1)
    assert len(pairs) == 59_999
    assert set(groups.number_groups(60_000, pairs)) == {0}


def test_posts_without_a_hash_have_no_near_duplicates() -> None:
    column = pa.chunked_array([pa.nulls(3, pa.binary())])
    assert as_tuples(pair_by_hash(column, 31)) == []


def test_distances_beyond_the_index_are_an_error() -> None:
    with pytest.raises(TaggerError, match=r"groups\.near is 32\. The maximum is 31\."):
        pair_by_hash(pa.chunked_array([[bytes(32)]]), 32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve different images of 256 pixels."""
    folder = tmp_path_factory.mktemp("drawn")
    draw.draw_images(folder, images=12, size=256, seed=1)
    return sorted(folder.glob("*.png"))


def test_resized_and_recompressed_copies_are_near_duplicates(
    drawn: list[Path], tmp_path: Path
) -> None:
    copies = []
    for path in drawn:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for suffix, copy in (
            ("jpg", image),
            ("png", image.resize((128, 128), Image.Resampling.LANCZOS)),
            ("webp", image.resize((400, 400), Image.Resampling.BICUBIC)),
        ):
            copies.append(tmp_path / f"{path.stem}.{suffix}")
            copy.save(copies[-1], quality=60)
    hashes = perceptual_hash.compute_hashes(locations(*drawn, *copies))["hash"]
    assert hashes.null_count == 0
    numbers = groups.number_groups(len(hashes), pair_by_hash(hashes, 31))
    originals, of_copies = numbers[: len(drawn)], numbers[len(drawn) :].reshape(len(drawn), 3)
    assert (of_copies == originals[:, None]).all()
    assert len(set(originals)) > len(drawn) * 2 // 3


def test_unreadable_and_plain_images_have_no_perceptual_hash(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "plain.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.effect_noise((600, 2), 90).save(tmp_path / "line.png")
    Image.effect_noise((64, 64), 90).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    names = ("plain.png", "dot.png", "line.png", "bad.png", "missing.png", "good.png")
    hashes = perceptual_hash.compute_hashes(locations(*(tmp_path / name for name in names)))["hash"]
    assert [value is not None for value in hashes.to_pylist()] == [False] * 5 + [True]
    assert len(hashes[5].as_py()) == 32
