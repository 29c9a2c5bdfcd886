"""Tars are read in place by a correct index, or by their headers, and are written atomically."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagger.core.errors import TaggerError
from tagger.data.hub import shards

STAGES = Path(__file__).parents[3] / "stages"
Members = dict[str, bytes]

MEMBERS: Members = {"1.webp": b"one", "2.webp": b"", "a/3.webp": b"x" * 1500, "4.webp": b"y" * 512}

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=120).filter(
    lambda name: "/" not in name
)


def pack(tar: Path, members: Members, **options: Any) -> Path:
    """Write a tar without this project's writer."""
    with tarfile.open(tar, "w", **options) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return tar


def contents(tar: Path, index: shards.TarIndex) -> Members:
    """Return the bytes that an index points at."""
    data = tar.read_bytes()
    rows = zip(index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return {name: data[offset : offset + size] for name, offset, size in rows}


def change_index(tar: Path, change: Any) -> None:
    """Change the content of the index of a tar."""
    path = tar.with_suffix(".json")
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    shards.write_tar(tmp_path / "0000.tar", MEMBERS.items())
    return tmp_path / "0000.tar"


@given(st.dictionaries(names, st.binary(max_size=1200), max_size=6))
@settings(max_examples=60)
def test_written_tars_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, members: Members
) -> None:
    tar = tmp_path_factory.mktemp("shards") / "0001.tar"
    shards.write_tar(tar, members.items())
    index, distrust = shards.open_index(tar)
    assert distrust == ""
    assert index.names == list(members)
    assert contents(tar, index) == members
    assert index.hashes == [hashlib.sha256(content).hexdigest() for content in members.values()]
    alone = shards.read_index(tar.with_suffix(".json"))
    assert (alone.names, alone.offsets.tolist()) == (index.names, index.offsets.tolist())
    with tarfile.open(tar) as archive:
        assert {info.name: archive.extractfile(info).read() for info in archive} == members  # type: ignore[union-attr]


@given(st.dictionaries(names, st.binary(max_size=1200), max_size=6))
@settings(max_examples=30)
def test_index_from_headers_equals_the_written_index(
    tmp_path_factory: pytest.TempPathFactory, members: Members
) -> None:
    tar = tmp_path_factory.mktemp("shards") / "0001.tar"
    shards.write_tar(tar, members.items())
    written, _ = shards.open_index(tar)
    tar.with_suffix(".json").unlink()
    read, distrust = shards.open_index(tar)
    assert distrust == f"{tar} has no index"
    assert read.names == written.names
    assert read.offsets.tolist() == written.offsets.tolist()
    assert read.sizes.tolist() == written.sizes.tolist()


def test_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shards.write_tar(tmp_path / f"{name}.tar", MEMBERS.items(), names=[1])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_index_has_the_keys_and_hashes_of_hfutils(tar: Path) -> None:
    content = json.loads(tar.with_suffix(".json").read_text(encoding="utf-8"))
    data = tar.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    assert list(content) == ["filesize", "hash", "hash_lfs", "files"]
    assert content["filesize"] == len(data)
    assert content["hash"] == git.hexdigest()
    assert content["hash_lfs"] == hashlib.sha256(data).hexdigest()
    assert content["files"]["1.webp"] == {
        "offset": 512,
        "size": 3,
        "sha256": hashlib.sha256(b"one").hexdigest(),
    }


def entry(name: str, **values: Any) -> Any:
    return lambda content: content["files"][name].update(values)


WRONG_INDEXES = {
    "past the end": entry("4.webp", offset=1 << 40),
    "longer than the tar": entry("4.webp", size=1 << 40),
    "sums past 64 bits": entry("4.webp", offset=2**63 - 1, size=2**63 - 1),
    "huge": entry("4.webp", offset=10**40),
    "negative offset": entry("1.webp", offset=-512),
    "negative size": entry("1.webp", size=-1),
    "overlapping": entry("a/3.webp", offset=512),
    "one byte off": entry("1.webp", offset=513),
    "one byte less": entry("a/3.webp", size=1499),
    "a text": entry("1.webp", offset="512"),
    "a fraction": entry("1.webp", offset=512.5),
    "nothing": entry("1.webp", offset=None),
    "a list": entry("1.webp", size=[3]),
    "no size": lambda content: content["files"]["1.webp"].pop("size"),
    "no files": lambda content: content.pop("files"),
    "files in a list": lambda content: content.update(files=[1]),
    "no mapping": lambda content: content["files"].update({"1.webp": 3}),
    "half a character": lambda content: content["files"].update({"\ud800": {}}),
    "another name": lambda content: content["files"].update(
        {"9.webp": content["files"].pop("1.webp")}
    ),
}


