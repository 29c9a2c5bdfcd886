"""Validation covers the whole split, however many processes share it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageChops
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from support.predictions import predict_split
from support.trainings import SINGLE_PROCESS
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.evaluation.metrics import dense
from tagger.images import contact_sheet, decode, loader
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models import predict
from tagger.models.predict import Predictions
from tagger.models.torch_runtime import TorchRuntime
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training.validation import SHEET_IMAGES, Validator

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeGroup(ProcessGroup):
    """One of several processes, which has the values of the others already."""

    others: list[Any]  # by rank, this process included
    metrics: dict[str, float] | None = None  # of the main process

    def all_gather(self, value: Any) -> list[Any]:
        return [self.metrics or value]

    def gather_on_main(self, value: Any) -> list[Any] | None:
        return [value, *self.others[1:]] if self.is_main else None


def build_validator(
    split: Split, prepared: Preprocess, group: ProcessGroup = SINGLE_PROCESS, batch_size: int = 7
) -> Validator:
    sampler = ResumableBatchSampler(len(split), batch_size, rank_and_size=group.rank_and_size)
    batches = loader.build_loader(ImageDataset(split, prepared), sampler, workers=0)
    return Validator(split, batches, prepared, group)


def equal(first: Predictions, second: Predictions) -> bool:
    return (
        np.allclose(first.scores, second.scores, atol=1e-6)
        and np.array_equal(first.truth, second.truth)
        and first.rows == second.rows
        and first.failures == second.failures
    )


def test_validation_metrics_are_those_of_predict(
    model: nn.Module, split: Split, preprocessing: Preprocess
) -> None:
    model.train()
    metrics, predictions = build_validator(split, preprocessing)(model)
    assert model.training
    by = predict_split(model, split, preprocessing, batch_size=5, workers=0)
    assert equal(predictions, by)
    assert by.rows == list(range(len(split)))
    assert metrics.keys() == {"macro_ap", "micro_ap", "validation_loss"}
    assert metrics["macro_ap"] == pytest.approx(dense.macro_ap(by.scores, by.truth))
    assert metrics["micro_ap"] == pytest.approx(dense.micro_ap(by.scores, by.truth))
    assert len(set(metrics.values())) == 3


def test_validation_loss_is_torchs_cross_entropy_summed_over_tags(
    model: nn.Module, split: Split, preprocessing: Preprocess
) -> None:
    metrics, _ = build_validator(split, preprocessing)(model)
    inputs = [
        torch.from_numpy(preprocessing(decode.open_rgb(location))) for location in split.locations
    ]
    truth = torch.from_numpy(split.labels.toarray()).float()
    with torch.inference_mode():
        logits = model.eval()(torch.stack(inputs))
    expected = binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(split)
    assert metrics["validation_loss"] == pytest.approx(float(expected), rel=1e-4)


def without_files(split: Split, folder: Path) -> Split:
    """Return the split with two images that do not exist."""
    locations = list(split.locations)
    locations[4] = locations[23] = Location(str(folder / "gone.png"), 0, 8)
    return Split(locations, split.labels)


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [7, 23])  # some processes have no image of the last batch
def test_several_processes_validate_as_one(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocess,
    tmp_path: Path,
    ranks: int,
    batch_size: int,
) -> None:
    incomplete = without_files(split, tmp_path)
    metrics, predictions = build_validator(incomplete, preprocessing, batch_size=batch_size)(model)
    assert [row for row, _ in predictions.failures] == [4, 23]
    groups = [ProcessGroup(World(rank, ranks, rank, ranks), CPU) for rank in range(ranks)]
    shares: list[Any] = [
        predict.predict_labelled(
            TorchRuntime(model, preprocessing),
            build_validator(incomplete, preprocessing, group, batch_size).batches,
            split.labels.shape[1],
        )
        for group in groups
    ]
    assert all(len(share.rows) < len(predictions.rows) for share in shares)
    main = FakeGroup(groups[0].world, CPU, shares)
    shared, together = build_validator(incomplete, preprocessing, main, batch_size)(model)
    assert equal(together, predictions)
    assert shared == pytest.approx(metrics, abs=1e-5)
    other = FakeGroup(groups[1].world, CPU, [], shared)
    assert build_validator(incomplete, preprocessing, other, batch_size)(model)[0] == shared


def test_no_readable_image_gives_metrics_of_0(
    model: nn.Module, split: Split, preprocessing: Preprocess, tmp_path: Path
) -> None:
    gone = Split([Location(str(tmp_path / "gone.png"), 0, 8)] * 3, split.labels[:3])
    metrics, predictions = build_validator(gone, preprocessing)(model)
    assert metrics == {"macro_ap": 0, "micro_ap": 0, "validation_loss": 0}
    assert (predictions.rows, len(predictions.failures)) == ([], 3)


def test_validation_loss_of_wrong_certain_predictions_is_finite() -> None:
    scores, truth = np.array([[0, 1]], np.float32), np.array([[True, False]])
    assert 30 < dense.cross_entropy(scores, truth) < 35
    assert dense.cross_entropy(scores, ~truth) == pytest.approx(0, abs=1e-5)


def test_contact_sheet_shows_images_with_their_best_tags(
    model: nn.Module, split: Split, preprocessing: Preprocess, tags: list[Tag]
) -> None:
    """As if each were drawn by itself, with a threshold that eight tags pass."""
    validator = build_validator(split, preprocessing)
    _, predictions = validator(model)
    names = [tag.name for tag in tags]
    whole = validator.contact_sheet(predictions, names)
    assert len(split) > SHEET_IMAGES
    for number, row in enumerate(predictions.rows[:SHEET_IMAGES]):
        scores, truth = predictions.scores[[number]], predictions.truth[[number]]
        eighth = np.sort(scores[0])[-8].astype(np.float64)
        image = decode.open_rgb(split.locations[row])
        alone = contact_sheet.prediction_sheet(
            [image], scores, truth, names, np.full(len(tags), eighth)
        )
        tile = alone.crop((12, 34, alone.width // 3, alone.height - 12))
        across, down = number % 4 * 344, number // 4 * 180
        box = (12 + across, 34 + down, 12 + across + tile.width, 34 + down + tile.height)
        assert ImageChops.difference(whole.crop(box), tile).getbbox() is None, number
    assert whole.height == 4 * 180 + 34


def test_contact_sheet_skips_unreadable_images(
    model: nn.Module, split: Split, preprocessing: Preprocess, tags: list[Tag], tmp_path: Path
) -> None:
    validator = build_validator(without_files(split, tmp_path).head(6), preprocessing)
    _, predictions = validator(model)
    drawn = validator.contact_sheet(predictions, [tag.name for tag in tags])
    assert drawn.height == 2 * 180 + 34
    whole = build_validator(split.head(4), preprocessing)
    first = whole.contact_sheet(whole(model)[1], [tag.name for tag in tags])
    box = (0, 0, first.width, 34 + 168)
    assert ImageChops.difference(drawn.crop(box), first.crop(box)).getbbox() is None


def test_contact_sheet_is_grey_for_a_deleted_image(
    model: nn.Module, split: Split, preprocessing: Preprocess, tags: list[Tag], tmp_path: Path
) -> None:
    validator, names = build_validator(split, preprocessing), [tag.name for tag in tags]
    _, predictions = validator(model)
    whole = validator.contact_sheet(predictions, names)
    drawn = replace(validator, split=without_files(split, tmp_path)).contact_sheet(
        predictions, names
    )
    box = (12, 34 + 180, 12 + 168, 34 + 180 + 168)  # of the fifth
    assert drawn.crop(box).getcolors() == [(168 * 168, (234, 238, 242))]
    assert ImageChops.difference(whole, drawn).getbbox() == box
