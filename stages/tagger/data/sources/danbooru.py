"""Danbooru's metadata with images in tars or as files, as in danbooru2024-webp-4Mpixel.

The metadata is read in batches. Tars are read in place: memory holds the location of each member,
some fifty bytes an image.
"""

import threading
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
from tagger.data import rejected, sources
from tagger.data.hub import shards
from tagger.data.posts import COLUMNS, LOCATION_COLUMNS, set_columns
from tagger.data.sources import KNOWN_COLUMNS, PostBatch, Source
from tagger.images import find_images
from tagger.images.decode import SUFFIXES

_ROWS = 50_000  # posts at a time
_TAGS = {code: f"tag_string_{name}" for code, name in CATEGORIES.items() if name != "rating"}
_SCHEMA = pa.schema({"id": pa.int64(), **{name: COLUMNS[name] for name in LOCATION_COLUMNS}})
# Name of an image on Danbooru. Other files, such as sidecars, may lie beside it.
_ID = rf"(?i)(?:^|/)(?P<id>[0-9]{{1,18}})\.(?:{'|'.join(s[1:] for s in sorted(SUFFIXES))})$"
_UNSAFE = r"^/|(?:^|/)\.\.(?:/|$)"


@dataclass(frozen=True)
class DanbooruSource(Source):
    """The posts of Danbooru's metadata. Missing images are downloaded."""

    metadata: Path
    image_root: Path  # folder of tars and image files
    hub: params.DownloadParams

    def read(self, stop: threading.Event | None = None) -> Iterator[PostBatch]:
        """Yield the posts. Raises TaggerError if the file is no Parquet of posts with tags."""
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
        return PostBatch(
            sources.parse_posts(table, self.metadata), tags, rejected.SCHEMA.empty_table()
        )

    def _tag_columns(self, names: list[str]) -> dict[int | None, str]:
        """Return the tag columns by category, and `tag_string` of all if one is missing."""
        columns: dict[int | None, str] = {c: name for c, name in _TAGS.items() if name in names}
        if len(columns) < len(_TAGS) and "tag_string" in names:
            columns[None] = "tag_string"
        for column, is_present in (("id", "id" in names), ("tag_string", bool(columns))):
            if not is_present:
                raise TaggerError(
                    f"{self.metadata} has no column {column!r}, but {', '.join(names)}."
                )
        return columns

    def locate(self, posts: pa.Table) -> pa.Table:
        """Return the posts with the location of each image; file is null without one.

        Raises TaggerError if an id is not a number, or if no image can be downloaded.
        """
        try:
            ids = pc.cast(posts["id"], pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            raise TaggerError(f"{self.metadata}: column 'id' holds more than numbers.") from None
        if self.hub.repo:
            self._download(ids, self.hub.repo)
        locations = self._locations()
        located_ids = locations["id"].to_numpy()
        rows = np.minimum(np.searchsorted(located_ids, ids), max(0, len(located_ids) - 1))
        is_located = located_ids[rows] == ids if len(located_ids) else np.zeros(len(ids), np.bool_)
        return set_columns(
            posts, locations.take(pa.array(rows, mask=~is_located)), LOCATION_COLUMNS
        )

    def _download(self, ids: npt.NDArray[np.int64], repo: str) -> None:
        from tagger.data.hub import plan

        missing = plan.download_images(
            ids,
            repo,
            self.image_root,
            method=self.hub.method,
            revision=self.hub.revision,
            connections=self.hub.connections,
        )
        self.missing.update((str(post), reason) for post, reason in missing.items())

    def _locations(self) -> pa.Table:
        """Return the location of every image, by id. The first image of an id counts."""
        if not self.image_root.is_dir():
            raise TaggerError(f"prepare.image_root: there is no folder {self.image_root}.")
        tables = [_SCHEMA.empty_table()]
        for directory in find_images.scan_folders(self.image_root):
            self.notes.extend(
                f"{directory.path / name}: {why}" for name, why in directory.unreadable
            )
            tables.append(_image_files(directory))
            tars = sorted(name for name in directory.names if name.endswith(".tar"))
            tables.extend(self._members(directory.path / name) for name in tars)
        locations = pa.concat_tables(tables).filter(pc.field("id").is_valid())
        _, first = np.unique(locations["id"].to_numpy(), return_index=True)
        return locations.take(pa.array(first))

    def _members(self, tar: Path) -> pa.Table:
        try:
            index, distrust = shards.open_index(tar)
        except TaggerError as error:
            self.notes.append(str(error))
            return _SCHEMA.empty_table()
        if distrust:
            self.notes.append(f"{distrust.rstrip('.')}: read from the tar itself")
        names = pa.array(index.names, pa.string())
        safe = pc.invert(pc.or_(pc.match_substring_regex(names, _UNSAFE), _unprintable(names)))
        unsafe = len(safe) - pc.sum(safe, min_count=0).as_py()
        if unsafe:
            self.notes.append(f"{tar}: {unsafe:,} members with unsafe names are skipped")
        columns = {
            "file": names,
            "shard": pa.repeat(pa.scalar(str(tar)), len(names)),
            "offset": pa.array(index.offsets),
            "size": pa.array(index.sizes),
            "modified": pa.repeat(pa.scalar(tar.stat().st_mtime_ns), len(names)),
        }
        return _numbered(names, columns).filter(safe)


def _image_files(directory: find_images.Directory) -> pa.Table:
    entries = [entry for entry in directory.images if _exists(entry.path)]
    stats = [entry.stat() for entry in entries]
    columns = {
        "file": pa.array([entry.path for entry in entries], pa.string()),
        "shard": pa.nulls(len(entries), pa.string()),
        "offset": pa.repeat(pa.scalar(0), len(entries)),
        "size": pa.array([stat.st_size for stat in stats], pa.int64()),
        "modified": pa.array([stat.st_mtime_ns for stat in stats], pa.int64()),
    }
    return _numbered(pa.array([entry.name for entry in entries], pa.string()), columns)


def _exists(path: str) -> bool:
    return path == path.encode("utf-8", "replace").decode() and Path(path).exists()


def _numbered(names: pa.Array, columns: dict[str, pa.Array]) -> pa.Table:
    """Return the columns with the id in each name, null if the name has none."""
    ids = pc.struct_field(pc.extract_regex(names, _ID), "id").cast(pa.int64())
    return pa.table({"id": ids, **columns}, schema=_SCHEMA)


def _unprintable(names: pa.Array) -> pa.Array:
    return pc.invert(pc.utf8_is_printable(names))
