"""The export in the hands of the tools that load it, as they were in November 2026.

Each layout is loaded and checked as its tools do it: which output they take for which tag, and how
they make a square of an image. Tools of WD taggers resize every image to 448 pixels themselves.
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
from tagger.export.graphs import TOOL_SIZE
from tagger.images import preprocess
from tagger.images.decode import Pixels
from tagger.models import external_preprocess, load_tagger, runtimes, torch_runtime
from tagger.models.layouts import ONNX, PREPROCESS, SELECTED_TAGS, WEIGHTS
from tagger.models.runtimes import Array, Device, Runtime

TagKey: TypeAlias = tuple[int, str]  # category and name

_CPU = Device("cpu")
_HEADER = ["tag_id", "name", "category", "count"]


class Tool(NamedTuple):
    name: str
    tags: Sequence[TagKey]  # that it takes each output for
    to_square: Callable[[Image.Image], Pixels]
    run: Callable[[Pixels], Array]  # squares -> probabilities (images, outputs)
    resizes: bool = False  # by itself; it then has one threshold for each category


def load_tools(folder: Path) -> list[Tool]:
    """Return the tools that an export is for. Raises TaggerError for what one would not load."""
    tools = [_infer(folder), _imgutils(folder), load_wd14(folder), _kohya(folder)]
    if any((folder / name).is_file() for name in WEIGHTS):  # timm knows no query head
        tools.insert(1, _timm(folder))
    return tools


def _infer(folder: Path) -> Tool:
    tagger = load_tagger(folder, _CPU, runtime="onnx")
    tags = [(tag.category, tag.name) for tag in tagger.tags]
    return Tool("infer", tags, tagger.preprocess.to_square, _probabilities_of(tagger))


def _timm(folder: Path) -> Tool:
    squares = preprocess.read(folder / PREPROCESS)
    model = torch_runtime.load_torch(folder, squares, _CPU)
    return Tool("timm", _selected_tags(folder), squares.to_square, _probabilities_of(model))


def _imgutils(folder: Path) -> Tool:
    """Return `multilabel_timm_predict` of dghs-imgutils."""
    tags = _selected_tags(folder)
    categories = {each["category"] for each in files.read_json(folder / "categories.json")}
    for category, name in tags:
        if category not in categories:
            raise TaggerError(f"{folder}/categories.json lacks the category of {name!r}.")
    squares = external_preprocess.read_steps(folder / PREPROCESS)
    graph = runtimes.load_onnx(folder / ONNX, squares, _CPU)
    return Tool("imgutils", tags, squares.to_square, _probabilities_of(graph))


def load_wd14(folder: Path) -> Tool:
    """Return what loads the WD14 layout, with the squares of imgutils and taggui."""
    path = folder / WD14 / SELECTED_TAGS
    with files.require(path).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if header != _HEADER:
        raise TaggerError(f"{path} begins with {','.join(header)}, not {','.join(_HEADER)}.")
    tags = [(int(category), name) for _, name, category, _ in rows]
    _check_order([category for category, _ in tags], path)
    graph = runtimes.load_wd14(folder / WD14 / ONNX, _CPU)
    blank = np.zeros((2, graph.size, graph.size, 3), np.uint8)
    probabilities, _ = graph.run(blank, "probabilities", "embeddings")
    if probabilities.shape != (2, len(rows)):
        outputs = probabilities.shape[1]
        raise TaggerError(f"{path} has {len(rows)} tags, the graph {outputs} outputs.")
    return Tool("wd14", tags, _bicubic, _probabilities_of(graph), resizes=True)


def _check_order(categories: Sequence[int], path: Path) -> None:
    """Raise TaggerError unless four ratings, then general tags, then characters are listed.

    Some tools read categories from the order: from the first general tag, from the first character.
    """
    counts = {code: categories.count(code) for code in (RATING, 0, 4)}
    in_order = [code for code, count in counts.items() for _ in range(count)]
    if list(categories) != in_order or counts[RATING] != 4 or not (counts[0] and counts[4]):
        raise TaggerError(f"{path} lists not four ratings, then general tags, then characters.")


def _kohya(folder: Path) -> Tool:
    """Return kohya's sd-scripts with the layout of cl_tagger."""
    path = folder / KOHYA / TAG_MAPPING
    codes = {name.capitalize(): code for code, name in CATEGORIES.items()}
    try:
        entries = {int(output): entry for output, entry in files.read_json(path).items()}
        ordered = [entries[output] for output in range(len(entries))]
        tags = [(codes[entry["category"]], entry["tag"]) for entry in ordered]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TaggerError(f"{path} is no mapping of outputs to tags ({error!r}).") from None
    session = runtimes.open_session(folder / KOHYA / KOHYA_ONNX, _CPU)
    input_name = session.get_inputs()[0].name

    def run(squares: Pixels) -> Array:
        pixels = squares[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0
        logits = np.asarray(session.run(None, {input_name: pixels})[0])
        return sigmoid(logits).astype(np.float32)

    return Tool("kohya", tags, by_area, run, resizes=True)


def _selected_tags(folder: Path) -> list[TagKey]:
    rows = files.read_csv(folder / SELECTED_TAGS)
    return [(int(row["category"]), row["name"]) for row in rows]


def _probabilities_of(runtime: Runtime) -> Callable[[Pixels], Array]:
    return lambda squares: runtime.run(squares, "probabilities")[0]


def _bicubic(image: Image.Image) -> Pixels:
    return pad_and_resize(image, Resampling.BICUBIC)


def by_area(image: Image.Image) -> Pixels:
    """Return a square as OpenCV's INTER_AREA makes it smaller, or about as its Lanczos larger."""
    is_larger = max(image.size) > TOOL_SIZE
    return pad_and_resize(image, Resampling.BOX if is_larger else Resampling.LANCZOS)


def pad_and_resize(image: Image.Image, resampling: Resampling) -> Pixels:
    """Return an image, RGB, in the middle of a white square, resized to (448, 448, 3)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((TOOL_SIZE, TOOL_SIZE), resampling))
