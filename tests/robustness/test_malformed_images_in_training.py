"""The worst files in training: each is left out or replaced, and told; the others are whole."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from support import malformed_images
from support.malformed_images import MalformedImage
from tagger.core.location import Location
from tagger.data import verify
from tagger.images import decode, loader
from tagger.images.dataset import ImageDataset, SampleKey, Split
from tagger.images.loader import Batch, ResumableBatchSampler
from tagger.images.preprocess import Preprocess

pytestmark = [
    pytest.mark.timeout(60),
    # torchvision 0.29, of the decoder that training uses
]

PREPARED = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STAGES = Path(__file__).parents[2] / "stages"


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> list[MalformedImage]:
    """What is given to training."""
    return malformed_images.write_all(tmp_path_factory.mktemp("nasty") / "files")


@pytest.fixture
def ready() -> None:
    """Any warning that still escapes is an error."""
    decode.init_process()


@pytest.fixture(scope="module")
def readable(fed: list[MalformedImage]) -> list[bool]:
    with warnings.catch_warnings():
        decode.init_process()
        return [is_picture(file.location) for file in fed]


@pytest.fixture(scope="module")
def part(fed: list[MalformedImage]) -> Split:
    """Each file a post, with a tag of its own."""
    labels = csr_array(np.eye(len(fed), dtype=np.bool_))
    return Split([file.location for file in fed], labels)


def is_picture(place: Location) -> bool:
    try:
        return decode.open_rgb(place).mode == "RGB"
    except decode.Unreadable:
        return False


def batches(part: Split, *, workers: int = 0, replacing: bool = False) -> list[Batch]:
    pictures = ImageDataset(part, PREPARED, replace_unreadable=replacing)
    return list(
        loader.build_loader(pictures, ResumableBatchSampler(len(part), 32), workers=workers)
    )


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("workers", [0, 2])
def test_only_what_is_unreadable_is_left_out_and_told(
    part: Split, readable: list[bool], workers: int
) -> None:
    made = batches(part, workers=workers)
    rows = [row for batch in made for row in batch.rows]
    failures = dict(failure for batch in made for failure in batch.failures)
    assert rows == np.flatnonzero(readable).tolist()
    assert sorted([*rows, *failures]) == list(range(len(part)))
    assert all(reason and "\n" not in reason for reason in failures.values())
    for batch in made:
        assert np.array_equal(batch.targets, part.labels[batch.rows].toarray())


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_picture_stands_for_one_that_is_unreadable(
    part: Split, readable: list[bool], fed: list[MalformedImage], workers: int
) -> None:
    made = batches(part, workers=workers, replacing=True)
    good = np.flatnonzero(readable)
    following = [int(good[np.searchsorted(good, row) % len(good)]) for row in range(len(part))]
    assert [row for batch in made for row in batch.rows] == following
    failed = {row for batch in made for row, _ in batch.failures}
    assert failed == set(range(len(part))) - set(good.tolist())
    pixels = np.concatenate([batch.pixels for batch in made])
    for row, place in enumerate(following):
        if row == place:
            expected = PREPARED.to_square(decode.open_rgb(fed[row].path))
            assert np.array_equal(pixels[row], expected), fed[row].name
        else:
            assert np.array_equal(pixels[row], pixels[place])


@pytest.mark.usefixtures("ready")
def test_a_hundred_unreadable_pictures_in_a_row_are_given_up(tmp_path: Path) -> None:
    gone = Split(
        [Location(str(tmp_path / "none"), 0, 8)] * 120, csr_array((120, 1), dtype=np.bool_)
    )
    sample = ImageDataset(gone, PREPARED, replace_unreadable=True)[SampleKey(0, 50)]
    assert sample.pixels is None
    assert [row for row, _ in sample.failures] == [*range(50, 120), *range(30)]


@pytest.mark.usefixtures("ready")
def test_prepare_judges_as_training_does(
    part: Split, fed: list[MalformedImage], readable: list[bool]
) -> None:
    utf8 = [row for row, file in enumerate(fed) if "\udcff" not in str(file.path)]
    places = [part.locations[row] for row in utf8]
    judged = verify.verify_images(places, level="decode", animated="first").to_pylist()
    assert [row["reason"] is None for row in judged] == [readable[row] for row in utf8]
    assert all((row["detail"] or "x").splitlines() == [row["detail"] or "x"] for row in judged)
    quick = verify.verify_images(places, level="header", animated="drop").to_pylist()
    assert all(row["width"] or row["reason"] for row in quick)
    moving = {fed[utf8[i]].name for i, row in enumerate(quick) if row["reason"] == "animated"}
    assert moving == {f"'moving.{form}'" for form in ("gif", "webp", "png", "tiff", "avif")}
