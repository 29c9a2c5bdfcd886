"""Which kind of model a path names."""

from pathlib import Path

from tagger import exported, trained
from tagger.engines import Device
from tagger.errors import TaggerError
from tagger.exported import Tagger


def load(path: Path, device: str, use: Device) -> Tagger:
    """Return the tagger of an export folder, of an ONNX file in one, or of a training folder.

    device: `auto`, `cpu` or `cuda`
    Raises TaggerError, with what was looked for, where it is none of these.
    """
    if path.suffix == ".onnx" or (path / exported.ONNX).is_file():
        return exported.load(path, device, use)
    missing = trained.lacking(path)
    if not missing:
        return trained.load(path, device, use)
    raise TaggerError(
        f"{path} is no export: it lacks {', '.join(exported.lacking(path))}; and no folder of a "
        f"trained model: it lacks {', '.join(missing)}. "
        "Run `dvc repro`, or name an export folder with --model."
    )
