"""Trainers of the smallest networks on a few drawn images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import trainings
from support.trainings import BuildTrainer, Splits, small_params, torch_state_restored
from tagger.core.vocabulary import Tag
from tagger.images.dataset import Split
from tagger.params import Preset
from tagger.training.trainer import Trainer


@pytest.fixture(autouse=True)
def restored_torch_state() -> Iterator[None]:
    with torch_state_restored():
        yield


@pytest.fixture
def splits(split: Split) -> dict[str, Split]:
    return {"train": split, "validation": split.head(8)}


@pytest.fixture
def vit(preset: Preset) -> Preset:
    """The smallest network without batch norm: the images of a batch do not affect each other."""
    return preset.model_copy(update={"backbone": "test_vit", "learning_rate": 1e-3})


@pytest.fixture
def build_trainer(
    preset: Preset, tags: list[Tag], splits: dict[str, Split], tmp_path: Path
) -> BuildTrainer:
    """Build a trainer in a folder, with keys of `train`."""
    default_preset, default_splits, default_tags = preset, splits, tags

    def build(
        preset: Preset = default_preset,
        splits: Splits = default_splits,
        folder: str = "a",
        seed: int = 0,
        tags: list[Tag] = default_tags,
        **train: Any,
    ) -> Trainer:
        p = small_params(preset, seed, **train)
        return trainings.build_trainer(p, tags, splits, tmp_path / folder)

    return build
