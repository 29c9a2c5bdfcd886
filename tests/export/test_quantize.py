"""Quantized graphs are smaller, take any batch, and give nearly the same probabilities."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tagger.core.errors import TaggerError
from tagger.export import quantize
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import load_tagger, runtimes
from tagger.models.runtimes import Array, Device
from tagger.models.tagger import Tagger

CPU = Device("cpu")


@pytest.fixture
def tagger(export_folder: Path) -> Tagger:
    return load_tagger(export_folder, CPU)


@pytest.fixture
def inputs(tagger: Tagger, split: Split) -> Array:
    images = [decode.open_rgb(location) for location in split.locations[:10]]
    return np.stack([tagger.preprocess(image) for image in images])


@pytest.mark.parametrize(("kind", "tolerance"), [("fp16", 0.01), ("int8", 0.2)])
def test_quantized_graph_is_smaller_and_reproducible(
    export_folder: Path, tmp_path: Path, inputs: Array, kind: str, tolerance: float
) -> None:
    source, path = export_folder / "model.onnx", tmp_path / f"model_{kind}.onnx"

    def quantized() -> bytes:
        if kind == "fp16":
            quantize.to_fp16(source, path)
        else:
            quantize.to_int8(source, path, [inputs])
        return path.read_bytes()

    content = quantized()
    assert quantized() == content
    assert len(content) < source.stat().st_size
    versions = [entry.version for entry in onnx.load(path).opset_import if not entry.domain]
    assert max(versions) <= 17
    sessions = [runtimes.open_session(each, CPU) for each in (path, source)]
    for count in (1, 3, 8):
        batch = {"input": inputs[:count]}
        actual, expected = (session.run(["prediction"], batch)[0] for session in sessions)
        assert np.abs(actual - expected).mean() < tolerance
    assert list(tmp_path.iterdir()) == [path]


def test_int8_without_calibration_images_is_an_error(export_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match="no validation image"):
        quantize.to_int8(export_folder / "model.onnx", tmp_path / "none.onnx", [])
    assert not list(tmp_path.iterdir())


def test_throughput_is_measured_for_each_graph(export_folder: Path, inputs: Array) -> None:
    graphs = dict.fromkeys(("a", "b"), export_folder / "model.onnx")
    throughput = quantize.measure_throughput(graphs, inputs, 1, rounds=1)
    assert all(value > 0 for value in throughput.values())
    assert throughput.keys() == graphs.keys()
