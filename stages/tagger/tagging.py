"""Tag the pictures that someone names: find, open, ask the model, caption."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from tagger import images, walk
from tagger.captions import Caption, Given
from tagger.errors import TaggerError
from tagger.exported import Tagger
from tagger.metrics import Floats
from tagger.vocabulary import CATEGORIES


class Found(NamedTuple):
    file: Path
    sidecar: Path  # where its tags belong as a .txt


class Failure(NamedTuple):
    file: str
    reason: str
    detail: str


def find(inputs: Iterable[Path], *, recursive: bool, output_dir: Path | None) -> list[Found]:
    """Return the pictures named and those of the folders named, by path, each once.

    Sidecars belong beside their pictures, or under `output_dir` in the same subfolders.
    Raises TaggerError for what does not exist and where there is no picture at all.
    """
    found: dict[Path, Found] = {}
    for path in inputs:
        if not path.exists():
            raise TaggerError(f"There is no picture or folder {path}.")
        base = path if path.is_dir() else path.parent
        for file in sorted(walk.find(path, recursive=recursive)) if path.is_dir() else [path]:
            target = output_dir / file.relative_to(base) if output_dir else file
            found.setdefault(file, Found(file, target.with_suffix(".txt")))
    if not found:
        hint = "" if recursive else " With --recursive, subfolders are searched too."
        raise TaggerError(f"{', '.join(map(str, inputs))}: no pictures there.{hint}")
    return list(found.values())


def tag(
    tagger: Tagger,
    found: Sequence[Found],
    limits: Floats,
    batch_size: int,
    failures: list[Failure],
) -> Iterator[Caption]:
    """Yield a caption for every picture that can be read; add the others to `failures`.

    limits: (tags,), the confidence from which on each tag is given
    """
    ratings = [n for n, tag in enumerate(tagger.tags) if CATEGORIES[tag.category] == "rating"]
    open_one = partial(_open, tagger.preprocess.background)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(found), batch_size):
            readable: list[tuple[Found, Image.Image]] = []
            batch = found[start : start + batch_size]
            for one, picture in zip(batch, pool.map(open_one, batch), strict=True):
                if isinstance(picture, Failure):
                    failures.append(picture)
                else:
                    readable.append((one, picture))
            if readable:
                scores = tagger([picture for _, picture in readable])
                for (one, _), row in zip(readable, scores, strict=True):
                    yield _caption(tagger, ratings, one, row, limits)


def _open(background: tuple[int, int, int], one: Found) -> Image.Image | Failure:
    if not str(one.file).isprintable():
        return Failure(ascii(str(one.file)), "name", "holds characters that cannot be printed")
    try:
        return images.open_rgb(one.file, background)
    except images.Unreadable as error:
        return Failure(str(one.file), "unreadable picture", str(error))


def _caption(
    tagger: Tagger,
    ratings: Sequence[int],
    one: Found,
    scores: npt.NDArray[np.float32],
    limits: Floats,
) -> Caption:
    """Return what is said of a picture; ratings: the columns of the scores that are ratings."""
    likeliest = max(ratings, key=lambda column: float(scores[column]), default=None)
    order = np.argsort(-scores, kind="stable")
    given = [
        Given(tagger.tags[c].name, CATEGORIES[tagger.tags[c].category], float(scores[c]))
        for c in order[scores[order] >= limits[order]]
    ]
    rating = None if likeliest is None else tagger.tags[likeliest].name
    return Caption(one.file, one.sidecar, rating, given)
