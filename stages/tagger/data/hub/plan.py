"""Plan and run downloads of images from a data set of numbered tars, at the lower cost."""

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
PostsByTar = dict[int, list[int]]  # posts by the number of their tar, both ascending
DownloadPlan = dict[
    RemoteFile, list[int]
]  # remote files, each with the posts whose images it brings
MissingReasons = dict[int, str]  # by post: why it has no image

# A post is in the tar whose number is its id modulo this, as in
# https://huggingface.co/datasets/deepghs/danbooru2024-webp-4Mpixel
_TARS = 1000

# Bytes that cost as much as a request. The hub answers 5,000 requests of an account in five
# minutes (https://huggingface.co/docs/hub/rate-limits), 17 a second, in which a line of
# 100 Mbit/s brings 12 MB.
REQUEST_COST = 1_000_000


class TarNeed(NamedTuple):
    """The images that are needed from a tar."""

    tar: RemoteFile
    missing: dict[int, RemoteFile]  # by post: its image, if the folder lacks it
    lost: MissingReasons  # posts that the index does not list


class _Hub(NamedTuple):
    repo: str
    listing: client.RepoListing
    folder: Path
    connections: int

    def download(self, plan: DownloadPlan) -> MissingReasons:
        commit = self.listing.commit
        failed = download.download_files(self.repo, plan, self.folder, commit, self.connections)
        return {
            post: f"{file.path}: {failed[file.path]}"
            for file, posts in plan.items()
            if file.path in failed
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
    """Download images of posts into a folder; return the reasons for posts without an image.

    ids: (posts,)
    method: "shards" downloads whole tars, to `images/0123.tar` with the index beside it, "members"
        single images, to `images/0123/1123.webp`, and "auto" what costs less, for each tar

    Files in the folder are not downloaded again; if none is missing, the hub gets no request.
    Raises TaggerError if nothing can be downloaded.
    """
    posts_by_tar = _group_by_tar(ids)
    complete = _find_complete(folder, posts_by_tar)
    rest = {number: posts for number, posts in posts_by_tar.items() if number not in complete}
    reasons = {post: reason for lost in complete.values() for post, reason in lost.items()}
    if rest:
        hub = _Hub(repo, client.list_files(repo, revision), folder, connections)
        reasons |= _download(hub, rest, method)
    return reasons


def _group_by_tar(ids: npt.NDArray[np.int64]) -> PostsByTar:
    posts_by_tar: PostsByTar = {}
    for post in np.unique(ids).tolist():
        posts_by_tar.setdefault(post % _TARS, []).append(post)
    return dict(sorted(posts_by_tar.items()))


def _find_complete(folder: Path, posts_by_tar: PostsByTar) -> dict[int, MissingReasons]:
    """Return the tars that need no request, each with its posts without an image.

    A later index may list an image that the one in the folder does not; offline, it is lost.
    """
    complete = {}
    indexes = sorted([*folder.glob("[0-9]*.json"), *folder.glob("*/[0-9]*.json")])
    needed = [path for path in indexes if path.stem.isdecimal() and int(path.stem) in posts_by_tar]
    for index in progress.track(needed, "Looking through the folder"):
        tar = index.with_suffix(".tar")
        size = tar.stat().st_size if tar.exists() else sys.maxsize
        file = RemoteFile(tar.relative_to(folder).as_posix(), size)
        need = _read_need(folder, file, posts_by_tar[int(index.stem)])
        if not need.missing and (hub_errors.is_offline() or not need.lost):
            complete[int(index.stem)] = need.lost
    return complete


def _download(hub: _Hub, posts_by_tar: PostsByTar, method: DownloadMethod) -> MissingReasons:
    """Download indexes, then images; return the reasons for posts without an image."""
    tars = _find_tars(hub)
    reasons = {
        post: f"{hub.repo} has no tar {number:04} with an index"
        for number in posts_by_tar.keys() - tars.keys()
        for post in posts_by_tar[number]
    }
    indexes = {
        number: RemoteFile(*hub.listing.files[_index_path(tars[number].path)])
        for number in posts_by_tar
        if number in tars
    }
    reasons |= hub.download({index: posts_by_tar[number] for number, index in indexes.items()})
    plan: DownloadPlan = {}
    for number in progress.track(indexes, "Reading the indexes"):
        if download.is_complete(hub.folder, indexes[number]):
            need = _read_need(hub.folder, tars[number], posts_by_tar[number])
            reasons |= need.lost
            plan |= _plan(need, method)
    if plan:
        print(_describe(hub, plan))
    return reasons | hub.download(plan)


def _find_tars(hub: _Hub) -> dict[int, RemoteFile]:
    """Return the tars that have an index, by number."""
    tars: dict[int, RemoteFile] = {}
    paths = hub.listing.files
    for path in sorted(paths):
        name = PurePosixPath(path)
        numbered = name.suffix == ".tar" and name.stem.isdecimal() and ".." not in name.parts
        if not numbered or _index_path(path) not in paths:
            continue
        if twin := tars.get(int(name.stem)):
            raise TaggerError(
                f"{hub.repo} has {twin.path} and {path}: it is unknown which of them a post is in."
            )
        tars[int(name.stem)] = RemoteFile(*paths[path])
    if not tars:
        raise TaggerError(
            f"{hub.repo} holds no numbered tars with their indexes, as images/0123.tar and "
            "images/0123.json."
        )
    return tars


def _index_path(tar: str) -> str:
    return str(PurePosixPath(tar).with_suffix(".json"))


def _read_need(folder: Path, tar: RemoteFile, posts: list[int]) -> TarNeed:
    """Return the images that are needed from a tar whose index is in the folder."""
    path = _index_path(tar.path)
    try:
        index = shards.read_index(folder / path, tar.size)
    except TaggerError as error:
        return TarNeed(tar, {}, dict.fromkeys(posts, str(error)))
    members = _members(tar, index)
    lost = [post for post in posts if post not in members]
    has_tar = download.is_complete(folder, tar)
    missing = {
        post: members[post]
        for post in posts
        if post in members and not has_tar and not download.is_complete(folder, members[post])
    }
    return TarNeed(tar, missing, dict.fromkeys(lost, f"{path} does not list it"))


def _members(tar: RemoteFile, index: shards.TarIndex) -> dict[int, RemoteFile]:
    """Return the images of a tar by post."""
    folder = PurePosixPath(tar.path).with_suffix("")
    members = {}
    for member, offset, size, sha256 in zip(
        index.names, index.offsets.tolist(), index.sizes.tolist(), index.hashes, strict=True
    ):
        name = PurePosixPath(member)
        if name.stem.isdecimal() and name.suffix.lower() in decode.SUFFIXES:
            path = str(folder / name.name)  # without the folders of the name, such as `..`
            members[int(name.stem)] = RemoteFile(path, size, sha256, tar.path, offset)
    return members


def _plan(need: TarNeed, method: DownloadMethod) -> DownloadPlan:
    """Return what to download of a tar: all of it, or the missing images."""
    members = {file: [post] for post, file in need.missing.items()}
    if method == "auto":
        cost = sum(file.size + REQUEST_COST for file in members)
        method = "members" if cost < need.tar.size else "shards"
    if method == "members" or not members:
        return members
    return {need.tar: list(need.missing)}


def _describe(hub: _Hub, plan: DownloadPlan) -> str:
    posts = sum(map(len, plan.values()))
    size = decimal(sum(file.size for file in plan))
    tars = sum(file.tar is None for file in plan)
    parts = f"whole tars: {tars:,}, single images: {len(plan) - tars:,}"
    return f"downloading {posts:,} images of {hub.repo}, {size} ({parts}) -> {hub.folder}"
