"""What worker processes do in tests. Each new one imports this module, so it imports no torch."""

import os
import signal
import time
from pathlib import Path

from tagger.core.colours import Colour
from tagger.images import decode
from tagger.images.decode import Pixels


def misbehave(word: str) -> None:
    """Die or hang if the word says so."""
    if word == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "hang":
        time.sleep(600)


def open_or_misbehave(path: Path, background: Colour) -> Pixels:
    """Open an image, unless it is named after what else to do."""
    misbehave(path.stem)
    return decode.open_pixels(path, background)
