"""The tools that load an export, in what they do with it: files, checks, squares and slices.

Each is a tool as it was in November 2026, with its own way to a square and its own idea of which
output is which tag. Those that resize by themselves bring every picture to 448 pixels.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from tagger.core import files
from tagger.core.colours import WHITE
from tagger.core.errors import TaggerError
from tagger.core.logits import sigmoid
from tagger.core.vocabulary import CATEGORIES, RATING
from tagger.export.formats import KOHYA, KOHYA_ONNX, TAG_MAPPING, WD14
from tagger.images.decode import Pixels
from tagger.models import external_preprocess, load_tagger, runtimes
from tagger.models.layouts import ONNX, PREPROCESS, SELECTED_TAGS, WEIGHTS
from tagger.models.runtimes import Array, Device, Runtime

TagKey: TypeAlias = tuple[int, str]  # category and name
Rows: TypeAlias = list[list[str]]  # of selected_tags.csv, without its header

_CPU = Device("cpu")
_HEADER = ["tag_id", "name", "category", "count"]


class LoadedTool(NamedTuple):
    """An export in the hands of a tool."""

    keys: Sequence[TagKey]  # which tag the tool takes each output for
    fit: Callable[[Image.Image], Pixels]  # what it makes of a picture, RGB
    run: Callable[[Pixels], Array]  # squares -> probabilities (pictures, outputs)


class Tool(NamedTuple):
    name: str
    load: Callable[[Path], LoadedTool]  # raises TaggerError for what the tool would not load
    resizes: bool = False  # by itself
    has_tag_thresholds: bool = False  # has a threshold for each tag, not one for each category


def _infer(folder: Path) -> LoadedTool:
    tagger = load_tagger(folder, _CPU)
    keys = [(tag.category, tag.name) for tag in tagger.tags]
    return LoadedTool(keys, tagger.preprocess.to_square, _probabilities(tagger))


def _timm(folder: Path) -> LoadedTool:
    tagger = load_tagger(folder, _CPU, runtime="torch")
    keys = [(tag.category, tag.name) for tag in tagger.tags]
    return LoadedTool(keys, tagger.preprocess.to_square, _probabilities(tagger))


def _probabilities(runtime: Runtime) -> Callable[[Pixels], Array]:
    return lambda squares: runtime.run(squares, "probabilities")[0]


def _imgutils(folder: Path) -> LoadedTool:
    """`multilabel_timm_predict` of dghs-imgutils."""
    rows = files.read_csv(folder / SELECTED_TAGS)
    names = {one["category"]: one["name"] for one in files.read_json(folder / "categories.json")}
    for row in rows:
        if int(row["category"]) not in names:
            raise TaggerError(f"{folder}/categories.json lacks the category of {row['name']!r}.")
    prepared = external_preprocess.read(folder / PREPROCESS)
    graph = runtimes.load_onnx(folder / ONNX, prepared, _CPU)
    keys = [(int(row["category"]), row["name"]) for row in rows]
    return LoadedTool(keys, prepared.to_square, _probabilities(graph))


def _kohya(folder: Path) -> LoadedTool:
    """kohya's sd-scripts, given a repository and a folder in it."""
    path = folder / KOHYA / TAG_MAPPING
    codes_of = {name.capitalize(): code for code, name in CATEGORIES.items()}
    try:
        entries = {int(place): one for place, one in files.read_json(path).items()}
        keys = [(codes_of[entries[n]["category"]], entries[n]["tag"]) for n in range(len(entries))]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} is no mapping of outputs to tags ({error!r}).") from None
    graph = runtimes.open_session(folder / KOHYA / KOHYA_ONNX, _CPU)
    name = graph.get_inputs()[0].name

    def run(squares: Pixels) -> Array:
        pixels = squares[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0
        logits = np.asarray(graph.run(None, {name: pixels})[0])
        return sigmoid(logits).astype(np.float32)

    return LoadedTool(keys, _by_area, run)


def _wd14(
    square: Callable[[Image.Image], Pixels], read: Callable[[Rows], Sequence[TagKey]]
) -> Callable[[Path], LoadedTool]:
    """Return what loads the WD14 layout as a tool does."""

    def load(folder: Path) -> LoadedTool:
        path = folder / WD14 / SELECTED_TAGS
        with files.require(path).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if header != _HEADER:
            raise TaggerError(f"{path} begins with {','.join(header)}, not {','.join(_HEADER)}.")
        graph = runtimes.load_wd14(folder / WD14 / ONNX, _CPU)
        blank = np.zeros((2, graph.size, graph.size, 3), np.uint8)
        probabilities, _ = graph.run(blank, "probabilities", "embeddings")
        if probabilities.shape != (2, len(rows)):
            outputs = probabilities.shape[1]
            raise TaggerError(f"{path} has {len(rows)} tags, the graph {outputs} outputs.")
        return LoadedTool(read(rows), square, _probabilities(graph))

    return load


def _by_category(rows: Rows) -> Sequence[TagKey]:
    return [(int(row[2]), row[1]) for row in rows]


def _by_order(rows: Rows) -> Sequence[TagKey]:
    """Take the first four for ratings, then as many as there are general tags for these."""
    names = {code: [row[1] for row in rows if row[2] == str(code)] for code in (RATING, 0, 4)}
    behind = len(rows) - 4 - len(names[0])
    if len(names[RATING]) != 4 or behind != len(names[4]):
        raise TaggerError("The WD14 layout has not four ratings, then general tags and characters.")
    return [(code, name) for code in names for name in names[code]]


def _by_first(rows: Rows) -> Sequence[TagKey]:
    """Take what follows the first general tag for general, the first character for characters."""
    kinds = [row[2] for row in rows]
    general, character = kinds.index("0"), kinds.index("4")
    return [
        (RATING if place < general else 0 if place < character else 4, row[1])
        for place, row in enumerate(rows)
    ]


def _square(picture: Image.Image) -> Image.Image:
    """Return a picture in the middle of a white square as large as its longer side."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _resized(picture: Image.Image, how: Resampling) -> Pixels:
    return np.asarray(_square(picture).resize((448, 448), how))


def _bicubic(picture: Image.Image) -> Pixels:
    return _resized(picture, Resampling.BICUBIC)


def _by_area(picture: Image.Image) -> Pixels:
    """As OpenCV's INTER_AREA makes smaller, and about as its Lanczos makes larger."""
    return _resized(picture, Resampling.BOX if max(picture.size) > 448 else Resampling.LANCZOS)


def _by_area_or_cubic(picture: Image.Image) -> Pixels:
    # Pictures under 448 pixels it does not enlarge but frames, as no tagger has seen them.
    return _resized(picture, Resampling.BOX if max(picture.size) > 448 else Resampling.BICUBIC)


def _padded_last(picture: Image.Image) -> Pixels:
    ratio = 448 / max(picture.size)
    width, height = (max(1, int(side * ratio)) for side in picture.size)
    square = Image.new("RGB", (448, 448), WHITE)
    resized = picture.resize((width, height), Resampling.LANCZOS)
    square.paste(resized, ((448 - width) // 2, (448 - height) // 2))
    return np.asarray(square)


TOOLS = (
    Tool("infer", _infer, has_tag_thresholds=True),
    Tool("timm", _timm, has_tag_thresholds=True),
    Tool("imgutils", _imgutils, has_tag_thresholds=True),
    Tool("imgutils wd14, taggui", _wd14(_bicubic, _by_category), resizes=True),
    Tool("ComfyUI-WD14-Tagger", _wd14(_padded_last, _by_first), resizes=True),
    Tool("wd14-tagger-standalone", _wd14(_by_area_or_cubic, _by_category), resizes=True),
    Tool("sd-scripts wd14", _wd14(_by_area, _by_order), resizes=True),
    Tool("sd-scripts kohya", _kohya, resizes=True),
)


def tools_for(folder: Path) -> list[Tool]:
    """Return the tools that an export is for: timm knows no query head, and has no files then."""
    has_weights = any((folder / name).is_file() for name in WEIGHTS)
    return [client for client in TOOLS if client.name != "timm" or has_weights]
