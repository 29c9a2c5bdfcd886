"""An ONNX graph in fewer bits: half precision, and 8 bits calibrated on images."""

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from tagger.core import files
from tagger.core.errors import TaggerError, one_line
from tagger.models import runtimes
from tagger.models.runtimes import Array, Device

BATCH_SIZE = 8


def to_fp16(source: Path, target: Path) -> None:
    """Write a graph that computes in half precision, and takes and gives float32 as before."""
    with files.atomic_write(target) as partial, _without_warnings():
        half = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
        half.topological_sort(is_deterministic=True)
        onnx.checker.check_model(half.model, full_check=True)
        onnx.save(half.model, partial)


def to_int8(source: Path, target: Path, batches: Sequence[Array]) -> None:
    """Write a graph with weights and activations of 8 bits.

    batches: inputs of the graph, whose activations give the ranges
    Raises TaggerError if there are none, and for a graph that cannot be quantized.
    """
    if not batches:
        raise TaggerError("There is no validation image to calibrate int8 weights on.")
    with files.atomic_write(target) as partial, TemporaryDirectory() as folder, _without_warnings():
        folded = Path(folder) / "folded.onnx"
        try:
            quant_pre_process(source, folded, skip_symbolic_shape=True)
            # Unsigned activations: as accurate as signed ones, and twice as fast on CPUs with VNNI.
            quantize_static(
                folded,
                partial,
                _CalibrationInputs(batches),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # of no common class
            raise TaggerError(
                f"{source.name} cannot be quantized: {one_line(error)}. "
                "Remove int8 from export.quantize."
            ) from error
        onnx.checker.check_model(onnx.load(partial), full_check=True)


class _CalibrationInputs(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Sequence[Array]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Any:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the converters, which warn of weights too small for their type."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def measure_throughput(
    graphs: Mapping[str, Path], inputs: Array, cores: int, rounds: int = 5
) -> dict[str, float]:
    """Return images per second of each graph on the CPU, the median of rounds taken in turn."""
    device = Device("cpu", threads=cores)
    sessions = {name: runtimes.open_session(path, device) for name, path in graphs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds + 1):  # the first one warms up
        for name, session in sessions.items():
            started = time.perf_counter()
            for start in range(0, len(inputs), BATCH_SIZE):
                session.run(["prediction"], {"input": inputs[start : start + BATCH_SIZE]})
            seconds[name].append(time.perf_counter() - started)
    return {name: len(inputs) / median(times[1:]) for name, times in seconds.items()}
