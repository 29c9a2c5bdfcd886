"""The layouts in which taggers lie in folders: their files, tags, preprocessing and thresholds.

export, imgutils: `model.onnx`, `preprocess.json`, `selected_tags.csv`; weights beside them or not
wd14 (SmilingWolf's and others): `model.onnx` for BGR pixels, `selected_tags.csv`
training: `model.safetensors`, `config.json`, `preprocess.json`, `vocabulary.csv`
timm: `model.safetensors`, `config.json`, `selected_tags.csv`
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from tagger.core import files, records, thresholds, vocabulary
from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import UNKNOWN, Tag, normalize_name, parse_category
from tagger.images import preprocess
from tagger.images.preprocess import Preprocess
from tagger.models import external_preprocess

ONNX = "model.onnx"
WEIGHTS = ("model.safetensors", "config.json")
PREPROCESS = "preprocess.json"
SELECTED_TAGS = "selected_tags.csv"
VOCABULARY = "vocabulary.csv"
THRESHOLDS = "thresholds.csv"
CALIBRATION = "calibration.json"
TAG_LISTS = (VOCABULARY, SELECTED_TAGS)  # by `train`, and by everyone else

DEFAULT_THRESHOLD = 0.4  # of every tag if none were fitted


class TaggerFiles(NamedTuple):
    """A folder that holds a tagger, and its layout."""

    folder: Path
    layout: Literal["export", "wd14", "training", "timm"]
    onnx: Path  # which a training folder lacks
    has_weights: bool  # that torch can load, and no ONNX file was named

    @property
    def tag_list(self) -> Path:
        names = TAG_LISTS if self.layout in ("training", "timm") else (SELECTED_TAGS,)
        return next(path for name in names if (path := self.folder / name).is_file())

    @property
    def thresholds(self) -> Path:
        """The table with the thresholds of categories, which may be missing."""
        training = self.layout == "training"
        return (self.folder.absolute().parent if training else self.folder) / THRESHOLDS

    @property
    def calibration(self) -> Path:
        return self.thresholds.with_name(CALIBRATION)

    @property
    def states_channel_order(self) -> bool:
        """Whether the files say if the model takes RGB or BGR."""
        return self.layout != "timm" or (self.folder / PREPROCESS).is_file()


def find_tagger(path: Path) -> TaggerFiles:
    """Return the layout of a folder, or of the folder of an ONNX file.

    Raises TaggerError, with the missing files, for a folder that holds no tagger.
    """
    by_name = path.suffix == ".onnx"
    folder, onnx = (path.parent, path) if by_name else (path, path / ONNX)
    has_weights = not by_name and all((folder / name).is_file() for name in WEIGHTS)
    described = (folder / PREPROCESS).is_file()
    if onnx.is_file() and (folder / SELECTED_TAGS).is_file():
        return TaggerFiles(folder, "export" if described else "wd14", onnx, has_weights)
    if has_weights and described and (folder / VOCABULARY).is_file():
        return TaggerFiles(folder, "training", onnx, has_weights)
    if has_weights and any((folder / name).is_file() for name in TAG_LISTS):
        return TaggerFiles(folder, "timm", onnx, has_weights)
    raise TaggerError(_missing(folder, onnx.name))


def _missing(folder: Path, onnx: str) -> str:
    """Return that a folder holds no tagger, and which files each layout needs."""
    export = [name for name in (onnx, SELECTED_TAGS, PREPROCESS) if not (folder / name).is_file()]
    training = [
        name for name in (*WEIGHTS, PREPROCESS, VOCABULARY) if not (folder / name).is_file()
    ]
    return (
        f"{folder} is no tagger: an export lacks {', '.join(export)}; a trained model lacks "
        f"{', '.join(training)}. Run `dvc repro`, or name a folder in the layout of an export, "
        "of imgutils, WD14 or timm."
    )


def read_preprocess(source: TaggerFiles) -> Preprocess:
    """Return the preprocessing of preprocess.json, or else of timm's config.json."""
    path = source.folder / PREPROCESS
    return external_preprocess.read(path) if path.is_file() else _from_timm(source.folder)


def _from_timm(folder: Path) -> Preprocess:
    """Return the preprocessing that timm's config.json describes, padded to a square in white."""
    path = folder / "config.json"
    try:
        config = json.loads(files.check_size(path).read_text(encoding="utf-8"))
        _, height, width = config["pretrained_cfg"]["input_size"]
        if height != width:
            raise ValueError(f"{width} x {height} pixels")
        return preprocess.from_timm_config(config["pretrained_cfg"], int(width))
    except (OSError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} does not say what the model takes ({error!r}).") from None


def read_tags(folder: Path) -> list[Tag]:
    """Return the tags of any tagger in the order of its outputs, names in lower_snake_case.

    Only the names are required: an id, a category or a count that is not known is UNKNOWN.
    """
    path = next((folder / name for name in TAG_LISTS if (folder / name).is_file()), None)
    if path is None:
        why = f"it has neither {' nor '.join(TAG_LISTS)}" if folder.is_dir() else "it is no folder"
        raise TaggerError(
            f"{folder} is no tagger: {why}. Name the folder of a trained or exported model."
        )
    tags = [_tag(row, place) for place, row in records.read_rows(files.check_size(path))]
    if not tags:
        raise TaggerError(f"{path} lists no tags. Get the folder again.")
    return tags


def _tag(row: Mapping[str, object], place: str) -> Tag:
    name = normalize_name(str(row.get("name", "")))
    if not name:
        raise TaggerError(f"{place} has no 'name'. Get the folder again.")
    category = parse_category(row.get("category"))
    return Tag(UNKNOWN, name, UNKNOWN if category is None else category, UNKNOWN)


def read_output_tags(source: TaggerFiles) -> list[Tag]:
    """Return the tags of a model's outputs; those without a known category are general.

    The list of a model of ours must be whole: id, name, category and count of each tag.
    """
    if source.layout == "training" or (source.layout == "export" and source.thresholds.is_file()):
        tags = vocabulary.read(source.tag_list)
    else:
        tags = [tag._replace(category=max(0, tag.category)) for tag in read_tags(source.folder)]
    for number, tag in enumerate(tags, start=1):
        if any(unicodedata.category(character) == "Cc" for character in tag.name):
            raise TaggerError(
                f"{source.folder}: the name of tag {number}, {tag.name[:80]!r}, has control "
                "characters. Get the folder again."
            )
    return tags


def read_thresholds(source: TaggerFiles, tags: Sequence[Tag]) -> Floats:
    """Return the threshold of each tag, (tags,): of its own, or else of all tags."""
    default = np.full(len(tags), DEFAULT_THRESHOLD)
    if source.layout == "training":
        if not source.thresholds.is_file():
            return default
        rows = thresholds.read(source.thresholds)
        return thresholds.per_tag(rows, tags, "tag" if any(row.name for row in rows) else "global")
    table = files.read_csv(source.tag_list)
    fitted = source.layout == "export" and source.thresholds.is_file()
    if not fitted and not (table and "best_threshold" in table[0]):
        return default
    try:
        values = np.array([float(row["best_threshold"]) for row in table])
        if np.isnan(values).any():
            raise ValueError("nan")
        return values
    except (KeyError, ValueError) as error:
        raise TaggerError(
            f"{source.tag_list}: no best_threshold on every line ({error})."
        ) from None
