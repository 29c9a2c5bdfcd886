"""A few pictures that go with an export, and what the model says of them."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from tagger.core import files
from tagger.core.colours import WHITE, Colour
from tagger.core.location import Location
from tagger.core.vocabulary import CATEGORIES
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import load_tagger
from tagger.models.runtimes import Device
from tagger.models.tagger import Tagger

FOLDER = "samples"

_SIDE = 512  # pixels, the longer one at most
_QUALITY = 92
_SAFE = ("general", "sensitive")  # ratings of pictures that may be shown to anyone
_TRIED = 20  # pictures for each sample
_log = logging.getLogger(__name__)


def readable_images(
    locations: Iterable[Location | Path], background: Colour = WHITE
) -> Iterator[tuple[str, Image.Image]]:
    """Yield pictures with their paths; tell of those that cannot be read, and leave them out."""
    for place in locations:
        path = place.path if isinstance(place, Location) else str(place)
        try:
            yield path, decode.open_rgb(place, background)
        except decode.Unreadable as error:
            _log.warning("left out: %s: %s", path, error)


def write(folder: Path, split: Split, count: int) -> None:
    """Add pictures spread over a part to an export, each with its tags, `1.jpg` and `1.txt`.

    Where the model knows ratings, only such as it takes for fit to be shown.
    """
    written, tagger = 0, load_tagger(folder, Device("cpu"))
    spread = split.evenly_spaced(_TRIED * count)
    for _, picture in readable_images(spread.locations, tagger.preprocess.background):
        if written == count:
            return
        picture.thumbnail((_SIDE, _SIDE))
        if _may_be_shown(tagger, picture):
            written += 1
            path = folder / FOLDER / f"{written}.jpg"
            with files.atomic_write(path) as partial:
                picture.save(partial, format="JPEG", quality=_QUALITY, subsampling=0)
            said = tags_of(tagger, decode.open_rgb(path))
            files.write_text(path.with_suffix(".txt"), ", ".join(name for name, _ in said) + "\n")


def _may_be_shown(tagger: Tagger, picture: Image.Image) -> bool:
    (found,) = tagger.probabilities([picture])
    ratings = [
        (confidence, tag.name)
        for tag, confidence in zip(tagger.tags, found, strict=True)
        if CATEGORIES[tag.category] == "rating"
    ]
    return not ratings or max(ratings)[1] in _SAFE


def tags_of(tagger: Tagger, picture: Image.Image) -> list[tuple[str, float]]:
    """Return the tags of a picture, the surest first, with their confidences."""
    (found,) = tagger.probabilities([picture])
    said = [
        (tag.name, float(confidence))
        for tag, confidence, limit in zip(tagger.tags, found, tagger.thresholds, strict=True)
        if confidence >= limit
    ]
    return sorted(said, key=lambda one: (-one[1], one[0]))
