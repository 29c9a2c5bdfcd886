"""Posts that belong together are found whatever ties them, as comparing every pair would."""

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
from tagger.data import groups
from tagger.data import perceptual_hash as looks_of
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
    """Return the smallest member of the group of each post; others may stand between them."""
    parent = list(range(max([length, *(max(pair) + 1 for pair in pairs)])))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(post) for post in range(length)]


def pairs_of(found: groups.PostPairs) -> list[Pair]:
    assert found.dtype == np.int64
    assert found.shape == (len(found), 2)
    return [(one, other) for one, other in found.tolist()]


@settings(max_examples=100)
@given(
    st.integers(1, 25),
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=15), max_size=3),
)
def test_groups_are_what_is_connected_by_any_kinship(
    length: int, kinships: list[list[Pair]]
) -> None:
    arrays = [np.array(pairs, np.int64).reshape(-1, 2) for pairs in kinships]
    found = groups.number_groups(length, *arrays)
    assert found.dtype == np.int64
    assert found.tolist() == union_find(length, [pair for pairs in kinships for pair in pairs])


def tied_by_parent(ids: Sequence[str], parents: Sequence[str | None]) -> list[int]:
    """Return the groups by groups.by_parent, of columns in two chunks."""
    cut = len(ids) // 2
    columns = [pa.chunked_array([c[:cut], c[cut:]], pa.string()) for c in (ids, parents)]
    found: list[int] = groups.number_groups(len(ids), groups.pair_by_parent(*columns)).tolist()
    return found


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
def test_children_are_with_their_parents_and_siblings(
    parents: list[str | None], expected: list[int]
) -> None:
    assert tied_by_parent(["a", "b", "c", "d"], parents) == expected


@settings(max_examples=100)
@given(st.data(), st.integers(1, 12))
def test_kinship_is_that_of_a_family_tree(data: st.DataObject, length: int) -> None:
    ids = [str(number) for number in range(length)]
    names = st.none() | st.sampled_from([*ids, "gone", "lost"])
    parents = data.draw(st.lists(names, min_size=length, max_size=length))
    rows = {name: row for row, name in enumerate([*ids, "gone", "lost"])}
    pairs = [(row, rows[name]) for row, name in enumerate(parents) if name is not None]
    assert tied_by_parent(ids, parents) == union_find(length, pairs)


@settings(max_examples=100)
@given(st.lists(st.none() | st.sampled_from([b"a", b"b", b"c"]), max_size=12), st.integers(0, 12))
def test_posts_of_one_content_are_together(content: list[bytes | None], cut: int) -> None:
    column = pa.chunked_array([content[:cut], content[cut:]], pa.binary())
    found = pairs_of(groups.pair_by_content(column))
    assert all(content[one] == content[other] is not None for one, other in found)
    same = [
        (one, other)
        for one, other in combinations(range(len(content)), 2)
        if content[one] is not None and content[one] == content[other]
    ]
    assert union_find(len(content), found) == union_find(len(content), same)
    assert len(found) == len([c for c in content if c]) - len({c for c in content if c})


def test_only_files_of_a_size_that_others_have_are_read() -> None:
    sizes = pa.chunked_array([[10, 20, 10, None], [None, 30, 20, 20]], pa.int64())
    content = pa.chunked_array([[None, None, b"x", None], [None, None, None, b"y"]], pa.binary())
    assert groups.find_equal_sizes(sizes, content).tolist() == [0, 1, 6]


def places(*paths: Path) -> pa.Table:
    """Return where the files lie; what is not there is said to be of ten bytes."""
    sizes = [path.stat().st_size if path.exists() else 10 for path in paths]
    columns = {"file": list(map(str, paths)), "offset": [0] * len(paths), "size": sizes}
    return pa.table({**columns, "shard": pa.nulls(len(paths), pa.string())})


def test_content_is_the_hash_of_the_bytes_or_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"some bytes")
    found = groups.hash_content(places(tmp_path / "a", tmp_path / "none"))["content"]
    assert found.to_pylist() == [hashlib.sha256(b"some bytes").digest(), None]


