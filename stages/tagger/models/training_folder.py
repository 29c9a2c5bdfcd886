"""A model as training leaves it, in use. Needs torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tagger.core import vocabulary
from tagger.core.arrays import Floats
from tagger.core.vocabulary import Tag
from tagger.images import preprocess
from tagger.models import exported, runtimes
from tagger.models.exported import DEFAULT_THRESHOLD, PREPROCESS, THRESHOLDS, WEIGHTS, Tagger
from tagger.models.runtimes import Device

VOCABULARY = "vocabulary.csv"


def lacking(folder: Path) -> list[str]:
    """Return what a folder lacks to be that of a trained model."""
    names = (*WEIGHTS, PREPROCESS, VOCABULARY)
    return [name for name in names if not (folder / name).is_file()]


def load(folder: Path, device: str = "auto", use: Device | None = None) -> Tagger:
    """Return the tagger of a folder that `train` wrote, with the thresholds beside that folder.

    device: as in `exported.load`
    """
    prepared = preprocess.read(folder / PREPROCESS)
    kind = "cuda" if runtimes.torch_uses_cuda(device) else "cpu"
    engine = runtimes.on_torch(folder, prepared, (use or Device("cpu"))._replace(kind=kind))
    tags = vocabulary.read(folder / VOCABULARY)
    exported.check_outputs(engine, prepared, len(tags), folder / VOCABULARY)
    fitted = folder.absolute().parent / THRESHOLDS
    return Tagger(tags, _thresholds(fitted, tags), prepared, engine, kind, fitted)


def _thresholds(path: Path, tags: Sequence[Tag]) -> Floats:
    """Return the threshold of each tag, (tags,): its own where one was fitted, else that of all."""
    from tagger.core import thresholds

    if not path.is_file():
        return np.full(len(tags), DEFAULT_THRESHOLD)
    rows = thresholds.read(path)
    return thresholds.per_tag(rows, tags, "tag" if any(row.name for row in rows) else "global")
