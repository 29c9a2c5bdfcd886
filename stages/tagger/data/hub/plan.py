"""Get the pictures of wanted posts out of a data set of numbered tars, the cheaper way."""

import sys
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.filesize import decimal

from tagger.core import hub_errors
from tagger.core.errors import TaggerError
from tagger.data.hub import client, download, shards
from tagger.data.hub.download import RemoteFile
from tagger.images import decode
from tagger.system import progress

DownloadMethod = Literal["auto", "shards", "members"]
PostsByTar = dict[int, list[int]]  # posts by the number of their tar, both rising
DownloadPlan = dict[
    RemoteFile, list[int]
]  # what to download, and the posts whose pictures it brings
MissingReasons = dict[int, str]  # by post, why it is without a picture

# A post is in the tar whose number is its id modulo this, as in
# https://huggingface.co/datasets/deepghs/danbooru2024-webp-4Mpixel
_TARS = 1000

# A request costs as much as so many bytes. The hub answers 5,000 requests of an account in five
# minutes (https://huggingface.co/docs/hub/rate-limits), 17 a second, in which a line of
# 100 Mbit/s brings 12 MB.
_REQUEST = 1_000_000


class TarNeed(NamedTuple):
    """What is wanted of a tar."""

    tar: RemoteFile
    missing: dict[int, RemoteFile]  # by post, its picture, where the folder lacks it
    lost: MissingReasons  # posts that the index does not name


class _Hub(NamedTuple):
    repo: str
    listing: client.RepoListing
    folder: Path
    connections: int

    def get(self, order: DownloadPlan) -> MissingReasons:
        commit = self.listing.commit
        failed = download.download_files(self.repo, order, self.folder, commit, self.connections)
        return {
            post: f"{piece.path}: {failed[piece.path]}"
            for piece, posts in order.items()
            if piece.path in failed
            for post in posts
        }


def download_images(
    ids: npt.NDArray[np.int64],
    repo: str,
    folder: Path,
    *,
    method: DownloadMethod,
    revision: str = "main",
    connections: int = 8,
) -> MissingReasons:
    """Bring the pictures of posts into a folder; return the posts without one, with the reason.

    ids: (posts,)
    how: "shards" takes whole tars, to `images/0123.tar` with the index beside it, "members" single
        pictures, to `images/0123/1123.webp`, and "auto" what costs less, for each tar

    What is there is not fetched again; where all is, the hub is not asked. Raises TaggerError
    where nothing can be had.
    """
    wanted = _by_number(ids)
    settled = _settled(folder, wanted)
    rest = {number: posts for number, posts in wanted.items() if number not in settled}
    reasons = {post: reason for lost in settled.values() for post, reason in lost.items()}
    if rest:
        source = _Hub(repo, client.list_files(repo, revision), folder, connections)
        reasons |= _download(source, rest, method)
    return reasons


def _by_number(ids: npt.NDArray[np.int64]) -> PostsByTar:
    wanted: PostsByTar = {}
    for post in np.unique(ids).tolist():
        wanted.setdefault(post % _TARS, []).append(post)
    return dict(sorted(wanted.items()))


def _settled(folder: Path, wanted: PostsByTar) -> dict[int, MissingReasons]:
    """Return the tars of which the hub need not be asked, each with its posts without a picture.

    A later index may name a picture that the one here does not; offline, it is lost.
    """
    settled = {}
    indexes = sorted([*folder.glob("[0-9]*.json"), *folder.glob("*/[0-9]*.json")])
    numbered = [one for one in indexes if one.stem.isdecimal() and int(one.stem) in wanted]
    for index in progress.track(numbered, "Looking through the folder"):
        tar = index.with_suffix(".tar")
        size = tar.stat().st_size if tar.exists() else sys.maxsize
        piece = RemoteFile(tar.relative_to(folder).as_posix(), size)
        need = _need(folder, piece, wanted[int(index.stem)])
        if not need.missing and (hub_errors.is_offline() or not need.lost):
            settled[int(index.stem)] = need.lost
    return settled


