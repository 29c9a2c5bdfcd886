"""Danbooru's metadata with its pictures in tars or loose, as in danbooru2024-webp-4Mpixel.

The metadata is read in batches. Of the pictures, tars are read in place: what is held of them is
where each member lies, some fifty bytes a picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tagger import params
from tagger.core.errors import TaggerError, one_line
from tagger.core.vocabulary import CATEGORIES, RATING
from tagger.data import sources
from tagger.data.hub import shards
from tagger.data.sources import COLUMNS, KNOWN_COLUMNS, REJECTED, PostBatch, Source, set_column
from tagger.images import find_images
from tagger.images.decode import SUFFIXES

_ROWS = 50_000  # posts at a time
_TAGS = {code: f"tag_string_{name}" for code, name in CATEGORIES.items() if name != "rating"}
_PLACE = ("file", "shard", "offset", "size", "modified")
_SCHEMA = pa.schema({"id": pa.int64(), **{name: COLUMNS[name] for name in _PLACE}})
# the name of a picture of Danbooru's; its tags may lie beside it
_ID = rf"(?i)(?:^|/)(?P<id>[0-9]{{1,18}})\.(?:{'|'.join(s[1:] for s in sorted(SUFFIXES))})$"
_UNSAFE = r"^/|(?:^|/)\.\.(?:/|$)"


@dataclass(frozen=True)
class DanbooruSource(Source):
    """Posts of Danbooru's metadata. Pictures that are wanted and not there are fetched."""

    metadata: Path
    image_root: Path  # folder of tars and loose files
    hub: params.DownloadParams

    def read(self) -> Iterator[PostBatch]:
        """Yield the posts. Raises TaggerError for what is no Parquet of posts with tags."""
        if not self.metadata.is_file():
            raise TaggerError(f"prepare.path: there is no file {self.metadata}.")
        try:
            with pq.ParquetFile(self.metadata) as file:
                tags = self._tag_columns(file.schema_arrow.names)
                names = [name for name in KNOWN_COLUMNS if name in file.schema_arrow.names]
                for batch in file.iter_batches(_ROWS, columns=[*names, *tags.values()]):
                    yield self._batch(pa.Table.from_batches([batch]), tags)
        except (OSError, pa.ArrowException) as error:
            raise TaggerError(f"{self.metadata} cannot be read: {one_line(error)}.") from None

    def _batch(self, table: pa.Table, columns: dict[int | None, str]) -> PostBatch:
        tags = {code: sources.parse_tags(table[name], " ") for code, name in columns.items()}
        if "rating" in table.column_names:
            tags[RATING] = sources.parse_ratings(table)
        return PostBatch(sources.parse_posts(table, self.metadata), tags, REJECTED.empty_table())

    def _tag_columns(self, names: list[str]) -> dict[int | None, str]:
        """Return the columns of tags by category; `tag_string`, of all, where one is missing."""
        found: dict[int | None, str] = {c: name for c, name in _TAGS.items() if name in names}
        if len(found) < len(_TAGS) and "tag_string" in names:
            found[None] = "tag_string"
        for needed, there in (("id", "id" in names), ("tag_string", bool(found))):
            if not there:
                raise TaggerError(
                    f"{self.metadata} has no column {needed!r}, but {', '.join(names)}."
                )
        return found

    def locate(self, posts: pa.Table) -> pa.Table:
        """Return the posts with where the picture of each lies; file is null where there is none.

        Raises TaggerError where an id is no number, and where nothing can be fetched.
        """
        try:
            ids = pc.cast(posts["id"], pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            raise TaggerError(f"{self.metadata}: column 'id' holds what is no number.") from None
        if self.hub.repo:
            self._fetch(ids, self.hub.repo)
        places = self._places()
        known = places["id"].to_numpy()
        rows = np.minimum(np.searchsorted(known, ids), max(0, len(known) - 1))
        there = known[rows] == ids if len(known) else np.zeros(len(ids), dtype=np.bool_)
        taken = places.take(pa.array(rows, mask=~there))
        for name in _PLACE:
            posts = set_column(posts, name, taken[name])
        return posts

    def _fetch(self, ids: npt.NDArray[np.int64], repo: str) -> None:
        from tagger.data.hub import plan

        how, revision, connections = self.hub.method, self.hub.revision, self.hub.connections
        lost = plan.download_images(
            ids, repo, self.image_root, method=how, revision=revision, connections=connections
        )
        self.missing.update((str(post), reason) for post, reason in lost.items())

    def _places(self) -> pa.Table:
        """Return where every picture of the folder lies, by id; the first of each id counts."""
        if not self.image_root.is_dir():
            raise TaggerError(f"prepare.image_root: there is no folder {self.image_root}.")
        tables = [_SCHEMA.empty_table()]
        for directory in find_images.scan_folders(self.image_root):
            self.notes.extend(
                f"{directory.path / name}: {why}" for name, why in directory.unreadable
            )
            tables.append(_loose(directory))
            tars = sorted(name for name in directory.names if name.endswith(".tar"))
            tables.extend(self._members(directory.path / name) for name in tars)
        places = pa.concat_tables(tables).filter(pc.field("id").is_valid())
        _, first = np.unique(places["id"].to_numpy(), return_index=True)
        return places.take(pa.array(first))

    def _members(self, tar: Path) -> pa.Table:
        try:
            index, doubt = shards.open_index(tar)
        except TaggerError as error:
            self.notes.append(str(error))
            return _SCHEMA.empty_table()
        if doubt:
            self.notes.append(f"{doubt.rstrip('.')}: read from the tar itself")
        names = pa.array(index.names, pa.string())
        safe = pc.invert(pc.or_(pc.match_substring_regex(names, _UNSAFE), _unprintable(names)))
        unsafe = len(safe) - pc.sum(safe, min_count=0).as_py()
        if unsafe:
            self.notes.append(f"{tar}: {unsafe:,} members with unsafe names are left out")
        columns = {
            "file": names,
            "shard": pa.repeat(pa.scalar(str(tar)), len(names)),
            "offset": pa.array(index.offsets),
            "size": pa.array(index.sizes),
            "modified": pa.repeat(pa.scalar(tar.stat().st_mtime_ns), len(names)),
        }
        return _numbered(names, columns).filter(safe)


def _loose(directory: find_images.Directory) -> pa.Table:
    entries = [entry for entry in directory.images if _is_there(entry.path)]
    stats = [entry.stat() for entry in entries]
    columns = {
        "file": pa.array([entry.path for entry in entries], pa.string()),
        "shard": pa.nulls(len(entries), pa.string()),
        "offset": pa.repeat(pa.scalar(0), len(entries)),
        "size": pa.array([stat.st_size for stat in stats], pa.int64()),
        "modified": pa.array([stat.st_mtime_ns for stat in stats], pa.int64()),
    }
    return _numbered(pa.array([entry.name for entry in entries], pa.string()), columns)


def _is_there(path: str) -> bool:
    return path == path.encode("utf-8", "replace").decode() and Path(path).exists()


def _numbered(names: pa.Array, columns: dict[str, pa.Array]) -> pa.Table:
    """Return the columns with the id that each name is, null for another kind of name."""
    ids = pc.struct_field(pc.extract_regex(names, _ID), "id").cast(pa.int64())
    return pa.table({"id": ids, **columns}, schema=_SCHEMA)


def _unprintable(names: pa.Array) -> pa.Array:
    return pc.invert(pc.utf8_is_printable(names))
