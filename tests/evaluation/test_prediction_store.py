"""The prediction store reads what was written, by tags and by images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tagger.core.arrays import Ints, Scores
from tagger.core.errors import TaggerError
from tagger.evaluation import prediction_store, quantized_logits
from tagger.evaluation.prediction_store import LogitBlock, PredictionStore, StoreLabels


def draw(images: int, tags: int, seed: int = 0) -> tuple[Scores, csr_array]:
    random = np.random.default_rng(seed)
    labels = csr_array(random.random((images, tags)) < 0.3)
    return random.normal(0, 4, (images, tags)).astype(np.float32), labels


def blocks(logits: Scores, size: int = 7, rows: Ints | None = None) -> Iterator[LogitBlock]:
    rows = np.arange(len(logits)) if rows is None else rows
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield block.tolist(), logits[block]


@settings(max_examples=40)
@given(st.integers(0, 35), st.integers(1, 6), st.integers(1, 40))
def test_a_store_reads_what_was_written_by_tags_and_by_tiles(
    tmp_path_factory: pytest.TempPathFactory, images: int, tags: int, size: int
) -> None:
    logits, labels = draw(images, tags)
    path = tmp_path_factory.mktemp("store") / "test.logits"
    with prediction_store.write(path, StoreLabels(labels), blocks(logits, size), 10) as store:
        expected = quantized_logits.quantize(logits).T
        for start in range(tags):
            assert np.array_equal(store.read_tags(start, tags), expected[start:])
        tiles = list(store.tiles())
        assert sum(tile.shape[1] for _, tile in tiles) == images
        for inside, tile in tiles:
            assert np.array_equal(tile, expected[:, inside])
        read = list(store.map_tag_blocks(lambda block: (block.scores.copy(), block.rows)))
        assert np.array_equal(np.concatenate([scores for scores, _ in read]), expected)
        assert sum(len(rows) for _, rows in read) == labels.nnz
    assert not path.exists()


def test_a_store_holds_only_the_predicted_images(tmp_path: Path) -> None:
    logits, labels = draw(20, 3)
    rows = np.array([4, 2, 19, 7])
    groups = np.arange(20) // 3
    with write(tmp_path, blocks(logits, 2, rows), StoreLabels(labels, groups)) as store:
        assert len(store) == 4
        assert np.array_equal(store.labels.toarray(), labels.toarray()[rows])
        assert np.array_equal(store.read_tags(0, 3), quantized_logits.quantize(logits[rows]).T)
        assert store.groups.tolist() == [1, 0, 3, 2]


def write(folder: Path, logit_blocks: Iterator[LogitBlock], truth: StoreLabels) -> PredictionStore:
    return prediction_store.write(folder / "test.logits", truth, logit_blocks)


def test_scores_are_unknown_if_a_post_has_no_tag_of_an_unlabelled_category(
    tmp_path: Path,
) -> None:
    logits, _ = draw(3, 4)
    labels = csr_array(np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], np.bool_))
    truth = StoreLabels(labels, unlabelled=[np.array([0, 1])])
    with write(tmp_path, blocks(logits), truth) as store:
        unknown = store.read_tags(0, 4).T == quantized_logits.UNKNOWN
    assert unknown.tolist() == [[False] * 4, [True, True, False, False], [False] * 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_logit_is_reported_with_its_row_and_column(tmp_path: Path, bad: float) -> None:
    logits, labels = draw(20, 3)
    logits[11, 2] = bad
    with pytest.raises(TaggerError, match=f"non-finite logit {bad} for image 11 and tag 2"):
        write(tmp_path, blocks(logits), StoreLabels(labels))
    assert not list(tmp_path.iterdir())


def test_a_failed_prediction_leaves_no_file(tmp_path: Path) -> None:
    logits, labels = draw(20, 3)

    def failing() -> Iterator[LogitBlock]:
        yield from blocks(logits)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, failing(), StoreLabels(labels))
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_reported(tmp_path: Path) -> None:
    logits, labels = draw(20, 3)
    with write(tmp_path, blocks(logits), StoreLabels(labels)) as store:
        store.path.write_bytes(store.path.read_bytes()[:50])
        with pytest.raises(TaggerError, match="end early"):
            store.read_tags(0, 3)
