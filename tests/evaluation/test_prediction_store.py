"""Predictions come back from disk as they were written, by tags and by pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tagger.core.arrays import Scores
from tagger.core.errors import TaggerError
from tagger.evaluation import columns, prediction_store, quantized_logits
from tagger.evaluation.counting import Ints
from tagger.evaluation.prediction_store import LogitBlock, PredictionStore, StoreLabels


def draw(pictures: int, tags: int, seed: int = 0) -> tuple[Scores, csr_array]:
    random = np.random.default_rng(seed)
    labels = csr_array(random.random((pictures, tags)) < 0.3)
    return random.normal(0, 4, (pictures, tags)).astype(np.float32), labels


def blocks(logits: Scores, size: int = 7, rows: Ints | None = None) -> Iterator[LogitBlock]:
    rows = np.arange(len(logits)) if rows is None else rows
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield some.tolist(), logits[some]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_store, "_TILE", 1)
    monkeypatch.setattr(prediction_store, "_LEAST", 10)


@pytest.mark.usefixtures("small_tiles")
@settings(max_examples=40)
@given(st.integers(0, 35), st.integers(1, 6), st.integers(1, 40))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, image_folder: int, tags: int, size: int
) -> None:
    logits, labels = draw(image_folder, tags)
    path = tmp_path_factory.mktemp("scored") / "part.logits"
    with prediction_store.write(path, StoreLabels(labels), blocks(logits, size)) as part:
        expected = quantized_logits.quantize(logits).T
        for start in range(tags):
            assert np.array_equal(part.read_tags(start, tags), expected[start:])
        tiled = [(where, tile) for where, tile in part.tiles()]
        assert sum(tile.shape[1] for _, tile in tiled) == image_folder
        for where, tile in tiled:
            assert np.array_equal(tile, expected[:, where])
        read = list(
            columns.map_tag_blocks(part, lambda some: (some.tags, some.scores.copy(), some.rows))
        )
        assert np.array_equal(np.concatenate([block for _, block, _ in read]), expected)
        assert sum(len(rows) for *_, rows in read) == labels.nnz
    assert not path.exists()


def test_pictures_that_were_not_predicted_are_left_out(tmp_path: Path) -> None:
    logits, labels = draw(20, 3)
    rows = np.array([4, 2, 19, 7])
    groups = np.arange(20) // 3
    with write(tmp_path, blocks(logits, 2, rows), StoreLabels(labels, groups)) as part:
        assert len(part) == 4
        assert np.array_equal(part.labels.toarray(), labels.toarray()[rows])
        assert np.array_equal(part.read_tags(0, 3), quantized_logits.quantize(logits[rows]).T)
        assert part.groups.tolist() == [1, 0, 3, 2]


def write(folder: Path, some: Iterator[LogitBlock], truth: StoreLabels) -> PredictionStore:
    return prediction_store.write(folder / "part.logits", truth, some)


def test_where_a_post_has_no_tag_of_an_unlabelled_group_its_scores_are_unknown(
    tmp_path: Path,
) -> None:
    logits, _ = draw(3, 4)
    labels = csr_array(np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], np.bool_))
    truth = StoreLabels(labels, unlabelled=[np.array([0, 1])])
    with write(tmp_path, blocks(logits), truth) as part:
        unknown = part.read_tags(0, 4).T == quantized_logits.UNKNOWN
    assert unknown.tolist() == [[False] * 4, [True, True, False, False], [False] * 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_is_told_with_its_place(tmp_path: Path, bad: float) -> None:
    logits, labels = draw(20, 3)
    logits[11, 2] = bad
    with pytest.raises(TaggerError, match=f"says {bad} of picture 11 and tag 2"):
        write(tmp_path, blocks(logits), StoreLabels(labels))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_where_predicting_fails(tmp_path: Path) -> None:
    logits, labels = draw(20, 3)

    def failing() -> Iterator[LogitBlock]:
        yield from blocks(logits)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, failing(), StoreLabels(labels))
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_cut_is_told(tmp_path: Path) -> None:
    logits, labels = draw(20, 3)
    with write(tmp_path, blocks(logits), StoreLabels(labels)) as part:
        part.path.write_bytes(part.path.read_bytes()[:50])
        with pytest.raises(TaggerError, match="end early"):
            part.read_tags(0, 3)
