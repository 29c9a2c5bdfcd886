"""Weights and settings of someone who means harm, in infer, evaluate and train alike."""

import json
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.hostile_models import BULK, MaliciousPickle
from tagger.core.errors import TaggerError
from tagger.models import backbone, checkpoints, external_preprocess, load_tagger
from tagger.models.runtimes import Device


@pytest.fixture
def trained(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "trained"))


def header(**tensor: Any) -> bytes:
    """Return a file of safetensors that says what it likes of what it holds."""
    said = json.dumps({"conv_stem.weight": {"dtype": "F32"} | tensor}).encode()
    return struct.pack("<Q", len(said)) + said


WEIGHTS = {
    "a huge header": struct.pack("<Q", 2**62) + b"{}",
    "a large header": struct.pack("<Q", 2**32) + b"{}",
    "a deep header": struct.pack("<Q", 400_002) + b'{"a":' * 80_000 + b"1}",
    "a huge tensor": header(shape=[2**40, 2**20], data_offsets=[0, 2**62]),
    "a tensor of the file's size": header(shape=[2**31, 2**31], data_offsets=[0, BULK]),
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_that_lie_of_their_size_are_refused_by_all_that_load_them(
    trained: Path, weights: str
) -> None:
    (trained / "model.safetensors").write_bytes(WEIGHTS[weights] + bytes(BULK))
    refused(lambda: backbone.load_model(trained))
    refused(lambda: load_tagger(trained, Device("cpu")))


def refused(load: Callable[[], object]) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TaggerError) as caught:
        load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pickle_under_the_name_of_weights_is_never_run(trained: Path, tmp_path: Path) -> None:
    evil = pickle.dumps({"state_dict": MaliciousPickle(tmp_path / "proof")}) + bytes(BULK)
    for name in ("model.safetensors", "pytorch_model.bin", "model.pth"):
        (trained / name).write_bytes(evil)
    assert "does not load" in refused(lambda: backbone.load_model(trained))
    assert "does not load" in refused(lambda: load_tagger(trained, Device("cpu")))
    assert "model.safetensors is damaged" in refused(lambda: checkpoints.read(trained, "test_vit"))
    assert not (tmp_path / "proof").exists()
    pickle.loads(evil)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vit_7b_patch16_dinov3"},
        {"architecture": "test_vit", "model_args": {"embed_dim": 2**20}},
        {"head": {"tags": 5, "queries": 10**5, "width": 2**20}},
    ],
)
def test_a_model_too_large_for_its_weights_is_never_built(
    trained: Path, change: dict[str, Any]
) -> None:
    config = json.loads((trained / "config.json").read_text())
    config.pop("model_args")
    (trained / "config.json").write_text(json.dumps(config | change))
    assert "cannot all lie in the" in refused(lambda: backbone.load_model(trained))


def test_a_config_that_nests_deep_is_refused_by_all_that_read_it(trained: Path) -> None:
    (trained / "config.json").write_text("[" * 10**6)
    (trained / "preprocess.json").unlink()
    assert "config.json cannot be read" in refused(lambda: backbone.load_model(trained))
    assert "config.json does not say" in refused(lambda: load_tagger(trained, Device("cpu")))


@pytest.mark.parametrize(
    "stage",
    [
        {"type": "pad_to_size", "size": 10**9},
        {"type": "resize", "size": 10**9},
        {"type": "resize", "size": [10**5, 10**5]},
        {"type": "center_crop", "size": 10**9},
        {"type": "pad_to_size", "size": 8, "background_color": [0, 0, 10**9]},
        {"type": "normalize", "mean": 0, "std": 0},
    ],
)
def test_stages_of_others_make_no_picture_larger_than_a_model_sees(
    trained: Path, stage: dict[str, Any]
) -> None:
    """As `evaluate --against` and the foreign layouts of infer.py read them."""
    (trained / "preprocess.json").write_text(json.dumps({"test": [stage]}))
    assert "preprocess.json" in refused(
        lambda: external_preprocess.read(trained / "preprocess.json")
    )
    assert "preprocess.json" in refused(lambda: load_tagger(trained, Device("cpu")))
