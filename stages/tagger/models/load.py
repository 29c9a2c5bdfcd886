"""The one loader of taggers. It imports torch only for a tagger that torch runs."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from tagger.core.errors import TaggerError, one_line
from tagger.images.preprocess import Preprocess
from tagger.models import layouts, runtimes
from tagger.models.layouts import PREPROCESS, TaggerFiles
from tagger.models.runtimes import Device, Runtime
from tagger.models.tagger import Tagger

_AUTO = Device()
_log = logging.getLogger(__name__)


def load_tagger(
    path: Path,
    device: Device = _AUTO,
    *,
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    calibrated: bool = False,
) -> Tagger:
    """Return the tagger of a folder in any layout of `layouts`, or of the ONNX file in one.

    runtime: of these `auto` takes ONNX Runtime if there is a graph, but torch on CUDA if there
        are weights
    calibrated: divide logits by the temperatures of `evaluate`; thresholds move with them, so that
        the same tags are given
    Raises TaggerError for a folder without a tagger, and for one whose files do not fit together.
    """
    source = layouts.find_tagger(path)
    preprocess, kind, model = _load_model(source, device, runtime)
    tags = layouts.read_output_tags(source)
    _check_outputs(model, source, len(tags))
    tagger = Tagger(
        tags=tags,
        thresholds=layouts.read_thresholds(source, tags),
        preprocess=preprocess,
        runtime=model,
        device=kind,
        thresholds_path=source.thresholds,
        states_channel_order=source.states_channel_order,
    )
    return _calibrate(tagger, source.calibration) if calibrated else tagger


def _load_model(
    source: TaggerFiles, device: Device, runtime: str
) -> tuple[Preprocess, str, Runtime]:
    """Return the preprocessing, the device, cpu or cuda, and the model on it."""
    if source.layout == "wd14":
        kind = "cuda" if runtimes.onnx_uses_cuda(device) else "cpu"
        graph = runtimes.load_wd14(source.onnx, device._replace(kind=kind))
        return _wd14_preprocess(graph.size, source.onnx), kind, graph
    preprocess = layouts.read_preprocess(source)
    if runtime == "auto" and source.has_weights and source.layout == "export":
        runtime = "torch" if runtimes.torch_uses_cuda(device) else "onnx"
    if source.layout != "export" or (runtime == "torch" and source.has_weights):
        from tagger.models import torch_runtime

        kind = "cuda" if runtimes.torch_uses_cuda(device) else "cpu"
        model = torch_runtime.load_torch(source.folder, preprocess, device._replace(kind=kind))
        return preprocess, kind, model
    kind = "cuda" if runtimes.onnx_uses_cuda(device) else "cpu"
    if device.kind == "cuda" and kind == "cpu" and not source.has_weights:
        _log.warning("ONNX Runtime has no CUDA here, going on with the CPU.")
    graph = runtimes.load_onnx(source.onnx, preprocess, device._replace(kind=kind))
    return preprocess, kind, graph


def _wd14_preprocess(size: int, path: Path) -> Preprocess:
    try:
        return Preprocess(size, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    except ValueError as error:
        raise TaggerError(f"{path} takes {error}. Get it again.") from None


def _check_outputs(model: Runtime, source: TaggerFiles, tags: int) -> None:
    """Raise TaggerError if a model has not one finite output for each tag of its list."""
    try:
        blank = np.zeros((1, model.size, model.size, 3), np.uint8)
        (probabilities,) = model.run(blank, "probabilities")
        outputs = probabilities.shape[1]
    except Exception as error:  # as with loading, of no common class
        raise TaggerError(
            f"{source.folder}: the model does not take squares of {model.size} px, the size in "
            f"{PREPROCESS}: {one_line(error)}. Export again."
        ) from error
    if tags != outputs:
        raise TaggerError(
            f"{source.tag_list} has {tags} tags, the model {outputs} outputs. Export again."
        )
    if not np.isfinite(probabilities).all():
        raise TaggerError(f"{source.folder}: the outputs of the model are not finite. Train again.")


def _calibrate(tagger: Tagger, path: Path) -> Tagger:
    """Return a tagger with the temperatures of a file, those of each tag's category."""
    from tagger.core import calibration

    if not path.is_file():
        raise TaggerError(f"--calibrated needs {path}, which is missing. Leave it out.")
    temperatures = calibration.per_tag(calibration.read(path), tagger.tags, "category")
    thresholds = calibration.calibrate(tagger.thresholds, temperatures)
    return replace(tagger, thresholds=thresholds, temperatures=temperatures)