@pytest.mark.parametrize("change", WRONG_INDEXES.values(), ids=WRONG_INDEXES.keys())
def test_wrong_indexes_are_replaced_by_headers(tar: Path, change: Any) -> None:
    change_index(tar, change)
    index, distrust = shards.open_index(tar)
    assert distrust and "\n" not in distrust
    assert contents(tar, index) == MEMBERS


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"3", b'{"files"', b"\xff\xfe", b"[" * 100_000, b"{}"]
)
def test_invalid_indexes_are_replaced_by_headers(tar: Path, content: bytes) -> None:
    tar.with_suffix(".json").write_bytes(content)
    index, distrust = shards.open_index(tar)
    assert distrust and "\n" not in distrust
    assert contents(tar, index) == MEMBERS
    with pytest.raises(TaggerError):
        shards.read_index(tar.with_suffix(".json"))


@pytest.mark.parametrize("size", [None, "10240", [1], -1, 10, 10.5])
def test_index_alone_is_checked_against_its_file_size(tar: Path, size: Any) -> None:
    change_index(tar, lambda content: content.update(filesize=size))
    with pytest.raises(TaggerError, match=r"0000\.json"):
        shards.read_index(tar.with_suffix(".json"))


def test_indexes_of_other_tars_are_not_used_even_if_all_sizes_agree(
    tar: Path, tmp_path: Path
) -> None:
    other = {f"1{name}": content for name, content in MEMBERS.items()}
    shards.write_tar(tmp_path / "other.tar", other.items())
    (tmp_path / "other.json").replace(tar.with_suffix(".json"))
    index, distrust = shards.open_index(tar)
    assert "is not the index of 0000.tar" in distrust
    assert contents(tar, index) == MEMBERS


@pytest.mark.parametrize(
    "options",
    [
        {"format": tarfile.PAX_FORMAT},
        {"format": tarfile.GNU_FORMAT},
        {"format": tarfile.USTAR_FORMAT},
    ],
)
def test_tars_of_all_formats_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    members = {**MEMBERS, "d" * 90 + "/" + "n" * 90 + ".webp": b"long"}
    tar = pack(tmp_path / "0001.tar", members, **options)
    assert contents(tar, shards.open_index(tar)[0]) == members


def test_only_regular_members_count(tmp_path: Path) -> None:
    tar = tmp_path / "0001.tar"
    with tarfile.open(tar, "w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.png", tarfile.SYMTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
        archive.addfile(tarfile.TarInfo("empty.png"))
    assert contents(tar, shards.open_index(tar)[0]) == {"empty.png": b""}


def test_names_that_are_no_utf8_have_replacement_characters(tmp_path: Path) -> None:
    tar = pack(tmp_path / "0001.tar", {os.fsdecode(b"\xc4.png"): b"1"}, format=tarfile.GNU_FORMAT)
    (name,) = shards.open_index(tar)[0].names
    assert name.encode() == "\ufffd.png".encode()


@pytest.mark.parametrize("content", [b"", b"no tar" * 400, b"\x1f\x8b\x08\0 gzip" * 100])
def test_files_that_are_no_tars_are_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0001.tar"
    path.write_bytes(content)
    with pytest.raises(TaggerError, match=r"0001\.tar is no tar"):
        shards.open_index(path)


def test_truncated_tars_have_their_complete_members(tar: Path) -> None:
    data = tar.read_bytes()
    index_before = shards.open_index(tar)[0]
    for end in range(512, int(index_before.offsets[-1] + index_before.sizes[-1]) + 1, 128):
        tar.write_bytes(data[:end])
        index, _ = shards.open_index(tar)
        ends = zip(
            index_before.names, (index_before.offsets + index_before.sizes).tolist(), strict=True
        )
        assert index.names == [name for name, last in ends if last <= end]


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150)
def test_damaged_tars_give_members_within_them_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    tar = pack(tmp_path_factory.mktemp("damaged") / "1.tar", {"é" * 70 + ".png": b"1", **MEMBERS})
    data = bytearray(tar.read_bytes())
    for position, value in changes:
        data[position] = value
    tar.write_bytes(data)
    try:
        index, _ = shards.open_index(tar)
    except TaggerError as error:
        assert "\n" not in str(error)
        return
    assert (index.offsets >= 0).all() and (index.sizes >= 0).all()
    assert (index.offsets + index.sizes <= len(data)).all()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tagger.data.hub import shards
def members():
    yield "1.webp", b"new"
    if sys.argv[2] == "members":
        os.kill(os.getpid(), signal.SIGKILL)
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "index":
    shards.json.dumps = killed
shards.write_tar(Path("0000.tar"), members())
"""


@pytest.fixture(params=["members", "index"])
def moment(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_killed_writers_leave_no_tar_with_an_index(tar: Path, moment: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, STAGES, moment], cwd=tar.parent, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert not tar.with_suffix(".json").exists()  # a tar with an index is whole
    shards.write_tar(tar, MEMBERS.items())
    assert contents(tar, shards.open_index(tar)[0]) == MEMBERS
    assert sorted(path.name for path in tar.parent.iterdir()) == ["0000.json", "0000.tar"]
