"""What computes: ONNX Runtime, or torch. Squares in, probabilities out."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tagger.core.errors import TaggerError, one_line
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess

Array = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)


class Outputs(NamedTuple):
    probabilities: Array  # (pictures, tags)
    embeddings: Array | None  # (pictures, features), what the model's backbone pools, if asked for


# Squares, (pictures, size, size, 3), and whether embeddings are wanted.
Runtime: TypeAlias = Callable[[Pixels, bool], Outputs]


class Device(NamedTuple):
    kind: str  # cpu or cuda
    number: int = 0  # of the GPU
    threads: int | None = None  # threads that compute; None: as many as the library likes
    cores_are_shared: bool = False  # whether other processes want the cores meanwhile


def torch_uses_cuda(device: str) -> bool:
    """Return whether torch can compute on CUDA, for `auto`, `cpu` or `cuda`; warn where it cannot.

    torch is imported only where it is likely to be wanted.
    """
    if device == "cpu" or (device == "auto" and not shutil.which("nvidia-smi")):
        return False
    try:
        import torch

        if torch.cuda.is_available():
            return True
    except ImportError:
        pass
    _log.warning("CUDA is not available, going on with the CPU.")
    return False


def open_session(path: Path, device: Device) -> Any:
    """Return an ONNX graph, ready to run. Raises TaggerError for one that does not load."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = device.threads or 0
    if device.kind == "cpu":
        settings.log_severity_level = 4  # what fails is raised as well, and told once
    if device.cores_are_shared:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.kind == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.number}))
    try:
        return ort.InferenceSession(path, settings, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise TaggerError(f"{path} does not load: {one_line(error)}. Export again.") from error


def on_onnx(path: Path, prepared: Preprocess, device: Device) -> Runtime:
    """Return an ONNX graph with an input `input` and an output `prediction`, ready to run.

    Raises TaggerError for a file that ONNX Runtime does not load.
    """
    graph = open_session(path, device)
    known = {output.name for output in graph.get_outputs()}

    def run(squares: Pixels, embed: bool) -> Outputs:
        if embed and "embedding" not in known:
            raise TaggerError(f"{path} has no output `embedding`. Export again.")
        names = ["prediction", "embedding"] if embed else ["prediction"]
        found = graph.run(names, {"input": prepared.normalise(squares)})
        return Outputs(np.asarray(found[0]), np.asarray(found[1]) if embed else None)

    return run


def on_wd14(path: Path, device: Device) -> tuple[Runtime, int]:
    """Return an ONNX graph of the WD14 layout, ready to run, and its size in pixels.

    Its input is (batch, size, size, 3), BGR from 0 to 255, its first output the probabilities.
    """
    graph = open_session(path, device)
    (given, *_), (first, *more) = graph.get_inputs(), graph.get_outputs()
    if len(given.shape) != 4 or given.shape[3] != 3 or not isinstance(given.shape[1], int):
        raise TaggerError(
            f"{path} takes {given.shape}, not (batch, size, size, 3) as in the WD14 layout."
        )

    def run(squares: Pixels, embed: bool) -> Outputs:
        if embed and not more:
            raise TaggerError(f"{path} has no output for embeddings.")
        names = [first.name, *(output.name for output in more[:1] if embed)]
        pixels = np.ascontiguousarray(squares[..., ::-1], np.float32)
        found = graph.run(names, {given.name: pixels})
        return Outputs(np.asarray(found[0]), np.asarray(found[1]) if embed else None)

    return run, given.shape[1]


def onnx_uses_cuda(device: str) -> bool:
    """Return whether ONNX Runtime itself is to use CUDA."""
    import onnxruntime as ort

    return device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()


def on_torch(folder: Path, prepared: Preprocess, device: Device) -> Runtime:
    """Return the torch model of a folder with its weights, ready to run.

    A batch that does not fit into the memory of the GPU is halved, and so are those after it.
    Raises TaggerError for weights that do not load.
    """
    import torch

    from tagger.images import loader
    from tagger.models import backbone, heads

    where = torch.device(f"cuda:{device.number}" if device.kind == "cuda" else "cpu")
    if device.threads and device.kind == "cpu":
        torch.set_num_threads(device.threads)
    model = backbone.load_model(folder).to(memory_format=torch.channels_last).to(where)

    def run(squares: Pixels, embed: bool) -> Outputs:
        with backbone.inference_mode():
            pixels = loader.normalise_squares(torch.from_numpy(squares), where, prepared)
            if not embed:
                return Outputs(_array(model(pixels).float().sigmoid()), None)
            logits, embeddings = heads.logits_and_embeddings(model, pixels)
            return Outputs(_array(logits.float().sigmoid()), _array(embeddings.float()))

    return with_halving(run, torch.cuda.OutOfMemoryError) if device.kind == "cuda" else run


def _array(values: Any) -> Array:
    return np.asarray(values.cpu())


def with_halving(run: Runtime, no_room: type[Exception]) -> Runtime:
    """Return an engine that takes batches apart, down to one picture, where there is no room.

    no_room: what `run` raises then
    """
    most: int | None = None  # pictures at a time

    def attempt(squares: Pixels, embed: bool) -> Outputs | None:
        nonlocal most
        try:
            return run(squares, embed)
        except no_room:
            if len(squares) == 1:
                raise TaggerError(
                    "The GPU has no room for one picture. Try --device cpu."
                ) from None
            most = (len(squares) + 1) // 2
            _log.warning(
                "The GPU has no room for %d pictures, going on with %d.", len(squares), most
            )
            return None

    def run_parts(squares: Pixels, embed: bool) -> Outputs:
        found: list[Outputs] = []
        start = 0
        while start < len(squares):
            part = squares[start : start + (most or len(squares))]
            if (outputs := attempt(part, embed)) is not None:
                found.append(outputs)
                start += len(part)
        embeddings = [one.embeddings for one in found if one.embeddings is not None]
        return Outputs(
            np.concatenate([one.probabilities for one in found]),
            np.concatenate(embeddings) if embeddings else None,
        )

    return run_parts
