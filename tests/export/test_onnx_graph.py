"""The exported graph loads in older runtimes, and gives the outputs of the model."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.export import onnx_graph
from tagger.models import backbone
from tagger.params import Params

# pixels, smaller than those of the presets
SIZES = {"mobilenetv4": 64, "convnext": 64, "vit": 32, "swin": 48, "eva02": 28} | {
    "convnext_base": 64,
    "vit_base": 32,
    "swinv2_base": 96,
    "eva02_large": 28,
}
SHRUNK: dict[str, dict[str, object]] = {  # as deep as it takes to have every operator
    "swin": {
        "embed_dim": 24,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
        "window_size": 3,
    },
    "eva02": {"head_init_scale": 1.0},
    "convnext_base": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
    "vit_base": {"depth": 2, "embed_dim": 64, "num_heads": 4},
    "swinv2_base": {
        "embed_dim": 16,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 4, 8],
        "window_size": 3,
    },
    "eva02_large": {"depth": 2, "embed_dim": 64, "num_heads": 4},
}


def random_pixels(size: int, images: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    shape = (images, 3, size, size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_graph_has_opset_17_and_the_names_and_shapes_of_imgutils(
    export_folder: Path, tags: list[Tag]
) -> None:
    model = onnx.load(export_folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 17)}
    session = ort.InferenceSession(export_folder / "model.onnx")
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == (
        "input",
        "tensor(float)",
        ["batch", 3, 32, 32],
    )
    outputs = {output.name: output.shape for output in session.get_outputs()}
    assert list(outputs) == ["prediction", "logits", "embedding"]
    assert outputs["prediction"][0] == outputs["embedding"][0] == "batch"
    for images in (1, 3, 8):
        prediction, logits, embedding = session.run(None, {"input": random_pixels(32, images)})
        assert prediction.shape == logits.shape == (images, len(tags))
        assert embedding.shape[0] == images
        assert prediction == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_graph_of_every_preset_agrees_with_torch(
    default_params: Params, tmp_path: Path, name: str
) -> None:
    size = SIZES[name]
    changes = {"image_size": size, "pretrained": False, "model_args": SHRUNK.get(name, {})}
    torch.manual_seed(0)
    model = backbone.build_model(default_params.models[name].model_copy(update=changes), 5).eval()
    onnx_graph.write_model(model, tmp_path / "model.onnx", size=size, opset=17)
    pixels = random_pixels(size, 3)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    _, logits, embedding = session.run(None, {"input": pixels})
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels))
        features = model.forward_head(  # type: ignore[operator]
            model.forward_features(torch.from_numpy(pixels)),  # type: ignore[operator]
            pre_logits=True,
        )
    assert logits == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-4)
    assert embedding == pytest.approx(features.numpy(), abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_operator_that_onnx_lacks_is_one_error_line(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.eigvalsh(pixels[:, 0])
            return values

    with pytest.raises(TaggerError, match=r"\A[^\n]*cannot be written as ONNX[^\n]*\Z"):
        onnx_graph.write_graph(Odd(), tmp_path / "a.onnx", torch.ones(2, 3, 4, 4), ["a"], opset=17)
    assert not list(tmp_path.iterdir())


def test_same_model_gives_the_same_graph(model_folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        model = backbone.load_model(model_folder)
        onnx_graph.write_model(model, tmp_path / name, size=32, opset=17)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_opset_that_is_too_old_is_an_error(default_params: Params, tmp_path: Path) -> None:
    vit = default_params.models["vit"].model_copy(update={"image_size": 32})
    with pytest.raises(TaggerError, match=r"opset|ONNX"):
        onnx_graph.write_model(
            backbone.build_model(vit, 5), tmp_path / "model.onnx", size=32, opset=5
        )
    assert not list(tmp_path.iterdir())
