"""Embeddings of images in a file, for search and clustering."""

import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeAlias
from zipfile import BadZipFile, ZipFile

import numpy as np

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.inference.pipeline import FloatRow, ImagePrediction

SUFFIXES = (".npz", ".parquet")
ROWS_PER_BLOCK = 1_024  # rows held at a time

AddEmbedding: TypeAlias = Callable[[str, FloatRow], None]


def read_file_names(path: Path) -> frozenset[str]:
    """Return the images whose embeddings a file holds; none if it is not there."""
    if not path.exists():
        return frozenset()
    try:
        return frozenset(file for file, _ in _rows(path))
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise TaggerError(f"{path} holds no embeddings ({error}). Move it away.") from None


def write_embeddings(
    predictions: Iterable[ImagePrediction],
    path: Path,
    keep: frozenset[str],
    name: Callable[[Path], str],
) -> Iterator[ImagePrediction]:
    """Yield the predictions, and write their embeddings once all came, replacing the file.

    A .npz holds `files`, (images,), and `embeddings`, (images, features) float32; a .parquet
    has columns of these names but for `file` and `embedding`.
    keep: images whose embeddings stay, before the others
    """
    with files.atomic_write(path) as partial, ExitStack() as stack:
        add = stack.enter_context(_WRITERS[path.suffix](partial))
        for file, row in _rows(path) if keep else ():
            if file in keep:
                add(file, row)
        for prediction in predictions:
            if prediction.embedding is not None:
                add(name(prediction.image.file), prediction.embedding)
            yield prediction


def _rows(path: Path) -> Iterator[tuple[str, FloatRow]]:
    return _npz_rows(path) if path.suffix == ".npz" else _parquet_rows(path)


class _Npz:
    """Keep the numbers in a file of their own until their shape is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = path.with_name(f"{path.name}.numbers")
        self._names: list[str] = []
        self._width = 0

    def __enter__(self) -> AddEmbedding:
        self._file = self._numbers.open("wb")
        return self._add

    def _add(self, file: str, row: FloatRow) -> None:
        self._names.append(file)
        self._width = len(row)
        self._file.write(row.astype("<f4").tobytes())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
            if kind is None:
                self._assemble()
        finally:
            self._numbers.unlink()

    def _assemble(self) -> None:
        with ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("files.npy", "w", force_zip64=True) as member:
                np.save(member, np.array(self._names, dtype=np.str_))
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                shape = (len(self._names), self._width)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(member, header)
                with self._numbers.open("rb") as numbers:
                    shutil.copyfileobj(numbers, member)


def _npz_rows(path: Path) -> Iterator[tuple[str, FloatRow]]:
    with ZipFile(path) as archive:
        with archive.open("files.npy") as member:
            names = np.lib.format.read_array(member).tolist()
        with archive.open("embeddings.npy") as member:
            np.lib.format.read_magic(member)
            (count, width), _, kind = np.lib.format.read_array_header_2_0(member)
            if count != len(names) or kind != np.dtype("<f4"):
                raise ValueError(f"{count} rows of {kind} for {len(names)} files")
            for name in names:
                yield name, np.frombuffer(_exactly(member, 4 * width), "<f4")


def _exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) < size:
        raise ValueError("it ends too early")
    return content


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []
        self._block: list[FloatRow] = []
        self._writer: Any = None

    def __enter__(self) -> AddEmbedding:
        return self._add

    def _add(self, file: str, row: FloatRow) -> None:
        self._names.append(file)
        self._block.append(row)
        if len(self._names) == ROWS_PER_BLOCK:
            self._flush(len(row))

    def _flush(self, width: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = pa.list_(pa.float32(), width)
        schema = pa.schema([("file", pa.string()), ("embedding", kind)])
        self._writer = self._writer or pq.ParquetWriter(self._path, schema)
        numbers = np.concatenate(self._block) if self._block else np.empty(0, np.float32)
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=kind)
        self._writer.write_table(pa.table([pa.array(self._names), embeddings], schema=schema))
        self._names, self._block = [], []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and (self._names or self._writer is None):
            self._flush(len(self._block[0]) if self._block else 1)
        if self._writer is not None:
            self._writer.close()


def _parquet_rows(path: Path) -> Iterator[tuple[str, FloatRow]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_BLOCK, columns=["file", "embedding"]):
        rows = np.asarray(batch.column(1).flatten(), np.float32).reshape(len(batch), -1)
        yield from zip(batch.column(0).to_pylist(), rows, strict=True)


_WRITERS: dict[str, Callable[[Path], Any]] = {".npz": _Npz, ".parquet": _Parquet}
