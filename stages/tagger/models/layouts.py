"""Taggers that others have made, in the forms in which they are to be had.

WD14 (SmilingWolf's, and whoever follows): `model.onnx` for BGR pixels and `selected_tags.csv`.
imgutils (animetimm and ours): `model.onnx`, `preprocess.json` and `selected_tags.csv`.
timm: `model.safetensors`, `config.json` and `selected_tags.csv`.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.images import preprocess
from tagger.images.decode import Pixels
from tagger.images.preprocess import Preprocess
from tagger.models import exported, external_preprocess, runtimes, taglists
from tagger.models.exported import DEFAULT_THRESHOLD, ONNX, PREPROCESS, THRESHOLDS, WEIGHTS, Tagger
from tagger.models.runtimes import Device, Outputs, Runtime


def load(folder: Path, device: str = "auto", use: Device | None = None) -> Tagger:
    """Return the tagger of a folder of any of these layouts. Its tags may have no category.

    device: as in `exported.load`
    Raises TaggerError, with what was looked for, for any other folder.
    """
    if is_wd14(folder):
        return wd14(folder, device, use)
    has_weights = all((folder / name).is_file() for name in WEIGHTS)
    if not has_weights and not (folder / ONNX).is_file():
        raise TaggerError(
            f"{folder} is no tagger: it has neither {ONNX} nor {' and '.join(WEIGHTS)}. Name a "
            "folder in the layout of WD14, imgutils or timm, or an export."
        )
    described = (folder / PREPROCESS).is_file()
    prepared = external_preprocess.read(folder / PREPROCESS) if described else _timms(folder)
    if (folder / ONNX).is_file() and described:
        kind, engine = exported.build_runtime(folder, ONNX, prepared, device, use or Device("cpu"))
    else:
        kind = "cuda" if runtimes.torch_uses_cuda(device) else "cpu"
        engine = runtimes.on_torch(folder, prepared, (use or Device("cpu"))._replace(kind=kind))
    return _tagger(folder, prepared, engine, kind)


def is_wd14(path: Path) -> bool:
    """Return whether a path names a folder in the WD14 layout, or the ONNX file in one."""
    folder, name = (path.parent, path.name) if path.suffix == ".onnx" else (path, ONNX)
    return (folder / name).is_file() and not (folder / PREPROCESS).is_file()


def wd14(path: Path, device: str = "auto", use: Device | None = None) -> Tagger:
    folder, name = (path.parent, path.name) if path.suffix == ".onnx" else (path, ONNX)
    kind = "cuda" if runtimes.onnx_uses_cuda(device) else "cpu"
    engine, size = runtimes.on_wd14(folder / name, (use or Device("cpu"))._replace(kind=kind))
    try:
        prepared = Preprocess(size, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    except ValueError as error:
        raise TaggerError(f"{folder / name} takes {error}. Get it again.") from None
    return _tagger(folder, prepared, engine, kind)


def _tagger(folder: Path, prepared: Preprocess, engine: Runtime, kind: str) -> Tagger:
    tags = taglists.read_tags(folder)
    exported.check_names(tags, folder)
    exported.check_outputs(engine, prepared, len(tags), folder / exported.SELECTED_TAGS)
    limits = np.full(len(tags), DEFAULT_THRESHOLD)
    return Tagger(tags, limits, prepared, engine, kind, folder / THRESHOLDS)


def _timms(folder: Path) -> Preprocess:
    """Return the preprocessing that timm's config.json describes, padded to a square in white."""
    path = folder / "config.json"
    try:
        config = json.loads(files.check_size(path).read_text(encoding="utf-8"))["pretrained_cfg"]
        _, height, width = config["input_size"]
        if height != width:
            raise ValueError(f"{width} x {height} pixels")
        return preprocess.from_timm_config(config, int(width))
    except (OSError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} does not say what the model takes ({error!r}).") from None


def with_channels_reversed(tagger: Tagger) -> Tagger:
    """Return a tagger that sees BGR: some of timm's layout are trained so, and nothing says it."""

    def engine(squares: Pixels, embed: bool) -> Outputs:
        return tagger.runtime(np.ascontiguousarray(squares[..., ::-1]), embed)

    return replace(tagger, runtime=engine)


def says_channels(folder: Path) -> bool:
    """Return whether the layout of a folder decides in which order channels come."""
    return (folder / ONNX).is_file() or (folder / PREPROCESS).is_file()