def _download(source: _Hub, wanted: PostsByTar, how: DownloadMethod) -> MissingReasons:
    """Download indexes, then pictures; return the posts without one, with the reason."""
    tars = _tars(source)
    reasons = {
        post: f"{source.repo} has no tar {number:04} with an index"
        for number in wanted.keys() - tars.keys()
        for post in wanted[number]
    }
    indexes = {
        number: RemoteFile(*source.listing.files[_index(tars[number].path)])
        for number in wanted
        if number in tars
    }
    reasons |= source.get({index: wanted[number] for number, index in indexes.items()})
    order: DownloadPlan = {}
    for number in progress.track(indexes, "Reading the indexes"):
        if download.is_complete(source.folder, indexes[number]):
            need = _need(source.folder, tars[number], wanted[number])
            reasons |= need.lost
            order |= _order(need, how)  # a whole tar leaves none of its many pieces here
    if order:
        print(_announced(source, order))
    return reasons | source.get(order)


def _tars(source: _Hub) -> dict[int, RemoteFile]:
    """Return the tars that have an index, by their number."""
    tars: dict[int, RemoteFile] = {}
    paths = source.listing.files
    for path in sorted(paths):
        name = PurePosixPath(path)
        numbered = name.suffix == ".tar" and name.stem.isdecimal() and ".." not in name.parts
        if not numbered or _index(path) not in paths:
            continue
        if twin := tars.get(int(name.stem)):
            both = f"{twin.path} and {path}"
            raise TaggerError(f"{source.repo} has {both}: which one a post is in cannot be told.")
        tars[int(name.stem)] = RemoteFile(*paths[path])
    if not tars:
        raise TaggerError(
            f"{source.repo} holds no numbered tars with their indexes, as images/0123.tar and "
            "images/0123.json."
        )
    return tars


def _index(tar: str) -> str:
    return str(PurePosixPath(tar).with_suffix(".json"))


def _need(folder: Path, tar: RemoteFile, posts: list[int]) -> TarNeed:
    """Return what is wanted of a tar whose index is in the folder."""
    try:
        index = shards.read_index(folder / _index(tar.path), tar.size)
    except TaggerError as error:
        return TarNeed(tar, {}, dict.fromkeys(posts, str(error)))
    members = _members(tar, index)
    lost = [post for post in posts if post not in members]
    here = download.is_complete(folder, tar)
    missing = {
        post: members[post]
        for post in posts
        if post in members and not here and not download.is_complete(folder, members[post])
    }
    return TarNeed(tar, missing, dict.fromkeys(lost, f"{_index(tar.path)} does not name it"))


def _members(tar: RemoteFile, index: shards.TarIndex) -> dict[int, RemoteFile]:
    """Return the pictures of a tar by post."""
    loose = PurePosixPath(tar.path).with_suffix("")
    members = {}
    for name, offset, size, hash_ in zip(
        map(PurePosixPath, index.names),
        index.offsets.tolist(),
        index.sizes.tolist(),
        index.hashes,
        strict=True,
    ):
        if name.stem.isdecimal() and name.suffix.lower() in decode.SUFFIXES:
            path = str(loose / name.name)  # without the folders of the name, `..` among them
            members[int(name.stem)] = RemoteFile(path, size, hash_, tar.path, offset)
    return members


def _order(need: TarNeed, how: DownloadMethod) -> DownloadPlan:
    """Return what to download of a tar: the whole of it, or the missing pictures."""
    members = {piece: [post] for post, piece in need.missing.items()}
    if how == "auto":
        cost = sum(piece.size + _REQUEST for piece in members)
        how = "members" if cost < need.tar.size else "shards"
    if how == "members" or not members:
        return members
    return {need.tar: list(need.missing)}


def _announced(source: _Hub, order: DownloadPlan) -> str:
    posts = sum(map(len, order.values()))
    size = decimal(sum(piece.size for piece in order))
    tars = sum(piece.tar is None for piece in order)
    ways = f"whole tars: {tars:,}, single pictures: {len(order) - tars:,}"
    return f"downloading {posts:,} pictures of {source.repo}, {size} ({ways}) -> {source.folder}"
