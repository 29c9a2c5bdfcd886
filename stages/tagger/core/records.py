"""Rows of a small table, CSV, Parquet, JSON or JSON lines, one by one, each with its place.

Every value of a CSV is text: `null` and `nan` are tags like any other.
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tagger.core.errors import TaggerError, one_line

Record = dict[str, Any]


def read_table(folder: Path, name: str) -> Iterator[tuple[str, Record]]:
    """Yield place and row for each row of a table in a folder; nothing if it is missing.

    Raises TaggerError for an unreadable file or a malformed row.
    """
    paths = (folder / f"{name}{suffix}" for suffix in _READERS)
    path = next((path for path in paths if path.exists()), None)
    if path is not None:
        yield from read_rows(path)


def read_rows(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield place and row for each row of a table. Raises TaggerError as `read_table` does."""
    if path.suffix not in _READERS:
        raise TaggerError(f"{path} is no table: its name must end in {', '.join(_READERS)}.")
    count = 0
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        for place, row in _READERS[path.suffix](path):
            count += 1
            yield f"{path}: {place}", row
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        after = f" after {count:,} rows" if count else ""
        raise TaggerError(f"{path} cannot be read{after}: {one_line(error)}.") from None


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = [name.strip() for name in next(reader, [])]
        for row in reader:
            if len(row) == len(names):
                yield f"line {reader.line_num}", dict(zip(names, row, strict=True))
            elif row:
                counts = f"{len(row)} columns, {len(names)} expected"
                raise TaggerError(f"{path}: line {reader.line_num}: {counts}.")


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    import pyarrow as pa  # takes a while to load, and few tables need it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = (map(pa.Array.to_pylist, batch.columns) for batch in file.iter_batches())
            rows = chain.from_iterable(zip(*batch, strict=True) for batch in columns)
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", dict(zip(names, row, strict=True))
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the objects of a list, or one on each line: Danbooru calls both JSON."""
    with path.open(encoding="utf-8-sig") as file:
        is_list = file.read(1_000).lstrip().startswith("[")
        file.seek(0)
        rows = json.load(file) if is_list else map(json.loads, filter(str.strip, file))
        kind = "item" if is_list else "object"
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise TaggerError(f"{path}: {kind} {number} is {str(row)[:80]!r}, not an object.")
            yield f"{kind} {number}", row


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Record]]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json,
}
