"""Augmentation follows from seed, epoch and row alone, and keeps labels true."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from tagger.core.errors import TaggerError
from tagger.images import decode, loader
from tagger.images.augment import Augmentation, BatchAugmentation
from tagger.images.dataset import ImageDataset, SampleKey, Split
from tagger.images.decode import Pixels
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models import backbone
from tagger.params import Preset
from tagger.training import losses

PREPARED = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EVERYTHING = Augmentation(3, 0.4, 0.5, random_resize=True, trivial=True)


@pytest.fixture(autouse=True)
def generator() -> Iterator[None]:
    """Leave torch's generator as it was."""
    with torch.random.fork_rng():
        yield


def noise(width: int = 40, height: int = 30) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(augment: Augmentation, key: SampleKey) -> tuple[bytes, str]:
    """Return the pixels of a image and the filter that resizes it."""
    pixels, prepared = augment(noise(), PREPARED, key)
    return np.asarray(pixels).tobytes(), prepared.interpolation


def changed(augment: Augmentation, image: Image.Image, epoch: int, row: int) -> Image.Image:
    pixels, _ = augment(np.asarray(image), PREPARED, SampleKey(epoch, row))
    return Image.fromarray(pixels)


def test_augmentation_follows_from_seed_epoch_and_row(split: Split) -> None:
    image = decode.open_rgb(split.locations[0])
    looks = {
        (seed, epoch, row): changed(Augmentation(seed, 0.3, 0.5), image, epoch, row).tobytes()
        for seed in (0, 1)
        for epoch in (1, 2)
        for row in (0, 1)
    }
    assert len(set(looks.values())) == len(looks)
    assert changed(Augmentation(1, 0.3, 0.5), image, 2, 1).tobytes() == looks[1, 2, 1]


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 1), st.integers(0, 50))
def test_a_crop_keeps_proportions_and_the_minimum_area(
    width: int, height: int, min_crop: float, row: int
) -> None:
    cropped = changed(Augmentation(0, min_crop, 0.5), Image.new("RGB", (width, height)), 0, row)
    share = cropped.width / width
    assert cropped.height == pytest.approx(height * share, abs=1 + height / width)
    assert (cropped.width + 1) * (cropped.height + 1) >= min_crop * width * height
    assert cropped.width <= width
    assert cropped.height <= height


def test_flip_mirrors_all_images_or_none() -> None:
    image = Image.new("RGB", (9, 5))
    image.putpixel((0, 0), (255, 0, 0))
    for row in range(20):
        assert changed(Augmentation(0), image, 1, row).tobytes() == image.tobytes()
        assert changed(Augmentation(0, flip=1.0), image, 1, row).getpixel((8, 0)) == (255, 0, 0)


def test_crops_stay_inside_the_image() -> None:
    white = Image.new("RGB", (37, 23), "white")
    for row in range(50):
        assert changed(Augmentation(0, 0.3, 0.5), white, 0, row).getextrema() == ((255, 255),) * 3


def test_augmentation_is_independent_of_earlier_draws() -> None:
    keys = [SampleKey(epoch, row) for epoch in (0, 1) for row in range(25)]
    first = {key: drawn(EVERYTHING, key) for key in keys}
    np.random.default_rng(1).shuffle(keys)
    torch.manual_seed(99)
    again = Augmentation(3, 0.4, 0.5, random_resize=True, trivial=True)
    assert {key: drawn(again, key) for key in keys} == first
    assert len({pixels for pixels, _ in first.values()}) > 40
    other = Augmentation(4, 0.4, 0.5, random_resize=True, trivial=True)
    assert sum(drawn(other, key) != first[key] for key in keys) > 40


def test_augmentation_is_independent_of_the_image_size() -> None:
    for row in range(10):
        assert drawn(EVERYTHING, SampleKey(1, row)) == drawn(EVERYTHING, SampleKey(1, row, 64))


