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
from tagger.export.tools import LoadedTool, Tool
from tagger.images.preprocess import Preprocess
from tagger.inference import limits
from tagger.models import load_tagger
from tagger.models.runtimes import Array, Device
from tagger.models.tagger import Tagger

NamedImage = tuple[str, Image.Image]  # a picture, and what it is called

_ROUNDING = 0.01  # of a confidence, where a graph and Pillow resize the same square
_AT_ONCE = 8  # pictures


class Agreement(NamedTuple):
    """How the tags of a tool differ from the model's."""

    resizes: bool  # whether the tool makes its own squares of pictures
    largest_difference: float  # of a confidence
    mean_difference: float
    same_tags: float  # share of those given, 2 * both / (theirs + the model's)


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
        return {
            "images": self.images,
            "tools": {name: one._asdict() for name, one in self.tools.items()},
        }


def load_reference(folder: Path) -> Tagger:
    """Return an export computed by torch, or by ONNX Runtime where it has no weights for that."""
    return load_tagger(folder, Device("cpu"), runtime="torch")


def check_compatibility(
    folder: Path, images: Iterable[NamedImage], model: Tagger, tolerance: float
) -> Compatibility:
    """Tag pictures as every tool does, and compare with the model.

    model: by which the tools are measured, at the thresholds that the export has for them
    tolerance: of a confidence, for tools that make the same squares as the model
    Raises TaggerError with the first thing that a tool would not load, and with the first tag of
    which it has another confidence for the same square.
    """
    export = load_tagger(folder, Device("cpu"))
    own = (
        export.thresholds,
        limits.resolve_thresholds(limits.ThresholdChoice(limits.CATEGORY), export),
    )
    visits = [
        _Visit(client, client.load(folder), model, own[not client.has_tag_thresholds], tolerance)
        for client in tools.tools_for(folder)
    ]
    padded = replace(model.preprocess, fitting="pad")
    seen = 0
    for batch in _batches(iter(images)):
        direct = _ask(model, model.preprocess, batch)
        framed = direct if padded == model.preprocess else _ask(model, padded, batch)
        for visit in visits:
            visit.see(batch, framed if visit.client.resizes else direct, first=not seen)
        seen += len(batch)
    if not seen:
        raise TaggerError(f"There is no readable picture to try {folder} on.")
    return Compatibility(seen, {visit.client.name: visit.finding() for visit in visits})


def _batches(pictures: Iterator[NamedImage]) -> Iterator[list[NamedImage]]:
    while batch := list(islice(pictures, _AT_ONCE)):
        yield batch


def _ask(model: Tagger, prepared: Preprocess, batch: Sequence[NamedImage]) -> Array:
    squares = np.stack([prepared.to_square(picture) for _, picture in batch])
    return model.run(squares, "probabilities")[0]


class _Visit:
    """What a tool makes of the pictures, and how far that is from what the model does."""

    def __init__(
        self, client: Tool, loaded: LoadedTool, model: Tagger, limits: Floats, tolerance: float
    ) -> None:
        self.client = client
        self._loaded = loaded
        self._model = model
        self._tolerance = tolerance
        places = {(tag.category, tag.name): place for place, tag in enumerate(model.tags)}
        self._check_tags(places.keys())
        known = [(at, places[key]) for at, key in enumerate(loaded.keys) if key in places]
        self._theirs, self._ours = np.array(known, np.int64).reshape(-1, 2).T
        self._unknown = np.setdiff1d(np.arange(len(loaded.keys)), self._theirs)
        self._limits = limits[self._ours]
        self._largest = self._sum = 0.0
        self._pairs = self._given = self._both = 0

    def _check_tags(self, known: Iterable[tools.TagKey]) -> None:
        """Raise TaggerError where the tool would not know a tag, or take it for another."""
        listed = set(self._loaded.keys)
        wanted = [key for key in known if key[0] in (0, 4) or not self.client.resizes]
        for category, name in wanted:
            if (category, name) not in listed:
                raise TaggerError(
                    f"{self.client.name} would not know {name!r} of category {category}."
                )

    def see(self, batch: Sequence[NamedImage], ours: Array, *, first: bool) -> None:
        """ours: the model's probabilities for these pictures, (pictures, tags)"""
        squares = np.stack([self._loaded.fit(picture) for _, picture in batch])
        every = self._loaded.run(squares)
        if every[:, self._unknown].any():
            raise TaggerError(f"{self.client.name} would give tags that the model does not know.")
        theirs, ours = every[:, self._theirs], ours[:, self._ours]
        names = [name for name, _ in batch]
        if not self.client.resizes:
            self._compare(names, theirs, ours, self._tolerance)
        elif first:  # which tells what the tool's resizing does from what the graph does
            fitted = np.stack([self._model.preprocess.to_square(square) for square in squares])
            same = self._model.run(fitted, "probabilities")[0][:, self._ours]
            self._compare(names, theirs, same, _ROUNDING)
        self._add(theirs, ours)

    def _compare(self, names: Sequence[str], theirs: Array, ours: Array, tolerance: float) -> None:
        difference = np.abs(theirs - ours)
        if difference.size and not difference.max() <= tolerance:
            row, place = np.unravel_index(difference.argmax(), difference.shape)
            tag = self._model.tags[int(self._ours[place])].name
            raise TaggerError(
                f"{self.client.name}: of {names[row]} {tag!r} has the confidence "
                f"{theirs[row, place]:.6f}, and {ours[row, place]:.6f} by the model: more than "
                f"{tolerance:g} apart. The export is not what the model is."
            )

    def _add(self, theirs: Array, ours: Array) -> None:
        difference = np.abs(theirs - ours)
        self._largest = max(self._largest, float(difference.max(initial=0)))
        self._sum += float(difference.sum(dtype=np.float64))
        self._pairs += difference.size
        given, wanted = theirs >= self._limits, ours >= self._limits
        self._both += int((given & wanted).sum())
        self._given += int(given.sum()) + int(wanted.sum())

    def finding(self) -> Agreement:
        return Agreement(
            self.client.resizes,
            float(f"{self._largest:.3g}"),
            float(f"{self._sum / max(1, self._pairs):.3g}"),
            round(2 * self._both / self._given, 6) if self._given else 1.0,
        )
