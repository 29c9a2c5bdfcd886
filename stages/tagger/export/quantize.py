"""The same graph in fewer bits: half precision, and 8 bits calibrated on pictures."""

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
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

BATCH = 8  # pictures at a time


def to_fp16(source: Path, target: Path) -> None:
    """Write a graph that computes in half precision, and takes and gives float32 as before."""
    with files.atomic_write(target) as partial, _quiet():
        half = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
        half.topological_sort(is_deterministic=True)
        onnx.checker.check_model(half.model, full_check=True)
        onnx.save(half.model, partial)


def to_int8(source: Path, target: Path, batches: Iterable[Array]) -> None:
    """Write a graph with weights and activations of 8 bits, their ranges those of some inputs.

    Raises TaggerError where there are none, and for a graph that cannot be quantised.
    """
    every = list(batches)
    if not every:
        raise TaggerError("There is no validation picture to calibrate int8 weights on.")
    with files.atomic_write(target) as partial, TemporaryDirectory() as room, _quiet():
        folded = Path(room) / "folded.onnx"
        try:
            quant_pre_process(source, folded, skip_symbolic_shape=True)
            # Unsigned activations: twice as fast as signed ones on CPUs with VNNI, as good.
            quantize_static(
                folded,
                partial,
                _Inputs(every),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # of no common class
            raise TaggerError(
                f"{source.name} cannot be quantised: {one_line(error)}. "
                "Take int8 out of export.quantize."
            ) from error
        onnx.checker.check_model(onnx.load(partial), full_check=True)


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[Array]) -> None:
        self._left: Iterator[Array] = iter(batches)

    def get_next(self) -> Any:
        batch = next(self._left, None)
        return None if batch is None else {"input": batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the user what the converters say of weights too small for their type."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def measure_throughput(
    graphs: Mapping[str, Path], inputs: Array, cores: int, rounds: int = 5
) -> dict[str, float]:
    """Return pictures per second of each graph on the CPU, the median of rounds taken in turn."""
    opened = {
        n: runtimes.open_session(path, Device("cpu", threads=cores)) for n, path in graphs.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds + 1):
        for name, graph in opened.items():
            begun = time.perf_counter()
            for start in range(0, len(inputs), BATCH):
                graph.run(["prediction"], {"input": inputs[start : start + BATCH]})
            taken[name].append(time.perf_counter() - begun)
    return {name: len(inputs) / median(times[1:]) for name, times in taken.items()}
