"""Sample images that are shipped with an export, and the tags that the model gives them."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from tagger.core import files
from tagger.core.colours import WHITE, Colour
from tagger.core.location import Location
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.inference import sidecars
from tagger.inference.captions import Caption, Captioner
from tagger.inference.inputs import InputImage
from tagger.models import load_tagger
from tagger.models.runtimes import Device

FOLDER = "samples"

_SIZE = 512  # pixels of the longer side, at most
_QUALITY = 92
_SAFE_RATINGS = ("general", "sensitive")
_TRIES = 20  # images for each sample
_log = logging.getLogger(__name__)


def readable_images(
    locations: Iterable[Location | Path], background: Colour = WHITE
) -> Iterator[tuple[str, Image.Image]]:
    """Yield images with their paths; warn of images that cannot be read, and skip them."""
    for location in locations:
        path = location.path if isinstance(location, Location) else str(location)
        try:
            yield path, decode.open_rgb(location, background)
        except decode.Unreadable as error:
            _log.warning("skipped: %s: %s", path, error)


def write(folder: Path, split: Split, count: int) -> None:
    """Add images from the whole split to an export, each with its tags: `1.jpg` and `1.txt`.

    If the model knows ratings, only images that it rates as safe are added.
    """
    tagger = load_tagger(folder, Device("cpu"))
    captioner = Captioner(tagger.tags, tagger.thresholds)

    def caption_of(image: Image.Image) -> Caption:
        (probabilities,) = tagger.probabilities([image])
        return captioner(InputImage(Path(), Path()), probabilities)

    count_written = 0
    candidates = split.evenly_spaced(_TRIES * count).locations
    for _, image in readable_images(candidates, tagger.preprocess.background):
        if count_written == count:
            return
        image.thumbnail((_SIZE, _SIZE))
        rating = caption_of(image).rating
        if rating is None or rating.name in _SAFE_RATINGS:
            count_written += 1
            path = folder / FOLDER / f"{count_written}.jpg"
            with files.atomic_write(path) as partial:
                image.save(partial, format="JPEG", quality=_QUALITY, subsampling=0)
            caption = caption_of(decode.open_rgb(path))
            text = sidecars.sidecar_text(caption, captioner)
            files.write_text(path.with_suffix(".txt"), text)
