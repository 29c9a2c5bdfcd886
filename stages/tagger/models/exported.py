"""An exported model in use: pictures in, probabilities out. Imports torch only for CUDA."""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tagger.core import files, vocabulary
from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError, one_line
from tagger.core.vocabulary import Tag
from tagger.images import preprocess
from tagger.images.preprocess import Preprocess
from tagger.models import runtimes
from tagger.models.runtimes import Array, Device, Runtime

ONNX = "model.onnx"
SELECTED_TAGS = "selected_tags.csv"
PREPROCESS = "preprocess.json"
THRESHOLDS = "thresholds.csv"
CALIBRATION = "calibration.json"
DEFAULT_THRESHOLD = 0.4  # the threshold of every tag where none were fitted
WEIGHTS = ("model.safetensors", "config.json")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tagger:
    """A model with all that is needed to tag pictures by it."""

    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), the confidence from which on each is given
    preprocess: Preprocess
    runtime: Runtime
    device: str  # cpu or cuda
    thresholds_path: Path  # thresholds.csv with those of the categories, which may be missing
    temperatures: Floats | None = None  # (tags,), by which the logits are divided; None: by 1

    def __call__(self, pictures: Sequence[Image.Image]) -> Array:
        """Return the probabilities of every tag, (pictures, tags), for RGB images."""
        squares = np.stack([self.preprocess.to_square(picture) for picture in pictures])
        return self.runtime(squares, False).probabilities


def lacking(folder: Path, onnx: str = ONNX) -> list[str]:
    """Return what a folder lacks to be an export."""
    return [n for n in (onnx, SELECTED_TAGS, PREPROCESS) if not (folder / n).is_file()]


def load(path: Path, device: str = "auto", use: Device | None = None) -> Tagger:
    """Return the tagger of an export folder, or of an ONNX file in one.

    On CUDA it is torch that computes, if the folder has the weights and no file was named.
    device: `cpu`, `cuda` (with a warning and the CPU where there is none), `auto`
    Raises TaggerError for a folder that is not a whole export.
    """
    folder, name = (path.parent, path.name) if path.suffix == ".onnx" else (path, ONNX)
    if missing := lacking(folder, name):
        raise TaggerError(
            f"{folder} is no export: it lacks {', '.join(missing)}. "
            "Run `dvc repro`, or name an export folder with --model."
        )
    prepared = preprocess.read(folder / PREPROCESS)
    by_name = folder != path
    kind, runs = build_runtime(
        folder, name, prepared, device, use or Device("cpu"), by_name=by_name
    )
    tags = vocabulary.read(folder / SELECTED_TAGS)
    check_names(tags, folder)
    check_outputs(runs, prepared, len(tags), folder / SELECTED_TAGS)
    limits = _thresholds(folder / SELECTED_TAGS)
    return Tagger(tags, limits, prepared, runs, kind, folder / THRESHOLDS)


def build_runtime(
    folder: Path,
    onnx: str,
    prepared: Preprocess,
    device: str,
    use: Device,
    *,
    by_name: bool = False,
) -> tuple[str, Runtime]:
    """Return what computes, and on which device.

    by_name: the ONNX file, whatever else there is
    """
    has_weights = not by_name and all((folder / weights).is_file() for weights in WEIGHTS)
    if has_weights and runtimes.torch_uses_cuda(device):
        return "cuda", runtimes.on_torch(folder, prepared, use._replace(kind="cuda"))
    if runtimes.onnx_uses_cuda(device):
        return "cuda", runtimes.on_onnx(folder / onnx, prepared, use._replace(kind="cuda"))
    if device == "cuda" and not has_weights:
        _log.warning("ONNX Runtime has no CUDA here, going on with the CPU.")
    return "cpu", runtimes.on_onnx(folder / onnx, prepared, use._replace(kind="cpu"))


def check_outputs(engine: Runtime, prepared: Preprocess, tags: int, path: Path) -> None:
    """Raise TaggerError where a model has not one output for each tag of a list."""
    try:
        blank = np.zeros((1, prepared.size, prepared.size, 3), np.uint8)
        found = engine(blank, False).probabilities
        outputs = found.shape[1]
    except Exception as error:  # as with loading, of no common class
        raise TaggerError(
            f"{path.parent}: the model does not take squares of {prepared.size} px, which is what "
            f"{PREPROCESS} says: {one_line(error)}. Export again."
        ) from error
    if tags != outputs:
        raise TaggerError(f"{path} has {tags} tags, the model {outputs} outputs. Export again.")
    if not np.isfinite(found).all():
        raise TaggerError(f"{path.parent}: the model gives what is no number. Train again.")


def check_names(tags: Sequence[Tag], folder: Path) -> None:
    """Raise TaggerError for a name that would be more than one line, or steer a terminal."""
    for place, tag in enumerate(tags, start=1):
        if any(unicodedata.category(character) == "Cc" for character in tag.name):
            raise TaggerError(
                f"{folder}: the name of tag {place}, {tag.name[:80]!r}, has control characters. "
                "Get the folder again."
            )


def _thresholds(path: Path) -> Floats:
    try:
        found = np.array([float(row["best_threshold"]) for row in files.read_csv(path)])
        if np.isnan(found).any():
            raise ValueError("nan")
        return found
    except (KeyError, ValueError) as error:
        raise TaggerError(f"{path}: no best_threshold on every line ({error}).") from None
