"""The tags of many images in one file: written as they come, and resumed later."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.inference.captions import Caption

HEADER = ("file", "tag", "category", "confidence")
ROWS_PER_GROUP = 65_536  # rows of a Parquet held at a time

WriteTable: TypeAlias = Callable[[Iterable[Caption], Path, Sequence[str], frozenset[str]], None]


def read_file_names(path: Path) -> frozenset[str]:
    """Return the images of a table, as `encode_path` writes them; none if it is not there."""
    if not path.exists():
        return frozenset()
    with _reported(path):
        return frozenset(_FILE_NAMES[path.suffix](path))


def encode_path(file: Path) -> str:
    r"""Return a path as tables hold it: bytes that are no UTF-8 are written `\udcff`."""
    return str(file).encode(errors="backslashreplace").decode()


def write(
    captions: Iterable[Caption], path: Path, categories: Sequence[str], keep: frozenset[str]
) -> None:
    """Write a table in the form of its suffix, in the place of an earlier one.

    categories: of the tags that are written
    keep: images whose rows of the earlier table stay, before the others
    """
    _WRITERS[path.suffix](captions, path, categories, keep)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise TaggerError(
            f"{path} is no table of this program ({error}). Move it away, or leave out "
            "--skip-existing to replace it."
        ) from None


def _object(caption: Caption, categories: Sequence[str]) -> dict[str, Any]:
    tags: dict[str, dict[str, float]] = {name: {} for name in categories}
    for tag in caption.tags_with_rating(categories):
        tags[tag.category][tag.name] = round(tag.confidence, 6)
    rating = caption.rating.name if caption.rating else None
    return {"file": encode_path(caption.image.file), "rating": rating, "tags": tags}


def _csv_rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, strict=True)
        if tuple(next(rows, ())) != HEADER:
            raise ValueError(f"its columns are not {','.join(HEADER)}")
        yield from rows


def _write_csv(
    captions: Iterable[Caption], path: Path, categories: Sequence[str], keep: frozenset[str]
) -> None:
    kept = (row for row in _csv_rows(path) if row[0] in keep) if keep else ()
    new = (
        (encode_path(caption.image.file), tag.name, tag.category, f"{tag.confidence:.6f}")
        for caption in captions
        for tag in caption.tags_with_rating(categories)
    )
    files.write_csv(path, HEADER, chain(kept, new))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the file of each object, and the line that holds the object."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            content = line.strip().removesuffix(",")
            if content not in ("", "[", "]"):
                yield json.loads(content)["file"], content


def _objects(
    captions: Iterable[Caption], path: Path, categories: Sequence[str], keep: frozenset[str]
) -> Iterator[str]:
    if keep:
        yield from (line for file, line in _lines(path) if file in keep)
    for caption in captions:
        yield json.dumps(_object(caption, categories), ensure_ascii=False)


def _write_json(
    captions: Iterable[Caption], path: Path, categories: Sequence[str], keep: frozenset[str]
) -> None:
    """Write a list, or lines, with an object for each image on a line of its own."""
    start, between, end = ("", "\n", "") if path.suffix == ".jsonl" else ("[\n", ",\n", "]\n")
    objects = _objects(captions, path, categories, keep)
    with (
        files.atomic_write(path) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        file.write(start)
        for number, content in enumerate(objects):
            file.write(between * bool(number) + content)
            end = "\n" + end.removeprefix("\n")
        file.write(end)


def _parquet_rows(path: Path) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(columns=list(HEADER)):
        yield from zip(*map(pa.Array.to_pylist, batch.columns), strict=True)


def _write_parquet(
    captions: Iterable[Caption], path: Path, categories: Sequence[str], keep: frozenset[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (pa.string(), pa.string(), pa.string(), pa.float32())
    schema = pa.schema(list(zip(HEADER, types, strict=True)))
    kept = (row for row in _parquet_rows(path) if row[0] in keep) if keep else ()
    new = (
        (encode_path(caption.image.file), *tag)
        for caption in captions
        for tag in caption.tags_with_rating(categories)
    )
    rows = chain(kept, new)
    with files.atomic_write(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            columns = zip(*group, strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


_WRITERS: dict[str, WriteTable] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".jsonl": _write_json,
    ".parquet": _write_parquet,
}

_FILE_NAMES: dict[str, Callable[[Path], Iterable[str]]] = {
    ".csv": lambda path: (row[0] for row in _csv_rows(path)),
    ".json": lambda path: (file for file, _ in _lines(path)),
    ".jsonl": lambda path: (file for file, _ in _lines(path)),
    ".parquet": lambda path: (row[0] for row in _parquet_rows(path)),
}