def test_random_resize_draws_each_filter_about_as_often() -> None:
    augment = Augmentation(0, random_resize=True)
    taken = [drawn(augment, SampleKey(1, row)) for row in range(300)]
    assert {pixels for pixels, _ in taken} == {noise().tobytes()}
    names = [name for _, name in taken]
    assert {name: names.count(name) > 70 for name in set(names)} == {
        "bilinear": True,
        "bicubic": True,
        "lanczos": True,
    }
    assert {drawn(Augmentation(0), SampleKey(1, row))[1] for row in range(20)} == {"bicubic"}


def test_random_resize_uses_the_drawn_filter(split: Split) -> None:
    augment = Augmentation(0, random_resize=True)
    images, plain = ImageDataset(split, PREPARED, augment), ImageDataset(split, PREPARED)
    same = 0
    for row in range(len(split)):
        drawn_pixels, usual = images[SampleKey(1, row)].pixels, plain[SampleKey(1, row)].pixels
        bicubic = augment(noise(), PREPARED, SampleKey(1, row))[1].interpolation == "bicubic"
        assert np.array_equal(drawn_pixels, usual) == bicubic  # type: ignore[arg-type]
        same += bicubic
    assert 0 < same < len(split)


def test_trivial_augment_changes_each_image_differently() -> None:
    augment = Augmentation(0, trivial=True)
    looks = [drawn(augment, SampleKey(1, row))[0] for row in range(60)]
    assert looks == [drawn(augment, SampleKey(1, row))[0] for row in range(60)]
    assert len(set(looks)) > 40


def test_trivial_augment_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for row in range(5):
        drawn(Augmentation(0, trivial=True), SampleKey(1, row))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmentation_does_not_change_its_input() -> None:
    pixels = noise()
    for row in range(30):
        EVERYTHING(pixels, PREPARED, SampleKey(1, row))
    assert np.array_equal(pixels, noise())


