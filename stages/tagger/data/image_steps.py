"""The pictures of posts: found, verified, copied smaller, tied together.

Each step takes the table of posts and returns it with columns replaced or added, less the posts
whose picture cannot be used. Work on pictures is done in chunks that survive a stop.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagger import params
from tagger.data import filters, groups, ingest, resized_copies, verify
from tagger.data.filters import Rejection
from tagger.data.rejected import RejectedPosts
from tagger.data.sources import Source, set_column
from tagger.system import progress, workers

_CHUNK = 2_000  # pictures
_PLACE = ["file", "shard", "offset", "size", "modified"]


def located(posts: pa.Table, source: Source, left_out: RejectedPosts) -> pa.Table:
    """Return the posts that have a picture."""
    posts = source.locate(posts)
    missing = pc.is_null(posts["file"]).to_numpy()
    rows = np.flatnonzero(missing)
    details = np.full(len(posts), None, dtype=object)
    for row, identity in zip(rows.tolist(), posts["id"].take(rows).to_pylist(), strict=True):
        details[row] = source.missing.get(identity, "it is not there")
    verdict = Rejection("no picture", missing, pa.array(details, pa.string()))
    return ingest.judge(posts, [verdict], left_out)[0]


def verified(
    posts: pa.Table, p: params.PrepareParams, left_out: RejectedPosts, memory: Path | None = None
) -> pa.Table:
    """Return the posts whose picture can be used, with `content` and the true width and height."""
    if p.verify == "none":
        return posts
    verify_image = partial(verify.verify, level=p.verify, animated=p.animated)
    order = _in_place(posts)
    found = _worked(verify_image, posts.select(_PLACE).take(order), memory, "verifying")
    found = found.take(pc.sort_indices(order))
    for name in ("width", "height", "content"):
        posts = set_column(posts, name, found[name])
    usable = judge_reasons(found)
    posts, _ = ingest.judge(posts, usable, left_out)
    return ingest.judge(posts, filters.reject_by_size(posts, p.filters), left_out)[0]


def judge_reasons(found: pa.Table) -> list[Rejection]:
    """Return a verdict for each reason that a step gave."""
    return [
        Rejection(
            reason,
            pc.fill_null(pc.equal(found["reason"], reason), False).to_numpy(),
            found["detail"],
        )
        for reason in sorted(pc.unique(found["reason"]).drop_null().to_pylist())
    ]


def copied(posts: pa.Table, p: params.CopiesParams, left_out: RejectedPosts) -> pa.Table:
    """Return the posts with the place and size of a smaller copy, where copies are wanted."""
    if p.side is None:
        return posts
    order = _in_place(posts)
    made = resized_copies.write_copies(
        _originals(posts).take(order),
        p.folder,
        side=p.side,
        format=p.format,
        quality=p.quality,
        shard_size=p.shard_size * 1_000_000,
    )
    tables = list(progress.track_rows(made, len(posts), "copying"))
    copies = pa.concat_tables([resized_copies.SCHEMA.empty_table(), *tables])
    copies = copies.take(pc.sort_indices(order))
    for name in ("file", "shard", "offset", "size", "width", "height"):
        posts = set_column(posts, name, copies[name])
    return ingest.judge(posts, judge_reasons(copies), left_out)[0]


def _originals(posts: pa.Table) -> pa.Table:
    """Return what copies are known by: the content of a file where it was read, else its time.

    So the same pictures have the same copies whenever they came there.
    """
    content = _known_content(posts)
    modified = pc.if_else(pc.is_null(content), posts["modified"], pa.scalar(None, pa.int64()))
    known = set_column(posts.select(["id", *_PLACE]), "modified", modified)
    return known.append_column("content", content)


def grouped(posts: pa.Table, p: params.GroupParams, memory: Path | None = None) -> pa.Table:
    """Return the posts with `group`, the number of the first post that belongs with each."""
    kinships = []
    if p.parents:
        kinships.append(groups.pair_by_parent(posts["id"], posts["parent"]))
    if p.duplicates:
        kinships.append(groups.pair_by_content(_content(posts, memory)))
    if p.near is not None:
        from tagger.data import perceptual_hash

        hashes = _worked(
            partial(perceptual_hash.compute_hashes), posts.select(_PLACE), memory, "looking"
        )
        kinships.append(perceptual_hash.pair_by_hash(hashes["looks"], p.near))
    return set_column(posts, "group", pa.array(groups.number_groups(len(posts), *kinships)))


def _content(posts: pa.Table, memory: Path | None) -> pa.ChunkedArray:
    """Return the content hash of posts that may share their content, null of others."""
    known = _known_content(posts)
    rows = groups.find_equal_sizes(posts["size"], known)
    if not len(rows):
        return known
    wanted = posts.select(_PLACE).take(rows)
    hashes = _worked(partial(groups.hash_content), wanted, memory, "comparing files")["content"]
    taken = np.full(len(posts), -1, dtype=np.int64)
    taken[rows] = np.arange(len(rows))
    return pc.coalesce(known, hashes.take(pa.array(taken, mask=taken < 0)))


def _known_content(posts: pa.Table) -> pa.ChunkedArray:
    """Return the content hash of the files that were read whole, null of others."""
    if "content" in posts.column_names:
        return posts["content"]
    return pa.chunked_array([pa.nulls(len(posts), pa.binary())])


def _in_place(posts: pa.Table) -> pa.Array:
    """Return the rows in the order in which their pictures lie on the disk."""
    keys = [("shard", "ascending"), ("offset", "ascending")]
    if posts["shard"].null_count == len(posts):
        return pa.array(np.arange(len(posts)))
    return pc.sort_indices(posts.select(["shard", "offset"]), sort_keys=keys)


def _worked(
    function: workers.Work, pictures: pa.Table, memory: Path | None, description: str
) -> pa.Table:
    results = workers.map_chunks(function, workers.chunked(pictures, _CHUNK), memory)
    tables = list(progress.track_rows(results, len(pictures), description))
    return pa.concat_tables(tables) if tables else function(pictures)
