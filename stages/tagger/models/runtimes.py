"""ONNX Runtime and torch behind one protocol: squares of pixels in, outputs of the model out."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tagger.core.errors import TaggerError, one_line
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess

Array = npt.NDArray[np.float32]
Output: TypeAlias = Literal["logits", "probabilities", "embeddings"]

_log = logging.getLogger(__name__)


class Runtime(Protocol):
    """A model that is ready to run."""

    @property
    def size(self) -> int:
        """The side of its squares, in pixels."""

    def run(self, squares: Pixels, *outputs: Output) -> list[Array]:
        """Return outputs for squares, (images, size, size, 3) uint8 RGB, in the order asked for.

        Logits and probabilities are (images, tags). Embeddings, (images, features), are what the
        backbone pools. Raises TaggerError for an output that the model lacks.
        """


class Device(NamedTuple):
    kind: str = "auto"  # auto, cpu or cuda; cuda becomes the CPU, with a warning, if there is none
    number: int = 0  # of the GPU
    threads: int | None = None  # on the CPU; None: as many as the library likes
    cores_are_shared: bool = False  # with other processes, at the same time


class OnnxRuntime:
    """Runs an ONNX graph."""

    def __init__(
        self,
        path: Path,
        size: int,
        session: Any,
        to_input: Callable[[Pixels], Array],
        names: Mapping[Output, str],
    ) -> None:
        """to_input: makes squares what the graph takes; names: of the graph's outputs."""
        self.size = size
        self._path = path
        self._session = session
        self._to_input = to_input
        self._input = session.get_inputs()[0].name
        self._names = names

    def run(self, squares: Pixels, *outputs: Output) -> list[Array]:
        if "logits" in outputs and "logits" not in self._names:
            return self._run_with_logits(squares, *outputs)
        for output in outputs:
            if output not in self._names:
                raise TaggerError(f"{self._path} has no output for {output}. Export again.")
        names = [self._names[output] for output in outputs]
        arrays = self._session.run(names, {self._input: self._to_input(squares)})
        return [np.asarray(array) for array in arrays]

    def _run_with_logits(self, squares: Pixels, *outputs: Output) -> list[Array]:
        """Compute the logits from the probabilities, for a graph that gives these alone."""
        from tagger.core.logits import finite_logit

        replaced: list[Output] = [
            "probabilities" if output == "logits" else output for output in outputs
        ]
        arrays = self.run(squares, *replaced)
        return [
            finite_logit(array).astype(np.float32) if output == "logits" else array
            for output, array in zip(outputs, arrays, strict=True)
        ]


def load_onnx(path: Path, preprocess: Preprocess, device: Device) -> OnnxRuntime:
    """Return a graph with the input `input` and the outputs of imgutils, ready to run."""
    session = open_session(path, device)
    imgutils: dict[Output, str] = {
        "probabilities": "prediction",
        "logits": "logits",
        "embeddings": "embedding",
    }
    available = {output.name for output in session.get_outputs()}
    names = {output: name for output, name in imgutils.items() if name in available}
    return OnnxRuntime(path, preprocess.size, session, preprocess.normalise, names)


def load_wd14(path: Path, device: Device) -> OnnxRuntime:
    """Return a graph of the WD14 layout, ready to run.

    Its input is (batch, size, size, 3), BGR from 0 to 255; its first output the probabilities, its
    second, if there is one, the embeddings.
    """
    session = open_session(path, device)
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int):
        raise TaggerError(
            f"{path} takes {shape}, not (batch, size, size, 3) as in the WD14 layout, and no "
            "preprocess.json lies beside it. Get the folder again."
        )
    outputs: tuple[Output, ...] = ("probabilities", "embeddings")
    nodes = session.get_outputs()
    names = {output: node.name for output, node in zip(outputs, nodes, strict=False)}
    return OnnxRuntime(path, shape[1], session, _to_bgr, names)


def _to_bgr(squares: Pixels) -> Array:
    return np.ascontiguousarray(squares[..., ::-1], np.float32)


def open_session(path: Path, device: Device) -> Any:
    """Return an ONNX graph, ready to run. Raises TaggerError for one that does not load."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = device.threads or 0
    if device.kind == "cpu":
        options.log_severity_level = 4  # errors are raised as well: log them once
    if device.cores_are_shared:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.kind == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.number}))
    try:
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise TaggerError(f"{path} does not load: {one_line(error)}. Export again.") from error


def onnx_uses_cuda(device: Device) -> bool:
    """Return whether ONNX Runtime itself is to use CUDA."""
    import onnxruntime as ort

    return device.kind != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()


def torch_uses_cuda(device: Device) -> bool:
    """Return whether torch is to use CUDA; warn if it was asked for, or is likely, and cannot.

    This imports torch only if it is likely to be needed.
    """
    if device.kind == "cpu" or (device.kind == "auto" and not shutil.which("nvidia-smi")):
        return False
    try:
        import torch

        if torch.cuda.is_available():
            return True
    except ImportError:
        pass
    _log.warning("CUDA is not available, going on with the CPU.")
    return False
