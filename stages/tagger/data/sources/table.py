"""One table with a row per picture: a CSV, Parquet or JSON-lines file with a path and its tags.

Further columns under Danbooru's names (`id`, `rating`, `score`, `created_at`, `parent_id`, `width`,
`height`, `is_deleted`, `is_banned`) are used where they are there. Read in blocks.
"""

import csv
import stat
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
from tagger.data import sources
from tagger.data.sources import (
    COLUMNS,
    KNOWN_COLUMNS,
    REJECTED,
    PostBatch,
    Source,
    set_column,
    table_from_rows,
)

_ROWS = 100_000  # at a time
_BYTES = 1 << 24  # at a time, of a text


@dataclass(frozen=True)
class TableSource(Source):
    """The rows of a table. Paths are taken from `pictures`; the path is the id if there is none."""

    path: Path
    image_root: Path
    path_column: str
    tag_column: str
    separator: str

    def read(self) -> Iterator[PostBatch]:
        """Yield the rows. Raises TaggerError for what is no such table or lacks a column."""
        invalid: list[str] = []
        try:
            for table in self._blocks(invalid):
                yield self._batch(table)
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise TaggerError(f"{self.path} cannot be read: {one_line(error)}.") from None
        if invalid:
            rows = [(f"{self.path.name}: a row", "unreadable row", detail) for detail in invalid]
            nothing = pa.table({"id": pa.array([], pa.string())})
            empty = pa.array([], pa.list_(pa.string()))
            yield PostBatch(nothing, {None: empty}, table_from_rows(rows, REJECTED))

    def locate(self, posts: pa.Table) -> pa.Table:
        """Return the posts with the size of each file; null where there is none."""
        sizes: list[int | None] = []
        times: list[int | None] = []
        for file in posts["file"].to_pylist():
            try:
                found = Path(file).stat()
                is_file = stat.S_ISREG(found.st_mode)
            except (OSError, TypeError, ValueError):
                is_file = False
            sizes.append(found.st_size if is_file else None)
            times.append(found.st_mtime_ns if is_file else None)
        located = {"size": sizes, "modified": times}
        for name, values in located.items():
            posts = set_column(posts, name, pa.array(values, COLUMNS[name]))
        there = pc.is_valid(posts["size"])
        file = pc.if_else(there, posts["file"], pa.scalar(None, pa.string()))
        return set_column(posts, "file", file)

    def _batch(self, table: pa.Table) -> PostBatch:
        self._require(table.column_names)
        known = sources.parse_posts(table, self.path)
        paths = sources.parse_texts(table[self.path_column])
        files = pc.if_else(
            pc.starts_with(paths, "/"), paths, pc.binary_join_element_wise(self._base(), paths, "")
        )
        columns = {"id": paths, **dict(zip(known.column_names, known.columns, strict=True))}
        columns |= {"file": files, "offset": pa.array(np.zeros(len(table), np.int64))}
        tags: dict[int | None, pa.Array] = {
            None: sources.parse_tags(table[self.tag_column], self.separator)
        }
        if "rating" in table.column_names:
            tags[RATING] = sources.parse_ratings(table)
        return PostBatch(pa.table(columns), tags, REJECTED.empty_table())

    def _base(self) -> str:
        return "" if self.image_root == Path() else f"{self.image_root.as_posix()}/"

    def _require(self, names: list[str]) -> None:
        for key in ("path_column", "tag_column"):
            wanted = getattr(self, key)
            if wanted not in names:
                raise TaggerError(
                    f"{self.path} has no column {wanted!r}.{did_you_mean(wanted, names)} "
                    f"prepare.{key} must be one of {', '.join(names)}."
                )

    def _blocks(self, invalid: list[str]) -> Iterator[pa.Table]:
        if not self.path.is_file():
            raise TaggerError(f"prepare.path: there is no file {self.path}.")
        suffix = self.path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            blocks: Any = self._csv("\t" if suffix == ".tsv" else ",", invalid)
        elif suffix in (".jsonl", ".ndjson"):
            options = pyarrow.json.ReadOptions(block_size=_BYTES)
            blocks = pyarrow.json.open_json(self.path, read_options=options)
        elif suffix == ".parquet":
            file = pq.ParquetFile(self.path)
            self._require(file.schema_arrow.names)
            wanted = self._wanted(file.schema_arrow.names)
            blocks = file.iter_batches(_ROWS, columns=wanted)
        else:
            raise TaggerError(
                f"prepare.path: {self.path} is none of .csv, .tsv, .parquet, .jsonl and .ndjson."
            )
        for block in blocks:
            yield pa.Table.from_batches([block])

    def _csv(self, delimiter: str, invalid: list[str]) -> Any:
        """Open a CSV whose values are all texts: `null` is a tag like any other."""
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=delimiter), [])
        self._require(header)
        names = self._wanted(header)

        def skip(row: Any) -> str:
            found = f"{row.actual_columns} columns, {row.expected_columns} expected"
            invalid.append(" ".join(f"{found}: {row.text[:80]}".split()))
            return "skip"

        return pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string())
            ),
        )

    def _wanted(self, names: list[str]) -> list[str]:
        return [
            name for name in names if name in (self.path_column, self.tag_column, *KNOWN_COLUMNS)
        ]
