"""Tars of images that are read in place: each with a JSON index of the members.

The index is hfutils': `{"filesize", "hash", "hash_lfs", "files": {name: {"offset", "size",
"sha256"}}}`, under the tar's name with the suffix `.json`. If it is missing or wrong,
the headers of the tar replace it, in memory.
"""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from operator import index as whole
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tagger.core import files
from tagger.core.errors import TaggerError

_BLOCK = 512  # bytes, of a tar
_SPOT_CHECKS = 16  # members whose header is compared with the index


class TarIndex(NamedTuple):
    """The members of a tar, by offset."""

    names: list[str]
    offsets: npt.NDArray[np.int64]  # (members,), bytes from the start of the tar
    sizes: npt.NDArray[np.int64]  # (members,), bytes
    hashes: list[str | None]  # SHA-256 of each member in hexadecimal, if known


def read_index(path: Path, tar_size: int | None = None) -> TarIndex:
    """Return an index, by offset.

    Raises TaggerError if members overlap or lie outside a tar of `tar_size` bytes (None: of the
    size in the index).
    """
    content = files.read_json(path, math.inf)
    try:
        end = whole(content["filesize"] if tar_size is None else tar_size)
        index = _index(
            (_check_utf8(name), whole(entry["offset"]), whole(entry["size"]), entry.get("sha256"))
            for name, entry in content["files"].items()
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise TaggerError(f"{path} is not the index of a tar.") from None
    starts, ends = index.offsets, index.offsets + index.sizes
    if (starts < 0).any() or (index.sizes < 0).any() or (index.sizes > end - starts).any():
        raise TaggerError(f"{path} names members outside its tar of {end:,} bytes.")
    if (ends[:-1] > starts[1:]).any():
        raise TaggerError(f"{path} names members that overlap.")
    return index


def open_index(tar: Path) -> tuple[TarIndex, str]:
    """Return the index of a tar, and why its JSON index was not used, or "".

    Raises TaggerError if the file is no tar. A truncated tar has its complete members.
    """
    path = tar.with_suffix(".json")
    try:
        if not path.exists():
            return _read_headers(tar), f"{tar} has no index"
        index = read_index(path, tar.stat().st_size)
        _compare(index, tar)
        return index, ""
    except TaggerError as error:
        return _read_headers(tar), str(error)
    except OSError as error:
        raise TaggerError(f"{tar} cannot be read: {error.strerror}.") from None


def _index(members: Iterable[tuple[str, int, int, str | None]]) -> TarIndex:
    by_offset = sorted(members, key=lambda member: (member[1], member[2]))
    return TarIndex(
        names=[member[0] for member in by_offset],
        offsets=np.array([member[1] for member in by_offset], dtype=np.int64),
        sizes=np.array([member[2] for member in by_offset], dtype=np.int64),
        hashes=[member[3] for member in by_offset],
    )


def _compare(index: TarIndex, tar: Path) -> None:
    """Raise TaggerError if a few headers of the tar contradict the index."""
    members = len(index.names)
    chosen = np.linspace(0, members - 1, min(members, _SPOT_CHECKS)).astype(int)
    with tar.open("rb") as file:
        for member in chosen.tolist():
            file.seek(max(0, int(index.offsets[member]) - _BLOCK))
            try:
                header = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                header = tarfile.TarInfo()
            sized = header.size == index.sizes[member] and header.isreg()
            if not (sized and _may_be_named(header, index.names[member])):
                raise TaggerError(f"{tar.with_suffix('.json')} is not the index of {tar.name}.")


def _may_be_named(header: tarfile.TarInfo, name: str) -> bool:
    """Return whether a member may have this name. The header does not hold long ones."""
    elsewhere = len(name) >= 100 or not name.isascii()
    return elsewhere or PurePosixPath(header.name).name == PurePosixPath(name).name


def _read_headers(tar: Path) -> TarIndex:
    try:
        end = tar.stat().st_size
        with tarfile.open(tar, "r:", errors="surrogateescape") as archive:
            members = _complete_members(archive, end)
            return _index(
                (_decode(member.name), member.offset_data, member.size, None) for member in members
            )
    except tarfile.TarError as error:
        raise TaggerError(f"{tar} is no tar: {error}.") from None
    except OSError as error:
        raise TaggerError(f"{tar} cannot be read: {error.strerror}.") from None


def _check_utf8(name: str) -> str:
    name.encode()  # raises for lone surrogates, which JSON can hold
    return name


def _decode(name: str) -> str:
    """Return the name of a member, with replacement characters for bytes that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _complete_members(archive: tarfile.TarFile, end: int) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    with suppress(tarfile.ReadError):  # cut short
        members.extend(archive)
    return [
        member
        for member in members
        if member.isreg() and not member.issparse() and 0 <= member.size <= end - member.offset_data
    ]


def write_tar(tar: Path, members: Iterable[tuple[str, bytes]], **notes: Any) -> None:
    """Write a tar and then its index, both atomically: a tar with an index is complete.

    The same members give the same bytes.

    notes: further keys of the index
    """
    entries = {}
    tar.with_suffix(".json").unlink(missing_ok=True)
    with files.atomic_write(tar) as partial:
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in members:
                header = tarfile.TarInfo(name)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
                offset = archive.offset - -(-len(content) // _BLOCK) * _BLOCK
                digest = hashlib.sha256(content).hexdigest()
                entries[name] = {"offset": offset, "size": len(content), "sha256": digest}
        size = partial.stat().st_size
        git_hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with partial.open("rb") as file:
            hash_ = hashlib.file_digest(file, lambda: git_hash).hexdigest()
        hashes = {"hash": hash_, "hash_lfs": files.sha256_file(partial)}
    index = {"filesize": size, **hashes, "files": entries, **notes}
    files.write_text(tar.with_suffix(".json"), json.dumps(index, ensure_ascii=False) + "\n")
