"""Fixtures of the tests of infer: the small export, and its predictions for image a.png."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import load_tagger
from tagger.models.runtimes import Device
from tagger.models.tagger import Tagger

Infer = Callable[..., int]
TagsOf = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture(scope="session")
def tagger(export_folder: Path) -> Tagger:
    return load_tagger(export_folder, Device("cpu"))


@pytest.fixture(scope="session")
def scores(tagger: Tagger, split: Split) -> dict[str, float]:
    """The confidence of each tag of image a.png, falling, as the model computes it."""
    row = tagger.probabilities([decode.open_rgb(split.locations[0])])[0].tolist()
    order = sorted(range(len(row)), key=lambda column: (-row[column], column))
    return {tagger.tags[column].name: row[column] for column in order}


@pytest.fixture
def tags_of(run_infer: Infer, image_folder: Path) -> TagsOf:
    """Return the tags of image a.png in tags.json, by category."""

    def tags_of(*options: object) -> dict[str, dict[str, float]]:
        assert run_infer(image_folder / "a.png", "--output", "json", *options) == 0
        (content,) = json.loads(Path("tags.json").read_text(encoding="utf-8"))
        tags: dict[str, dict[str, float]] = content["tags"]
        return tags

    return tags_of
