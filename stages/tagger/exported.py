"""An exported model in use: pictures in, probabilities out. Imports torch only for CUDA."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tagger import files, preprocess, vocabulary
from tagger.errors import TaggerError
from tagger.metrics import Floats
from tagger.preprocess import Preprocess
from tagger.vocabulary import Tag

ONNX = "model.onnx"
SELECTED_TAGS = "selected_tags.csv"
PREPROCESS = "preprocess.json"

Array = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tagger:
    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), the confidence from which on each is given
    preprocess: Preprocess
    run: Callable[[Array], Array]  # (pictures, 3, size, size) -> (pictures, tags)

    def __call__(self, pictures: Sequence[Image.Image]) -> Array:
        """Return the probabilities of every tag, (pictures, tags), for RGB images."""
        return self.run(np.stack([self.preprocess(picture) for picture in pictures]))

    def limits(self, threshold: float | None) -> Floats:
        """Return the threshold of each tag, (tags,): the one asked for, or else its own."""
        return self.thresholds if threshold is None else np.full(len(self.tags), threshold)


def write_tags(tags: Sequence[Tag], thresholds: Floats, path: Path) -> None:
    header = (*Tag._fields, "best_threshold")
    rows = [(*tag, threshold) for tag, threshold in zip(tags, thresholds, strict=True)]
    files.write_csv(path, header, rows)


def load(folder: Path, device: str = "auto") -> Tagger:
    """Return the tagger of an export folder, on ONNX Runtime, or on torch where CUDA is used.

    device: `cpu`, `cuda` (with a warning and the CPU where there is none), `auto`
    Raises TaggerError for a folder that is not a whole export.
    """
    names = (ONNX, SELECTED_TAGS, PREPROCESS)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise TaggerError(
            f"{folder} is no export: it lacks {', '.join(missing)}. "
            "Run `dvc repro`, or name an export folder with --model."
        )
    prepared = preprocess.read(folder / PREPROCESS)
    run = _on_cuda(folder) if _use_cuda(device) else _on_cpu(folder / ONNX)
    tags = vocabulary.read(folder / SELECTED_TAGS)
    outputs = run(np.zeros((1, 3, prepared.size, prepared.size), np.float32)).shape[1]
    if len(tags) != outputs:
        raise TaggerError(
            f"{folder / SELECTED_TAGS} has {len(tags)} tags, the model {outputs} outputs. "
            "Export again."
        )
    return Tagger(tags, _thresholds(folder / SELECTED_TAGS), prepared, run)


def _thresholds(path: Path) -> Floats:
    try:
        return np.array([float(row["best_threshold"]) for row in files.read_csv(path)])
    except (KeyError, ValueError) as error:
        raise TaggerError(f"{path}: no best_threshold on every line ({error}).") from None


def _use_cuda(device: str) -> bool:
    if device == "cpu" or (device == "auto" and not shutil.which("nvidia-smi")):
        return False
    import torch

    if torch.cuda.is_available():
        return True
    _log.warning("CUDA is not available, going on with the CPU.")
    return False


def _on_cpu(path: Path) -> Callable[[Array], Array]:
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise TaggerError(f"{path} does not load: {error}. Export again.") from error

    def run(pixels: Array) -> Array:
        return np.asarray(session.run(["prediction"], {"input": pixels})[0])

    return run


def _on_cuda(folder: Path) -> Callable[[Array], Array]:
    import torch

    from tagger import backbone

    model = backbone.to_device(backbone.load(folder))

    def run(pixels: Array) -> Array:
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels).to("cuda", memory_format=torch.channels_last))
        return np.asarray(logits.float().sigmoid().cpu())

    return run
