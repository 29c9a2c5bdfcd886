"""The train stage starts from a tagger with other tags."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.projects import make_project
from tagger.core import files, manifest, vocabulary
from tagger.core.vocabulary import Tag
from tagger.models import backbone
from tagger.params import Params, Preset


@pytest.mark.timeout(200)
def test_init_from_transfers_the_head_to_other_tags(
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
    tags: list[Tag],
    tmp_path: Path,
) -> None:
    """With a learning rate that changes nothing, the rows of shared tags are equal."""
    constant = preset.model_copy(update={"learning_rate": 1e-30})
    train: dict[str, Any] = {"init_from": str(model_folder), "epochs": 1}
    project = make_project(tmp_path / "project", default_params, demo, constant, **train)
    tags_file = project.folder / "data/vocabulary.csv"
    shared = [tag for tag in vocabulary.read(tags_file) if tag.name != tags[0].name]
    all_tags = manifest.read_tags(project.folder / "data/tags.parquet")
    new = [tag for tag in all_tags if tag.count < 3][:2]
    vocabulary.write([*new, *shared], tags_file)
    line = f"transferred {len(shared)} of {len(shared) + 2} tags, 2 new, 1 dropped"
    assert line in project.train().splitlines()
    old_weights = load_file(model_folder / backbone.WEIGHTS)
    new_weights = load_file(project.folder / "models/tagger/last.safetensors")
    rows = [[tag.name for tag in tags].index(tag.name) for tag in shared]
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(new_weights[name][2:], old_weights[name][rows])
    assert torch.equal(new_weights["conv_stem.weight"], old_weights["conv_stem.weight"])
    table = files.read_csv(project.folder / "models/tagger/carried_tags.csv")
    assert {row["name"]: row["outcome"] for row in table} == (
        {tag.name: "transferred" for tag in shared}
        | {tag.name: "new" for tag in new}
        | {tags[0].name: "dropped"}
    )
