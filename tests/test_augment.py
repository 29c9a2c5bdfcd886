"""Augmentation follows from seed, epoch and row alone, and leaves labels true."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tagger import backbone, dataset, training
from tagger.augment import Augmentation, BatchAugmentation
from tagger.dataset import Key, Order, Part, Pictures
from tagger.errors import TaggerError
from tagger.images import Pixels
from tagger.params import Params, Preset, Train
from tagger.preprocess import Preprocess

PREPARED = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EVERYTHING = Augmentation(3, 0.4, 0.5, random_resize=True, trivial=True)


@pytest.fixture(autouse=True)
def generator() -> Iterator[None]:
    """Leave torch's generator as it was."""
    with torch.random.fork_rng():
        yield


def noise(width: int = 40, height: int = 30) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(augment: Augmentation, key: Key) -> tuple[bytes, str]:
    """Return the pixels of a picture and the filter that resizes it."""
    pixels, prepared = augment(noise(), PREPARED, key)
    return np.asarray(pixels).tobytes(), prepared.interpolation


def test_a_picture_looks_the_same_whatever_was_drawn_before() -> None:
    keys = [Key(epoch, row) for epoch in (1, 2) for row in range(25)]
    first = {key: drawn(EVERYTHING, key) for key in keys}
    np.random.default_rng(1).shuffle(keys)
    torch.manual_seed(99)
    again = Augmentation(3, 0.4, 0.5, random_resize=True, trivial=True)
    assert {key: drawn(again, key) for key in keys} == first
    assert len({pixels for pixels, _ in first.values()}) > 40
    other = Augmentation(4, 0.4, 0.5, random_resize=True, trivial=True)
    assert sum(drawn(other, key) != first[key] for key in keys) > 40


def test_the_size_of_the_square_changes_nothing_of_what_is_drawn() -> None:
    for row in range(10):
        assert drawn(EVERYTHING, Key(1, row)) == drawn(EVERYTHING, Key(1, row, 64))


def test_random_resize_takes_each_filter_about_as_often() -> None:
    augment = Augmentation(0, random_resize=True)
    taken = [drawn(augment, Key(1, row)) for row in range(300)]
    assert {pixels for pixels, _ in taken} == {noise().tobytes()}
    names = [name for _, name in taken]
    assert {name: names.count(name) > 70 for name in set(names)} == {
        "bilinear": True,
        "bicubic": True,
        "lanczos": True,
    }
    assert {drawn(Augmentation(0), Key(1, row))[1] for row in range(20)} == {"bicubic"}


def test_the_filter_drawn_is_the_one_used(part: Part) -> None:
    augment = Augmentation(0, random_resize=True)
    pictures, plain = Pictures(part, PREPARED, augment), Pictures(part, PREPARED)
    same = 0
    for row in range(len(part)):
        drawn_pixels, usual = pictures[Key(1, row)].pixels, plain[Key(1, row)].pixels
        bicubic = augment(noise(), PREPARED, Key(1, row))[1].interpolation == "bicubic"
        assert np.array_equal(drawn_pixels, usual) == bicubic  # type: ignore[arg-type]
        same += bicubic
    assert 0 < same < len(part)


def test_trivial_augment_changes_pictures_each_its_own_way() -> None:
    augment = Augmentation(0, trivial=True)
    looks = [drawn(augment, Key(1, row))[0] for row in range(60)]
    assert looks == [drawn(augment, Key(1, row))[0] for row in range(60)]
    assert len(set(looks)) > 40


def test_trivial_augment_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for row in range(5):
        drawn(Augmentation(0, trivial=True), Key(1, row))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmenting_does_not_change_the_picture_given() -> None:
    pixels = noise()
    for row in range(30):
        EVERYTHING(pixels, PREPARED, Key(1, row))
    assert np.array_equal(pixels, noise())