@st.composite
def hashes(draw: st.DrawFn) -> list[bytes | None]:
    """Draw hashes with neighbours at any distance up to 40, some as far as the index can see.

    The bits that part two neighbours are spread evenly over the bands of the index, which is the
    hardest for it, or lie anywhere.
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


def compared(looks: Sequence[bytes | None], distance: int) -> set[Pair]:
    """Return every pair that differs in so many bits at most, each pair compared."""
    numbers = [None if one is None else int.from_bytes(one) for one in looks]
    return {
        (a, b)
        for (a, one), (b, other) in combinations(enumerate(numbers), 2)
        if one is not None and other is not None and (one ^ other).bit_count() <= distance
    }


@settings(max_examples=150)
@given(hashes(), st.integers(0, 31))
def test_near_duplicates_are_those_that_comparing_every_pair_finds(
    looks: list[bytes | None], distance: int
) -> None:
    found = pairs_of(looks_of.pair_by_hash(pa.chunked_array([looks[:3], looks[3:]]), distance))
    expected = compared(looks, distance)
    assert {(min(pair), max(pair)) for pair in found} <= expected
    assert union_find(len(looks), found) == union_find(len(looks), sorted(expected))
    if len(set(looks)) == len(looks):
        assert {(min(pair), max(pair)) for pair in found} == expected


@pytest.mark.parametrize("distance", range(32))
def test_the_index_sees_as_far_as_it_says_and_no_further(distance: int) -> None:
    random = np.random.default_rng(distance)
    first = random.integers(0, 2, 256, dtype=np.uint8)
    spread = (np.arange(256) % 16 * 16 + np.arange(256) // 16)[:distance]  # over all bands
    rows = [first, first.copy(), first.copy()]
    rows[1][spread] ^= 1
    rows[2][random.permutation(256)[: distance + 1]] ^= 1
    column = pa.chunked_array([[np.packbits(row).tobytes() for row in rows]])
    assert pairs_of(looks_of.pair_by_hash(column, distance)) == [(0, 1)]


def test_more_looks_than_are_searched_at_a_time_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_of, "_BLOCK", 3)
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (20, 32), dtype=np.uint8)
    rows[[7, 19]] = rows[[2, 11]]
    rows[[7, 19], 5] ^= 1
    column = pa.chunked_array([[row.tobytes() for row in rows]])
    assert pairs_of(looks_of.pair_by_hash(column, 1)) == [(2, 7), (11, 19)]


def test_very_many_pictures_that_look_the_same_are_one_group() -> None:
    look = np.random.default_rng(0).integers(0, 256, 32, dtype=np.uint8)
    near = look.copy()
    near[0] ^= 1
    column = pa.chunked_array([[look.tobytes()] * 30_000 + [near.tobytes()] * 30_000])
    found = looks_of.pair_by_hash(column, 1)
    assert len(found) == 59_999  # each with the next, not with all
    assert set(groups.number_groups(60_000, found)) == {0}


def test_looks_of_none_are_like_no_other() -> None:
    column = pa.chunked_array([pa.nulls(3, pa.binary())])
    assert pairs_of(looks_of.pair_by_hash(column, 31)) == []


def test_further_than_the_index_can_see_is_refused() -> None:
    column = pa.chunked_array([[bytes(32)]])
    with pytest.raises(TaggerError, match=r"groups\.near is 32; up to 31"):
        looks_of.pair_by_hash(column, 32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve different pictures of 256 pixels."""
    folder = tmp_path_factory.mktemp("drawn")
    draw.draw_images(folder, images=12, size=256, seed=1)
    return sorted(folder.glob("*.png"))


def test_a_picture_is_tied_to_its_copies_and_hardly_to_others(
    drawn: list[Path], tmp_path: Path
) -> None:
    copies = []
    for path in drawn:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        for suffix, copy in (
            ("jpg", picture),
            ("png", picture.resize((128, 128), Image.Resampling.LANCZOS)),
            ("webp", picture.resize((400, 400), Image.Resampling.BICUBIC)),
        ):
            copies.append(tmp_path / f"{path.stem}.{suffix}")
            copy.save(copies[-1], quality=60)
    looks = looks_of.compute_hashes(places(*drawn, *copies))["looks"]
    assert looks.null_count == 0
    found = groups.number_groups(len(looks), looks_of.pair_by_hash(looks, 31))
    originals, made = found[: len(drawn)], found[len(drawn) :].reshape(len(drawn), 3)
    assert (made == originals[:, None]).all()
    assert len(set(originals)) > len(drawn) * 2 // 3


def test_pictures_that_cannot_be_read_or_are_plain_have_no_looks(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "plain.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.effect_noise((600, 2), 90).save(tmp_path / "line.png")
    Image.effect_noise((64, 64), 90).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture at all")
    names = ("plain.png", "dot.png", "line.png", "bad.png", "missing.png", "good.png")
    looks = looks_of.compute_hashes(places(*(tmp_path / name for name in names)))["looks"]
    assert [look is not None for look in looks.to_pylist()] == [False] * 5 + [True]
    assert len(looks[5].as_py()) == 32
