"""What a person is to look at can be drawn whatever has become of the pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageChops
from scipy.special import logit

from support.predictions import RandomPredictions, write_store
from tagger.core.colours import WHITE
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.evaluation.inspection import SplitInspection
from tagger.images.dataset import Split


def test_a_picture_that_has_gone_since_is_grey_on_the_sheet(
    split: Split, tags: list[Tag], tmp_path: Path
) -> None:
    truth = split.labels.toarray()
    logits = logit(np.where(truth, 0.9, 0.1)).astype(np.float32)
    scored = write_store(RandomPredictions(logits, truth), tmp_path)
    judged: Any = None  # not needed for the sheet
    limits = np.full(len(tags), 0.5)
    gone = [Location(str(tmp_path / "gone.png"), 0, 8), *split.locations[1:]]
    whole, drawn = (
        SplitInspection("test", scored, some, tags, limits, judged, WHITE).sheet()
        for some in (split, Split(gone, split.labels))
    )
    box = (12, 34, 12 + 168, 34 + 168)
    assert ImageChops.difference(whole, drawn).getbbox() == box
    assert drawn.crop(box).getcolors() == [(168 * 168, (234, 238, 242))]
