"""A head on cached embeddings trains as it would on top of the frozen backbone."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from support.trainings import (
    BuildTrainer,
    Splits,
    changed_names,
    equal_weights,
    train_and_kill,
    train_to_end,
)
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.images import decode, loader
from tagger.images.dataset import SampleKey, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models import backbone
from tagger.params import Preset
from tagger.training import linear_probe
from tagger.training.linear_probe import EmbeddedDataset
from tagger.training.optimizer import fraction_of_peak

CACHED = {"freeze": "all", "cache_embeddings": True}


@pytest.fixture(scope="module")
def embedded(model: nn.Module, split: Split, preprocessing: Preprocess) -> EmbeddedDataset:
    return linear_probe.embed(model, split, preprocessing, batch_size=7, workers=0)


# Embeddings


def test_head_on_an_embedding_equals_model_on_the_image(
    model: Any, split: Split, preprocessing: Preprocess, embedded: EmbeddedDataset
) -> None:
    assert embedded.embeddings.dtype == np.float32
    assert len(embedded) == len(split) == len(embedded.embeddings)
    with torch.inference_mode():
        for row, location in enumerate(split.locations):
            pixels = torch.from_numpy(preprocessing(decode.open_rgb(location)))[None]
            logits = model.get_classifier()(torch.from_numpy(embedded.embeddings[row]))
            torch.testing.assert_close(logits, model(pixels)[0], rtol=1e-4, atol=1e-4)


def test_embedding_keeps_the_statistics_of_a_model_in_training_mode(
    model: nn.Module, split: Split, preprocessing: Preprocess, embedded: EmbeddedDataset
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = linear_probe.embed(model.train(), split, preprocessing, batch_size=7, workers=0)
    assert np.array_equal(again.embeddings, embedded.embeddings)
    assert equal_weights(before, model.state_dict())


def test_loader_gives_embeddings_with_their_tags(
    split: Split, preprocessing: Preprocess, embedded: EmbeddedDataset
) -> None:
    sampler = ResumableBatchSampler(len(split), 5, seed=1, batch_numbers=range(7))
    batches = loader.build_loader(embedded, sampler, workers=0)
    for batch, keys in zip(batches, sampler, strict=True):
        rows = [key.row for key in keys]
        inputs, targets = loader.to_device(batch, torch.device("cpu"), preprocessing)
        assert batch.rows == rows
        assert np.array_equal(inputs, embedded.embeddings[rows])
        assert np.array_equal(targets, split.labels[rows].toarray())
        assert inputs.dtype == targets.dtype == torch.float32


def without_files(split: Split, rows: list[int], folder: Path) -> Split:
    locations = list(split.locations)
    for row in rows:
        locations[row] = Location(str(folder / "gone.png"), 0, 8)
    return Split(locations, split.labels)


def test_unreadable_images_are_skipped_with_their_tags_and_logged(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocess,
    embedded: EmbeddedDataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    incomplete = without_files(split, [3, 10], tmp_path)
    with caplog.at_level(logging.WARNING):
        readable_images = linear_probe.embed(
            model, incomplete, preprocessing, batch_size=7, workers=0
        )
    rows = [row for row in range(len(split)) if row not in (3, 10)]
    messages = [record.message.partition(": ")[0] for record in caplog.records]
    assert messages == [f"skipped {tmp_path / 'gone.png'}"] * 2
    assert len(readable_images) == len(readable_images.split) == len(rows)
    assert readable_images.split.locations == [split.locations[row] for row in rows]
    assert np.array_equal(readable_images.split.labels.toarray(), split.labels[rows].toarray())
    np.testing.assert_allclose(
        readable_images.embeddings, embedded.embeddings[rows], rtol=1e-4, atol=1e-5
    )
    for new, old in enumerate(rows):
        assert np.array_equal(
            readable_images[SampleKey(0, new)].tags, embedded[SampleKey(0, old)].tags
        )


def test_no_readable_image_gives_no_embedding(
    model: nn.Module, split: Split, preprocessing: Preprocess, tmp_path: Path
) -> None:
    gone = without_files(split.head(3), [0, 1, 2], tmp_path)
    none = linear_probe.embed(model, gone, preprocessing, batch_size=2, workers=0)
    assert len(none) == len(none.embeddings) == 0
    assert none.split.labels.shape == (0, split.labels.shape[1])


# Training


def embeddings_of(model: Any, split: Split, prepared: Preprocess) -> Tensor:
    """Return what the head sees of each image, (images, features)."""
    squares = np.stack([prepared.to_square(decode.open_rgb(each)) for each in split.locations])
    with torch.inference_mode():
        inputs = torch.from_numpy(prepared.normalise(squares))
        output: Tensor = model.eval().forward_head(model.forward_features(inputs), pre_logits=True)
    return output.clone()


def test_cached_training_equals_a_linear_layer_trained_by_torch(
    build_trainer: BuildTrainer, preset: Preset, split: Split, tags: list[Tag]
) -> None:
    trainer = build_trainer(epochs=3, optimizer="adamw", **CACHED, augment={"mixup": 0.5})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    inputs = embeddings_of(trainer.model, split, trainer.preprocess)
    head = nn.Linear(inputs.shape[1], len(tags))
    head.load_state_dict({kind: before[f"classifier.{kind}"] for kind in ("weight", "bias")})
    groups: list[dict[str, Any]] = [
        {"params": [head.bias], "weight_decay": 0.0},
        {"params": [head.weight]},
    ]
    adamw: Any = torch.optim.AdamW(groups, weight_decay=0.05)
    truth = torch.from_numpy(split.labels.toarray()).float()
    sampler = ResumableBatchSampler(24, 8, 0, drop_last=True, batch_numbers=range(9))
    bce = nn.BCEWithLogitsLoss(reduction="sum")
    for step, keys in enumerate(sampler):
        rows = [key.row for key in keys]
        loss = bce(head(inputs[rows]), truth[rows]) / len(rows)
        adamw.zero_grad()
        loss.backward()
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * fraction_of_peak("cosine", step, 9, 0.15)
        adamw.step()
    validations = train_to_end(trainer)
    after = validations[-1].weights
    assert changed_names(before, after) == {"classifier.weight", "classifier.bias"}
    assert torch.allclose(after["classifier.weight"], head.weight, atol=1e-5)
    assert torch.allclose(after["classifier.bias"], head.bias, atol=1e-5)
    assert validations[-1].metrics["loss"] < validations[0].metrics["loss"]
    whole: Any = backbone.build_model(preset, len(tags))
    whole.load_state_dict(after)
    embeddings = embeddings_of(whole, split.head(8), trainer.preprocess)
    scores = whole.get_classifier()(embeddings).sigmoid()
    assert np.allclose(scores.detach(), validations[-1].predictions.scores, atol=1e-5)


def test_unreadable_images_are_counted_and_no_frozen_stage_is_logged(
    build_trainer: BuildTrainer, splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    incomplete = {**splits, "train": without_files(splits["train"], [3, 5], tmp_path)}
    with caplog.at_level(logging.INFO):
        trainer = build_trainer(splits=incomplete, max_unreadable=0.1, epochs=1, **CACHED)
        train_to_end(trainer)
    assert trainer.unreadable == 2
    assert trainer.position.failures == {}
    assert not [line for line in caplog.messages if "stages of the backbone" in line]


def test_cached_training_resumes_with_the_backbone_it_started_with(
    build_trainer: BuildTrainer, preset: Preset, tags: list[Tag], tmp_path: Path
) -> None:
    file = tmp_path / "old.safetensors"
    torch.manual_seed(99)  # weights that no other test starts with
    backbone.save_weights(backbone.build_model(preset, len(tags)).state_dict(), file)
    pretrained = preset.model_copy(update={"pretrained": str(file)})
    train = {**CACHED, "snapshot_every": "1 step"}
    whole = build_trainer(pretrained, folder="whole", **train)
    expected = train_to_end(whole)
    last = expected[-1].weights
    assert torch.equal(last["conv_stem.weight"], load_file(file)["conv_stem.weight"])
    train_and_kill(build_trainer(pretrained, folder="killed", **train), validations=2)
    resumed = build_trainer(pretrained, folder="killed", **train)
    assert resumed.position.step == 5
    rest = train_to_end(resumed)
    assert [each.metrics for each in rest] == [expected[-1].metrics]
    assert equal_weights(rest[-1].weights, last)
    longer = train | {"epochs": 3, "resume_from": whole.snapshots.newest}
    later = train_to_end(build_trainer(pretrained, folder="later", **longer))
    changed = changed_names(later[-1].weights, last)
    assert changed == {"classifier.weight", "classifier.bias"}