def constant(count: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Return the level of each image, images of one level, and a tag of its own for each."""
    levels = torch.linspace(0, 1, count)
    return levels, levels.view(-1, 1, 1, 1).expand(-1, 3, size, size), torch.eye(count)


@settings(max_examples=50)
@given(st.integers(2, 20), st.floats(0.05, 5), st.integers(0, 100))
def test_mixup_mixes_targets_as_it_mixes_pixels(count: int, alpha: float, number: int) -> None:
    levels, pixels, targets = constant(count)
    mixed, shares = BatchAugmentation(0, mixup=alpha)(pixels, targets, 1, number)
    assert mixed.shape == pixels.shape
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert torch.allclose(shares.sum(dim=1), torch.ones(count), atol=1e-6)
    expected = (shares @ levels).view(-1, 1, 1, 1).expand_as(mixed)
    assert torch.allclose(mixed, expected, atol=1e-5)
    assert ((shares > 0).sum(dim=1) <= 2).all()  # of two images
    others = [share for share in shares.diagonal().tolist() if share < 1]
    assert np.ptp(others or [0]) < 1e-6  # one share for the batch
    assert torch.equal(pixels, constant(count)[1])
    assert torch.equal(targets, torch.eye(count))


def test_mixup_fractions_cover_0_to_1() -> None:
    _, pixels, targets = constant(12)
    augment = BatchAugmentation(0, mixup=1.0)
    made = [augment(pixels, targets, 1, number)[1] for number in range(60)]
    drawn = np.array([float(shares.diagonal().min()) for shares in made])
    assert np.histogram(drawn, 5, (0, 1))[0].min() > 3


def test_batch_augmentation_that_is_off_changes_nothing() -> None:
    _, pixels, targets = constant(6)
    made = BatchAugmentation(0)(pixels, targets, 1, 0)
    assert torch.equal(made[0], pixels)
    assert torch.equal(made[1], targets)


@settings(max_examples=40)
@given(st.floats(0, 1), st.integers(8, 33), st.integers(0, 50))
def test_cutout_cuts_one_square_of_each_image(share: float, size: int, number: int) -> None:
    pixels, targets = torch.ones(6, 3, size, size), torch.eye(6)
    cut, same = BatchAugmentation(0, cutout=share)(pixels, targets, 1, number)
    side = round(share * size)
    assert torch.equal(same, targets)
    assert (pixels == 1).all()
    assert ((cut == 0) | (cut == 1)).all()
    for image in cut:
        gone = image == 0
        assert torch.equal(gone[0], gone[1]) and torch.equal(gone[0], gone[2])
        rows, columns = gone[0].any(dim=1).nonzero(), gone[0].any(dim=0).nonzero()
        assert len(rows) == len(columns) == side
        assert int(gone[0].sum()) == side * side
        if side:
            assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == side - 1


def test_cutout_reaches_every_position() -> None:
    augment = BatchAugmentation(0, cutout=0.5)
    cut = torch.cat([augment(torch.ones(9, 3, 8, 8), torch.eye(9), 1, n)[0] for n in range(30)])
    corners = {(int(p[0].argmin()) // 8, int(p[0].argmin()) % 8) for p in cut}
    assert corners == {(top, left) for top in range(5) for left in range(5)}


@settings(max_examples=60)
@given(st.integers(2, 12), st.floats(0.05, 5), st.integers(1, 33), st.integers(0, 1000))
def test_cutmix_mixes_targets_by_the_exact_area(
    count: int, alpha: float, size: int, number: int
) -> None:
    levels, pixels, targets = constant(count, size)
    mixed, shares = BatchAugmentation(0, cutmix=alpha)(pixels, targets, 1, number)
    counted = torch.stack([(mixed[:, 0] == level).sum(dim=(1, 2)) for level in levels], dim=1)
    assert torch.allclose(shares, counted / size**2, atol=1e-6)
    assert torch.equal(pixels, constant(count, size)[1])
    assert torch.equal(targets, torch.eye(count))


@settings(max_examples=60)
@given(st.integers(2, 12), st.floats(0.05, 5), st.integers(2, 33), st.integers(0, 1000))
def test_cutmix_pastes_the_same_rectangle_in_every_image(
    count: int, alpha: float, size: int, number: int
) -> None:
    _, pixels, targets = constant(count, size)
    mixed, shares = BatchAugmentation(0, cutmix=alpha)(pixels, targets, 1, number)
    changed = (mixed != pixels)[shares.diagonal() < 1]
    assert (changed == changed[:1, :1]).all()
    if len(changed):
        rows, columns = changed[0, 0].any(dim=1).nonzero(), changed[0, 0].any(dim=0).nonzero()
        box = int(rows.max() - rows.min() + 1) * int(columns.max() - columns.min() + 1)
        assert int(changed[0, 0].sum()) == box
    for image, share in zip(mixed, shares, strict=True):
        assert len(image.unique()) == int((share > 0).sum()) <= 2


def test_cutmix_rectangles_have_every_size_and_reach_every_pixel() -> None:
    augment = BatchAugmentation(0, cutmix=1.0)
    pixels = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    made = [augment(pixels, torch.eye(2), 1, number) for number in range(400)]
    areas = np.array([float(shares[0, 1]) for _, shares in made if shares[0, 1] > 0])
    assert np.histogram(areas, 4, (0, 0.8))[0].min() > 10
    covered = torch.stack([mixed[0, 0] for mixed, _ in made]).mean(dim=0)
    assert float(covered.min()) > 0.05


ALPHA = st.just(0.0) | st.floats(0.05, 2)


@settings(max_examples=80)
@given(ALPHA, ALPHA, st.integers(0, 1000), st.integers(0, 1000))
def test_mixing_keeps_unknown_targets_of_either_image(
    mixup: float, cutmix: float, number: int, seed: int
) -> None:
    count, tags = 8, 20
    _, pixels, image_targets = constant(count)
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (count, tags))).float()
    targets = torch.cat([image_targets, drawn], dim=1)
    _, made = BatchAugmentation(0, mixup, cutmix)(pixels, targets, 1, number)
    shares, labels = made[:, :count], made[:, count:]
    assume(0 < shares.diagonal().min() < 1)  # else there is no telling which two were mixed
    unknown = ((shares > 0).float() @ (drawn < 0).float()) > 0
    assert (labels[unknown] == -1).all()
    assert torch.allclose((shares @ drawn)[~unknown], labels[~unknown], atol=1e-6)


@pytest.mark.parametrize("kind", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_batch_augmentation_follows_from_the_position_in_the_training(
    kind: dict[str, float],
) -> None:
    _, pixels, targets = constant(12)
    places = [(step, rank, start) for step in (0, 1, 7) for rank in (0, 1) for start in (0, 16)]
    first = {place: BatchAugmentation(5, **kind)(pixels, targets, *place)[1] for place in places}
    for place in reversed(places):
        again = BatchAugmentation(5, **kind)(pixels, targets, *place)[1]
        assert torch.equal(again, first[place])
    assert len({tuple(shares.flatten().tolist()) for shares in first.values()}) == len(places)
    other = BatchAugmentation(6, **kind)(pixels, targets, *places[0])[1]
    assert not torch.equal(other, first[places[0]])


def test_mixup_and_cutmix_share_the_batches() -> None:
    _, pixels, targets = constant(6)
    both = BatchAugmentation(0, mixup=1.0, cutmix=1.0)
    pasted = 0
    for number in range(200):
        mixed, shares = both(pixels, targets, 1, number)
        flat = (mixed == mixed[:, :, :1, :1]).all()
        assert flat or torch.isin(mixed, pixels).all()
        pasted += not flat
        assert torch.allclose(shares.sum(dim=1), torch.ones(6), atol=1e-6)
    assert 60 < pasted < 140


def test_all_augmentations_together_repeat_themselves_at_every_size(
    split: Split, preset: Preset
) -> None:
    """From files to the loss: what every augmentation makes together is what a model takes."""
    model = backbone.build_model(preset, split.labels.shape[1])
    prepared = backbone.build_preprocess(model, preset)
    mixing = BatchAugmentation(3, mixup=0.4, cutmix=0.4, cutout=0.3)
    order = ResumableBatchSampler(len(split), 3, seed=0, sizes=(32, 48, 64))
    made = []
    for _ in range(2):
        batches = loader.build_loader(ImageDataset(split, prepared, EVERYTHING), order, workers=0)
        inputs = [loader.to_device(batch, torch.device("cpu"), prepared) for batch in batches]
        made.append([mixing(*given, number, 0, 0) for number, given in enumerate(inputs)])
    for (pixels, targets), (again, same) in zip(*made, strict=True):
        assert torch.equal(pixels, again)
        assert torch.equal(targets, same)
        loss = losses.binary_cross_entropy(model(pixels), targets)
        assert loss.isfinite()
    assert {pixels.shape[-1] for pixels, _ in made[0]} == {32, 48, 64}


def test_impossible_image_sizes_are_refused(preset: Preset) -> None:
    arguments = {"dynamic_img_size": False}
    fixed = preset.model_copy(
        update={"backbone": "test_vit", "image_size": 160, "model_args": arguments}
    )
    model: nn.Module = backbone.build_model(fixed, 5).train()
    backbone.check_sizes(model, [160])
    assert model.training
    with pytest.raises(
        TaggerError, match=r"train\.augment\.sizes: .* no images of 96 px: .*dynamic_img"
    ):
        backbone.check_sizes(model, [160, 96])
    free = fixed.model_copy(update={"model_args": {"dynamic_img_size": True}})
    backbone.check_sizes(backbone.build_model(free, 5), [160, 96])
    with pytest.raises(TaggerError, match=r"train\.augment\.sizes: .* no images of 2 px"):
        backbone.check_sizes(backbone.build_model(free, 5), [2])
