"""A judgement is that of the whole validation part, however many processes share it."""

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
from tagger.training import validation
from tagger.training.validation import Validator

CPU = torch.device("cpu")
ALONE = ProcessGroup(World(0, 1, 0, 1), CPU)


@dataclass(frozen=True)
class Told(ProcessGroup):
    """A process of several, to which the others have said already what they have."""

    others: list[Any]  # by rank; its own in its place
    figures: dict[str, float] | None = None  # of the leading process

    def all_gather(self, mine: Any) -> list[Any]:
        return [self.figures or mine]

    def gather_on_main(self, mine: Any) -> list[Any] | None:
        if not self.is_main:
            return None
        return [mine, *self.others[1:]]


def judge_of(
    part: Split, prepared: Preprocess, group: ProcessGroup = ALONE, batch_size: int = 7
) -> Validator:
    order = ResumableBatchSampler(len(part), batch_size, rank_and_size=group.rank_and_size)
    batches = loader.build_loader(ImageDataset(part, prepared), order, workers=0)
    return Validator(part, batches, prepared, group)


def equal(some: Predictions, others: Predictions) -> bool:
    return (
        np.allclose(some.scores, others.scores, atol=1e-6)
        and np.array_equal(some.truth, others.truth)
        and some.rows == others.rows
        and some.failures == others.failures
    )


def test_figures_are_those_of_predict(
    model: nn.Module, split: Split, preprocessing: Preprocess
) -> None:
    model.train()
    figures, predictions = judge_of(split, preprocessing)(model)
    assert model.training
    by = predict_split(model, split, preprocessing, batch_size=5, workers=0)
    assert equal(predictions, by)
    assert by.rows == list(range(len(split)))
    assert figures.keys() == {"macro_ap", "micro_ap", "validation_loss"}
    assert figures["macro_ap"] == pytest.approx(dense.macro_ap(by.scores, by.truth))
    assert figures["micro_ap"] == pytest.approx(dense.micro_ap(by.scores, by.truth))
    assert len(set(figures.values())) == 3


def test_the_loss_is_torchs_cross_entropy_summed_over_tags(
    model: nn.Module, split: Split, preprocessing: Preprocess
) -> None:
    figures, _ = judge_of(split, preprocessing)(model)
    inputs = [torch.from_numpy(preprocessing(decode.open_rgb(place))) for place in split.locations]
    truth = torch.from_numpy(split.labels.toarray()).float()
    with torch.inference_mode():
        logits = model.eval()(torch.stack(inputs))
    expected = binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(split)
    assert figures["validation_loss"] == pytest.approx(float(expected), rel=1e-4)


def broken(part: Split, folder: Path) -> Split:
    """Return the part with two pictures that are not there."""
    places = list(part.locations)
    places[4] = places[23] = Location(str(folder / "gone.png"), 0, 8)
    return Split(places, part.labels)


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [7, 23])  # of the last, some processes have no part
def test_several_processes_come_to_what_one_comes_to(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocess,
    tmp_path: Path,
    ranks: int,
    batch_size: int,
) -> None:
    some = broken(split, tmp_path)
    figures, predictions = judge_of(some, preprocessing, batch_size=batch_size)(model)
    assert [row for row, _ in predictions.failures] == [4, 23]
    groups = [ProcessGroup(World(rank, ranks, rank, ranks), CPU) for rank in range(ranks)]
    shares: list[Any] = [
        predict.predict_labelled(
            TorchRuntime(model, preprocessing),
            judge_of(some, preprocessing, group, batch_size).batches,
            split.labels.shape[1],
        )
        for group in groups
    ]
    assert all(len(share.rows) < len(predictions.rows) for share in shares)
    leading = Told(groups[0].world, CPU, shares)
    shared, together = judge_of(some, preprocessing, leading, batch_size)(model)
    assert equal(together, predictions)
    assert shared == pytest.approx(figures, abs=1e-5)
    following = Told(groups[1].world, CPU, [], shared)
    assert judge_of(some, preprocessing, following, batch_size)(model)[0] == shared


def test_without_a_readable_picture_every_figure_is_0(
    model: nn.Module, split: Split, preprocessing: Preprocess, tmp_path: Path
) -> None:
    gone = Split([Location(str(tmp_path / "gone.png"), 0, 8)] * 3, split.labels[:3])
    figures, predictions = judge_of(gone, preprocessing)(model)
    assert figures == {"macro_ap": 0, "micro_ap": 0, "validation_loss": 0}
    assert (predictions.rows, len(predictions.failures)) == ([], 3)


def test_probabilities_of_0_and_1_that_are_wrong_cost_much_and_not_without_end() -> None:
    scores, truth = np.array([[0, 1]], np.float32), np.array([[True, False]])
    assert 30 < dense.cross_entropy(scores, truth) < 35
    assert dense.cross_entropy(scores, ~truth) == pytest.approx(0, abs=1e-5)


def test_the_sheet_shows_each_picture_with_its_likeliest_tags(
    model: nn.Module, split: Split, preprocessing: Preprocess, tags: list[Tag]
) -> None:
    """As if each were drawn alone, with a threshold that lets eight tags pass."""
    judge = judge_of(split, preprocessing)
    _, predictions = judge(model)
    names = [tag.name for tag in tags]
    whole = judge.contact_sheet(predictions, names)
    assert len(split) > validation.SHOWN
    for number, row in enumerate(predictions.rows[: validation.SHOWN]):
        scores, truth = predictions.scores[[number]], predictions.truth[[number]]
        eighth = np.sort(scores[0])[-8].astype(np.float64)
        picture = decode.open_rgb(split.locations[row])
        alone = contact_sheet.prediction_sheet(
            [picture], scores, truth, names, np.full(len(tags), eighth)
        )
        tile = alone.crop((12, 34, alone.width // 3, alone.height - 12))
        across, down = number % 4 * 344, number // 4 * 180
        box = (12 + across, 34 + down, 12 + across + tile.width, 34 + down + tile.height)
        assert ImageChops.difference(whole.crop(box), tile).getbbox() is None, number
    assert whole.height == 4 * 180 + 34


def test_the_sheet_of_few_pictures_leaves_out_those_unreadable(
    model: nn.Module, split: Split, preprocessing: Preprocess, tags: list[Tag], tmp_path: Path
) -> None:
    judge = judge_of(broken(split, tmp_path).head(6), preprocessing)
    _, predictions = judge(model)
    drawn = judge.contact_sheet(predictions, [tag.name for tag in tags])
    assert drawn.height == 2 * 180 + 34
    whole = judge_of(split.head(4), preprocessing)
    first = whole.contact_sheet(whole(model)[1], [tag.name for tag in tags])
    box = (0, 0, first.width, 34 + 168)
    assert ImageChops.difference(drawn.crop(box), first.crop(box)).getbbox() is None


def test_the_sheet_is_grey_where_a_picture_has_gone_since(
    model: nn.Module, split: Split, preprocessing: Preprocess, tags: list[Tag], tmp_path: Path
) -> None:
    judge, names = judge_of(split, preprocessing), [tag.name for tag in tags]
    _, predictions = judge(model)
    whole = judge.contact_sheet(predictions, names)
    drawn = replace(judge, split=broken(split, tmp_path)).contact_sheet(predictions, names)
    box = (12, 34 + 180, 12 + 168, 34 + 180 + 168)  # of the fifth
    assert drawn.crop(box).getcolors() == [(168 * 168, (234, 238, 242))]
    assert ImageChops.difference(whole, drawn).getbbox() == box
