"""Whether every tool that loads an export gives the tags that the model gives."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tagger.core.arrays import Floats
from tagger.core.errors import TaggerError
from tagger.export import tools
from tagger.export.tools import Tool
from tagger.inference import threshold_choice
from tagger.models import load_tagger
from tagger.models.runtimes import Array, Device
from tagger.models.tagger import Tagger

NamedImage = tuple[str, Image.Image]

_ROUNDING = 0.01  # of a confidence, if a graph and Pillow resize the same square
_BATCH_SIZE = 8
_CPU = Device("cpu")


class Agreement(NamedTuple):
    """How the tags of a tool differ from the model's."""

    resizes: bool  # whether the tool resizes images by itself
    largest_difference: float  # of a confidence
    mean_difference: float
    same_tags: float  # fraction of the tags given: 2 * both / (the tool's + the model's)


class Compatibility(NamedTuple):
    images: int
    tools: dict[str, Agreement]  # by name

    def summary(self, min_agreement: float) -> str:
        """Return the agreement in words, with a warning of tools that give too few of the tags."""
        fractions = {name: tool.same_tags for name, tool in self.tools.items()}
        exact = max(tool.largest_difference for tool in self.tools.values() if not tool.resizes)
        low = [f"{n} {100 * same:.1f}%" for n, same in fractions.items() if same < min_agreement]
        warning = (
            f"Of the model's tags these tools give: {', '.join(low)}. They resize images another "
            "way, which matters most for models of small images.\n"
        )
        return (
            f"{warning if low else ''}{len(self.tools)} tools agree with the model on "
            f"{self.images:,} images: confidences within {exact:.1e}, at least "
            f"{100 * min(fractions.values()):.1f}% of the tags if they resize by themselves"
        )

    def to_json(self) -> dict[str, Any]:
        agreements = {name: agreement._asdict() for name, agreement in self.tools.items()}
        return {"images": self.images, "tools": agreements}


def load_reference(folder: Path) -> Tagger:
    """Return an export on torch, or on ONNX Runtime if it has no weights for torch."""
    return load_tagger(folder, _CPU, runtime="torch")


def check_compatibility(
    folder: Path, images: Iterable[NamedImage], model: Tagger, tolerance: float
) -> Compatibility:
    """Tag images with an export as every tool does, and compare with the model.

    model: the reference; tags are counted at the thresholds of the export
    tolerance: of a confidence, for tools that preprocess as the model does
    Raises TaggerError for the first file that a tool would not load, and for the first tag with
    another confidence for the same square.
    """
    export = load_tagger(folder, _CPU)
    return compare(tools.load_tools(folder), images, model, export, tolerance)


def compare(
    loaded_tools: Sequence[Tool],
    images: Iterable[NamedImage],
    model: Tagger,
    export: Tagger,
    tolerance: float,
) -> Compatibility:
    """Compare tools with the model, at the thresholds of the export."""
    by_category = threshold_choice.resolve_thresholds(
        threshold_choice.ThresholdChoice(threshold_choice.CATEGORY), export
    )
    comparisons = [
        _Comparison(tool, model, by_category if tool.resizes else export.thresholds, tolerance)
        for tool in loaded_tools
    ]
    padded = replace(model, preprocess=replace(model.preprocess, fitting="pad"))
    count = 0
    for batch in _batches(iter(images)):
        batch_images = [image for _, image in batch]
        expected = model.probabilities(batch_images)
        expected_padded = expected
        if model.preprocess != padded.preprocess:
            expected_padded = padded.probabilities(batch_images)
        for comparison in comparisons:
            resizes = comparison.tool.resizes
            comparison.add(batch, expected_padded if resizes else expected, is_first=not count)
        count += len(batch)
    if not count:
        raise TaggerError("There is no readable image to check the export on.")
    return Compatibility(count, {each.tool.name: each.result() for each in comparisons})


def _batches(images: Iterator[NamedImage]) -> Iterator[list[NamedImage]]:
    while batch := list(islice(images, _BATCH_SIZE)):
        yield batch


class _Comparison:
    """The tags of one tool beside the model's."""

    def __init__(self, tool: Tool, model: Tagger, thresholds: Floats, tolerance: float) -> None:
        self.tool = tool
        self._model = model
        self._tolerance = tolerance
        columns = {(tag.category, tag.name): column for column, tag in enumerate(model.tags)}
        self._check_tags(columns)
        pairs = [(output, columns[key]) for output, key in enumerate(tool.tags) if key in columns]
        self._outputs, self._columns = np.array(pairs, np.int64).reshape(-1, 2).T
        self._unknown = np.setdiff1d(np.arange(len(tool.tags)), self._outputs)
        self._thresholds = thresholds[self._columns]
        self._largest = self._sum = 0.0
        self._pairs = self._sum_of_tags = self._both = 0

    def _check_tags(self, model_tags: Iterable[tools.TagKey]) -> None:
        """Raise TaggerError if the tool lacks a tag that it could give."""
        for category, name in model_tags:
            is_expected = category in (0, 4) or not self.tool.resizes
            if is_expected and (category, name) not in self.tool.tags:
                raise TaggerError(f"{self.tool.name} lacks {name!r} of category {category}.")

    def add(self, batch: Sequence[NamedImage], expected: Array, *, is_first: bool) -> None:
        """expected: the model's probabilities of these images, (images, tags)"""
        squares = np.stack([self.tool.to_square(image) for _, image in batch])
        outputs = self.tool.run(squares)
        if outputs[:, self._unknown].any():
            raise TaggerError(f"{self.tool.name} gives tags that the model does not know.")
        actual, expected = outputs[:, self._outputs], expected[:, self._columns]
        names = [name for name, _ in batch]
        if not self.tool.resizes:
            self._check_confidences(names, actual, expected, self._tolerance)
        elif is_first:  # tells what the tool's resizing changes from what the graph changes
            fitted = np.stack([self._model.preprocess.to_square(square) for square in squares])
            of_squares = self._model.run(fitted, "probabilities")[0][:, self._columns]
            self._check_confidences(names, actual, of_squares, _ROUNDING)
        self._count(actual, expected)

    def _check_confidences(
        self, names: Sequence[str], actual: Array, expected: Array, tolerance: float
    ) -> None:
        difference = np.abs(actual - expected)
        if difference.size and not difference.max() <= tolerance:
            row, position = np.unravel_index(difference.argmax(), difference.shape)
            tag = self._model.tags[int(self._columns[position])].name
            raise TaggerError(
                f"{self.tool.name}: {tag!r} of {names[row]} has the confidence "
                f"{actual[row, position]:.6f}, and {expected[row, position]:.6f} by the model: "
                f"more than {tolerance:g} apart. Export again."
            )

    def _count(self, actual: Array, expected: Array) -> None:
        difference = np.abs(actual - expected)
        self._largest = max(self._largest, float(difference.max(initial=0)))
        self._sum += float(difference.sum(dtype=np.float64))
        self._pairs += difference.size
        tags, expected_tags = actual >= self._thresholds, expected >= self._thresholds
        self._both += int((tags & expected_tags).sum())
        self._sum_of_tags += int(tags.sum()) + int(expected_tags.sum())

    def result(self) -> Agreement:
        return Agreement(
            self.tool.resizes,
            float(f"{self._largest:.3g}"),
            float(f"{self._sum / max(1, self._pairs):.3g}"),
            round(2 * self._both / self._sum_of_tags, 6) if self._sum_of_tags else 1.0,
        )
