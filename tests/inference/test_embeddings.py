"""Embeddings in a file: written, read back, kept and refused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tagger.core.errors import TaggerError
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.inference import embeddings, tables
from tagger.inference.inputs import InputImage
from tagger.inference.pipeline import ImagePrediction
from tagger.models.tagger import Tagger


def predictions(rows: dict[str, list[float]]) -> Iterator[ImagePrediction]:
    for name, row in rows.items():
        embedding = np.array(row, np.float32) if row else None
        yield ImagePrediction(InputImage(Path(name), Path()), np.ones(2, np.float32), embedding)


def write(path: Path, rows: dict[str, list[float]], keep: frozenset[str] = frozenset()) -> None:
    for _ in embeddings.write_embeddings(predictions(rows), path, keep, tables.encode_path):
        pass


def read(path: Path) -> dict[str, list[float]]:
    """Read as anyone would, without this project."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            files, rows = archive["files"], archive["embeddings"]
        assert rows.dtype == np.float32
        return dict(zip(files.tolist(), rows.tolist(), strict=True))
    table = pq.read_table(path)
    names, rows = table["file"].to_pylist(), table["embedding"].to_pylist()
    return dict(zip(names, rows, strict=True))


@pytest.fixture(params=embeddings.SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "deep" / f"seen{request.param}"


def test_written_embeddings_are_read_back_and_failed_images_have_none(path: Path) -> None:
    write(path, {"a.png": [1, 2, 3], "bad.png": [], "größe.png": [4, 5, 6]})
    assert read(path) == {"a.png": [1, 2, 3], "größe.png": [4, 5, 6]}
    assert embeddings.read_file_names(path) == {"a.png", "größe.png"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_many_embeddings_are_written_in_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "ROWS_PER_BLOCK", 3)
    rows = {f"{number}.png": [float(number), 1.0] for number in range(10)}
    write(path, rows)
    assert read(path) == rows


def test_kept_embeddings_stay_before_the_others(path: Path) -> None:
    write(path, {"a.png": [1, 2], "b.png": [3, 4], "c.png": [5, 6]})
    write(path, {"b.png": [7, 8]}, keep=frozenset(("a.png", "c.png")))
    assert list(read(path).items()) == [("a.png", [1, 2]), ("c.png", [5, 6]), ("b.png", [7, 8])]


def test_no_embeddings_make_a_file_of_no_rows(path: Path) -> None:
    write(path, {})
    assert read(path) == {}
    assert embeddings.read_file_names(path) == set()


def test_an_interrupted_run_keeps_the_earlier_file(path: Path) -> None:
    write(path, {"a.png": [1, 2]})

    def breaking() -> Iterator[ImagePrediction]:
        yield from predictions({"b.png": [3, 4]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(embeddings.write_embeddings(breaking(), path, frozenset(), tables.encode_path))
    assert read(path) == {"a.png": [1, 2]}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_without_embeddings_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(TaggerError, match=rf"{path.name} holds no embeddings .* Move it away"):
        embeddings.read_file_names(path)


def test_infer_writes_the_embeddings_of_the_model(
    run_infer: Callable[..., int], image_folder: Path, tagger: Tagger, split: Split
) -> None:
    assert run_infer(image_folder, "--embeddings", "seen.npz") == 0
    square = tagger.preprocess.to_square(decode.open_rgb(split.locations[0]))
    (expected,) = tagger.run(square[None], "embeddings")
    file_embeddings = read(Path("seen.npz"))
    assert list(file_embeddings) == [str(image_folder / f"{name}.png") for name in "abc"]
    assert file_embeddings[str(image_folder / "a.png")] == pytest.approx(expected[0], abs=1e-5)
