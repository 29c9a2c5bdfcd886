"""A table with a row per image: CSV, Parquet or JSON lines, with the path and the tags.

Further columns are used if the table has them, under Danbooru's names: `id`, `rating`, `score`,
`created_at`, `parent_id`, `width`, `height`, `is_deleted`, `is_banned`. Read in blocks.
"""

import csv
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from tagger.core.errors import TaggerError, did_you_mean, one_line
from tagger.core.vocabulary import RATING
from tagger.data import rejected, sources
from tagger.data.posts import COLUMNS, set_column, table_from_rows
from tagger.data.sources import KNOWN_COLUMNS, PostBatch, Source


@dataclass(frozen=True)
class TableSource(Source):
    """The rows of a table. Its paths start at `image_root`; without an id, the path is the id."""

    path: Path
    image_root: Path
    path_column: str
    tag_column: str
    separator: str
    block_rows: int = 100_000  # of Parquet
    block_bytes: int = 1 << 24  # of a text

    def read(self, stop: threading.Event | None = None) -> Iterator[PostBatch]:
        """Yield the rows. Raises TaggerError if it is no such table or lacks a column."""
        invalid_rows: list[str] = []
        try:
            for table in self._blocks(invalid_rows):
                yield self._batch(table)
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise TaggerError(f"{self.path} cannot be read: {one_line(error)}.") from None
        if invalid_rows:
            rows = [(f"{self.path.name}: a row", "unreadable row", row) for row in invalid_rows]
            no_posts = pa.table({"id": pa.array([], pa.string())})
            no_tags = pa.array([], pa.list_(pa.string()))
            yield PostBatch(no_posts, {None: no_tags}, table_from_rows(rows, rejected.SCHEMA))

    def locate(self, posts: pa.Table) -> pa.Table:
        """Return the posts with the size of each file; size and file are null without a file."""
        sizes: list[int | None] = []
        times: list[int | None] = []
        for file in posts["file"].to_pylist():
            try:
                status = Path(file).stat()
                is_file = stat.S_ISREG(status.st_mode)
            except (OSError, TypeError, ValueError):
                is_file = False
            sizes.append(status.st_size if is_file else None)
            times.append(status.st_mtime_ns if is_file else None)
        for name, values in (("size", sizes), ("modified", times)):
            posts = set_column(posts, name, pa.array(values, COLUMNS[name]))
        is_missing = pc.is_null(posts["size"])
        file = pc.if_else(is_missing, pa.scalar(None, pa.string()), posts["file"])
        return set_column(posts, "file", file)

    def _batch(self, table: pa.Table) -> PostBatch:
        self._require_columns(table.column_names)
        posts = sources.parse_posts(table, self.path)
        paths = sources.parse_texts(table[self.path_column])
        root = "" if self.image_root == Path() else f"{self.image_root.as_posix()}/"
        rooted = pc.binary_join_element_wise(root, paths, "")
        columns = {"id": paths, **dict(zip(posts.column_names, posts.columns, strict=True))}
        columns["file"] = pc.if_else(pc.starts_with(paths, "/"), paths, rooted)
        columns["offset"] = pa.array(np.zeros(len(table), np.int64))
        tags: dict[int | None, pa.Array] = {
            None: sources.parse_tags(table[self.tag_column], self.separator)
        }
        if "rating" in table.column_names:
            tags[RATING] = sources.parse_ratings(table)
        return PostBatch(pa.table(columns), tags, rejected.SCHEMA.empty_table())

    def _require_columns(self, names: list[str]) -> None:
        for key in ("path_column", "tag_column"):
            column = getattr(self, key)
            if column not in names:
                raise TaggerError(
                    f"{self.path} has no column {column!r}.{did_you_mean(column, names)} "
                    f"prepare.{key} must be one of {', '.join(names)}."
                )

    def _used_columns(self, names: list[str]) -> list[str]:
        return [n for n in names if n in (self.path_column, self.tag_column, *KNOWN_COLUMNS)]

    def _blocks(self, invalid_rows: list[str]) -> Iterator[pa.Table]:
        if not self.path.is_file():
            raise TaggerError(f"prepare.path: there is no file {self.path}.")
        suffix = self.path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            blocks: Any = self._open_csv("\t" if suffix == ".tsv" else ",", invalid_rows)
        elif suffix in (".jsonl", ".ndjson"):
            options = pyarrow.json.ReadOptions(block_size=self.block_bytes)
            blocks = pyarrow.json.open_json(self.path, read_options=options)
        elif suffix == ".parquet":
            file = pq.ParquetFile(self.path)
            names = file.schema_arrow.names
            self._require_columns(names)
            blocks = file.iter_batches(self.block_rows, columns=self._used_columns(names))
        else:
            raise TaggerError(
                f"prepare.path: {self.path} is none of .csv, .tsv, .parquet, .jsonl and .ndjson."
            )
        for block in blocks:
            yield pa.Table.from_batches([block])

    def _open_csv(self, delimiter: str, invalid_rows: list[str]) -> Any:
        """Open a CSV. All its values are texts: `null` is a tag like any other."""
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=delimiter), [])
        self._require_columns(header)
        names = self._used_columns(header)

        def skip(row: Any) -> str:
            columns = f"{row.actual_columns} columns, {row.expected_columns} expected"
            invalid_rows.append(" ".join(f"{columns}: {row.text[:80]}".split()))
            return "skip"

        return pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=self.block_bytes),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string())
            ),
        )
