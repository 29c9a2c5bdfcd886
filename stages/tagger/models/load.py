"""Which kind of model a path names."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tagger.core.errors import TaggerError
from tagger.images.decode import Pixels
from tagger.models import exported, layouts, training_folder
from tagger.models.exported import Tagger
from tagger.models.runtimes import Device, Outputs


def load_tagger(path: Path, device: str, use: Device, *, calibrated: bool = False) -> Tagger:
    """Return the tagger of an export, of a folder in the WD14 layout, or of a training.

    The ONNX file in one names it, too.

    device: `auto`, `cpu` or `cuda`
    calibrated: let confidences be probabilities, and thresholds stand for the same tags
    Raises TaggerError, with what was looked for, where it is none of these.
    """
    tagger = _load(path, device, use)
    return _calibrated(tagger) if calibrated else tagger


def _load(path: Path, device: str, use: Device) -> Tagger:
    if layouts.is_wd14(path):
        return _with_categories(layouts.wd14(path, device, use))
    if path.suffix == ".onnx" or (path / exported.ONNX).is_file():
        return exported.load(path, device, use)
    missing = training_folder.lacking(path)
    if not missing:
        return training_folder.load(path, device, use)
    raise TaggerError(
        f"{path} is no export: it lacks {', '.join(exported.lacking(path))}; and no folder of a "
        f"trained model: it lacks {', '.join(missing)}. "
        "Run `dvc repro`, or name an export folder with --model."
    )


def _with_categories(tagger: Tagger) -> Tagger:
    """Return a tagger whose tags of no known category are general ones."""
    tags = [tag._replace(category=max(0, tag.category)) for tag in tagger.tags]
    return replace(tagger, tags=tags)


def _calibrated(tagger: Tagger) -> Tagger:
    """Return a tagger with the temperatures beside its thresholds, those of each category."""
    from tagger.core import calibration

    path = tagger.thresholds_path.with_name(exported.CALIBRATION)
    if not path.is_file():
        raise TaggerError(f"--calibrated needs {path}, which is missing. Leave it out.")
    temperatures = calibration.per_tag(calibration.read(path), tagger.tags, "category")

    def engine(squares: Pixels, embed: bool) -> Outputs:
        found = tagger.runtime(squares, embed)
        likely = calibration.calibrate(found.probabilities, temperatures)
        return found._replace(probabilities=likely.astype(np.float32))

    thresholds = calibration.calibrate(tagger.thresholds, temperatures)
    return replace(tagger, runtime=engine, thresholds=thresholds, temperatures=temperatures)