def constant(count: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Return the level of each picture, pictures of one level, and a tag of its own for each."""
    levels = torch.linspace(0, 1, count)
    return levels, levels.view(-1, 1, 1, 1).expand(-1, 3, size, size), torch.eye(count)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 20), st.floats(0.05, 5), st.integers(0, 100))
def test_mixup_mixes_targets_by_the_share_of_the_pixels(
    count: int, alpha: float, number: int
) -> None:
    levels, pixels, targets = constant(count)
    mixed, shares = BatchAugmentation(0, mixup=alpha)(pixels, targets, 1, number)
    assert mixed.shape == pixels.shape
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert torch.allclose(shares.sum(dim=1), torch.ones(count), atol=1e-6)
    expected = (shares @ levels).view(-1, 1, 1, 1).expand_as(mixed)
    assert torch.allclose(mixed, expected, atol=1e-5)
    assert ((shares > 0).sum(dim=1) <= 2).all()  # of two pictures
    others = [share for share in shares.diagonal().tolist() if share < 1]
    assert np.ptp(others or [0]) < 1e-6  # one share for the batch
    assert torch.equal(pixels, constant(count)[1])
    assert torch.equal(targets, torch.eye(count))


def test_mixup_draws_another_share_for_each_batch() -> None:
    _, pixels, targets = constant(12)
    augment = BatchAugmentation(0, mixup=1.0)
    made = [augment(pixels, targets, epoch, n)[1] for epoch in (1, 2) for n in range(10)]
    again = [augment(pixels, targets, epoch, n)[1] for epoch in (1, 2) for n in range(10)]
    assert all(torch.equal(one, other) for one, other in zip(made, again, strict=True))
    assert len({tuple(shares.flatten().tolist()) for shares in made}) == 20
    assert max(float((shares - torch.eye(12)).abs().max()) for shares in made) > 0.3


def test_alpha_0_and_no_cutout_change_nothing() -> None:
    _, pixels, targets = constant(6)
    made = BatchAugmentation(0)(pixels, targets, 1, 0)
    assert torch.equal(made[0], pixels)
    assert torch.equal(made[1], targets)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1), st.integers(8, 33), st.integers(0, 50))
def test_cutout_cuts_one_square_of_each_picture(share: float, size: int, number: int) -> None:
    pixels, targets = torch.ones(6, 3, size, size), torch.eye(6)
    cut, same = BatchAugmentation(0, cutout=share)(pixels, targets, 1, number)
    side = round(share * size)
    assert torch.equal(same, targets)
    assert (pixels == 1).all()
    assert ((cut == 0) | (cut == 1)).all()
    for picture in cut:
        gone = picture == 0
        assert torch.equal(gone[0], gone[1]) and torch.equal(gone[0], gone[2])
        rows, columns = gone[0].any(dim=1).nonzero(), gone[0].any(dim=0).nonzero()
        assert len(rows) == len(columns) == side
        assert int(gone[0].sum()) == side * side
        if side:
            assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == side - 1


def test_cutout_cuts_everywhere_up_to_the_border() -> None:
    augment = BatchAugmentation(0, cutout=0.5)
    cut = torch.cat([augment(torch.ones(9, 3, 8, 8), torch.eye(9), 1, n)[0] for n in range(30)])
    corners = {(int(p[0].argmin()) // 8, int(p[0].argmin()) % 8) for p in cut}
    assert corners == {(top, left) for top in range(5) for left in range(5)}


def test_every_size_is_drawn_and_each_batch_has_one(part: Part) -> None:
    order = Order(200, 8, seed=0, sizes=(16, 24, 32))
    order.epoch = 1
    batches = list(order)
    assert list(order) == batches
    assert all(len({key.size for key in batch}) == 1 for batch in batches)
    assert {batch[0].size for batch in batches} == {16, 24, 32}
    assert sorted(key.row for batch in batches for key in batch) == list(range(200))
    order.epoch = 2
    assert [batch[0].size for batch in order] != [batch[0].size for batch in batches]
    small = Order(len(part), 3, seed=0, sizes=(16, 24, 32))
    loader = dataset.loader(Pictures(part, PREPARED, EVERYTHING), small, workers=0)
    sizes = [keys[0].size for keys in small]
    assert len(set(sizes)) == 3
    for batch, size in zip(loader, sizes, strict=True):
        assert batch.pixels.shape == (3, size, size, 3)


def test_training_with_everything_at_once_goes_on_at_every_size(
    part: Part, preset: Preset, shipped: Params
) -> None:
    changes = {"epochs": 1, "workers": 0, "sizes": [48, 64], "mixup": 0.4, "cutout": 0.3}
    changes |= {"random_resize": True, "trivial_augment": True}
    recipe = Train.model_validate(shipped.train.model_dump() | changes)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = backbone.build(preset, part.labels.shape[1])
        backbone.check_sizes(model, recipe.sizes)
        shown: list[int] = []
        model.register_forward_pre_hook(
            lambda _, given, shown=shown: shown.append(given[0].shape[-1])
        )
        prepared = backbone.preprocessing(model, preset)
        parts = {"train": part, "validation": part.head(5)}
        small = preset.model_copy(update={"batch_size": 3})
        (epoch,) = training.epochs(model, parts, prepared, small, recipe, 0)
        assert np.isfinite(epoch.loss)
        assert set(shown[:8]) == {32, 48, 64}
        assert set(shown[8:]) == {32}  # validation
        losses.append(epoch.loss)
    assert losses[0] == losses[1]


def test_sizes_that_a_backbone_does_not_take_are_refused(preset: Preset) -> None:
    arguments = {"dynamic_img_size": False}
    fixed = preset.model_copy(
        update={"backbone": "test_vit", "image_size": 160, "model_args": arguments}
    )
    model: nn.Module = backbone.build(fixed, 5).train()
    backbone.check_sizes(model, [160])
    assert model.training
    with pytest.raises(TaggerError, match=r"train\.sizes: .* no pictures of 96 px: .*dynamic_img"):
        backbone.check_sizes(model, [160, 96])
    free = fixed.model_copy(update={"model_args": {"dynamic_img_size": True}})
    backbone.check_sizes(backbone.build(free, 5), [160, 96])
    with pytest.raises(TaggerError, match=r"train\.sizes: .* no pictures of 2 px"):
        backbone.check_sizes(backbone.build(free, 5), [2])
