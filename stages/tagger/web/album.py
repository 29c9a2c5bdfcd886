"""What one visitor of the page has dropped, what the model says of it, and its sidecars."""

import os
import secrets
import shutil
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from tagger.core import files
from tagger.core.colours import Colour
from tagger.images import decode
from tagger.images.decode import Pixels
from tagger.inference import decoders, pipeline, sidecars
from tagger.inference.captions import Captioner
from tagger.inference.given import Caption
from tagger.inference.inputs import InputImage
from tagger.inference.outputs import FailedImage, RunStatus
from tagger.inference.pipeline import FloatRow, PipelineOptions
from tagger.models.tagger import Tagger

FAILURES = "infer_failures.csv"
VIEW = 1024  # pixels, the longest side of the copies that the page shows


class Upload(NamedTuple):
    path: Path
    name: str  # as it was on the visitor's machine


class TaggedImage(NamedTuple):
    """A picture that could be read."""

    name: str
    view: Path  # a smaller copy to show
    probabilities: FloatRow  # (tags,)


@dataclass(frozen=True)
class UploadDecoder:
    """Opens uploads within limits, and leaves a smaller copy beside each."""

    megabytes: float  # that a file may have
    megapixels: float  # that a picture may have, by its header

    def __call__(self, path: Path, background: Colour) -> Pixels:
        """Return an upright picture. Raises Unreadable, before it decodes what is too large."""
        if not path.exists():  # another visitor dropped the same, and it was tagged meanwhile
            raise decode.Unreadable("is gone: drop it again")
        megabytes = path.stat().st_size / 1e6
        if megabytes > self.megabytes:
            raise decode.Unreadable(
                f"its {megabytes:,.1f} MB are more than the {self.megabytes:g} MB allowed"
            )
        decode.limit_pixels(round(self.megapixels * 1e6))
        pixels = decode.open_pixels(path, background)
        view = Image.fromarray(pixels)
        view.thumbnail((VIEW, VIEW), reducing_gap=2.0)
        view.save(_view(path), quality=92, subsampling=0)
        return pixels


def _view(path: Path) -> Path:
    return path.with_suffix(".jpg")


@dataclass
class Album:
    """The pictures of one visitor. Of what was uploaded, only smaller copies are kept."""

    folder: Path  # where these are
    images: list[TaggedImage] = field(default_factory=list)
    failed: RunStatus = field(default_factory=RunStatus)

    def add(
        self,
        uploads: Sequence[Upload],
        tagger: Tagger,
        pace: PipelineOptions,
        decode_upload: UploadDecoder,
    ) -> Iterator[int]:
        """Tag uploads and delete them; yield how many are done, as this goes on.

        Other processes decode, so that a picture that kills its decoder costs itself alone.
        """
        taken = [Upload(self._take(one.path), safe_name(one.name)) for one in uploads]
        for path in {one.path for one in uploads}:
            path.unlink(missing_ok=True)
        decode_squares = partial(
            decoders.decode_squares, max_in_process=0, open_image=decode_upload
        )
        found = [InputImage(one.path, self.folder) for one in taken]
        names = iter(taken)
        done = 0
        blocks = pipeline.tag_images(
            tagger, found, pace, embed=False, stop=threading.Event(), decode=decode_squares
        )
        for block in blocks:
            for answer in block:
                self._keep(answer.probabilities, answer.problem, next(names))
            done += len(block)
            yield done

    def _take(self, path: Path) -> Path:
        """Return a link to an upload by a name of its own, which other visitors do not share."""
        taken = self.folder / secrets.token_hex(8)
        with suppress(FileNotFoundError):  # which is told of as any other picture's failure
            os.link(path, taken)
        return taken

    def _keep(self, probabilities: FloatRow, reason: str, upload: Upload) -> None:
        upload.path.unlink(missing_ok=True)
        if reason:
            self.failed.add_failure(Path(upload.name), "unreadable image", reason)
        else:
            self.images.append(TaggedImage(upload.name, _view(upload.path), probabilities))

    @property
    def failures(self) -> Sequence[FailedImage]:
        return self.failed.failures

    def caption(self, index: int, choose: Captioner) -> Caption:
        picture = self.images[index]
        return choose(InputImage(Path(picture.name), Path()), picture.probabilities)

    def archive(self, choose: Captioner) -> Path:
        """Return a zip with a sidecar for each picture, and the list of those that failed."""
        path = self.folder / "tags.zip"
        with files.atomic_write(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
            names = sidecar_names([picture.name for picture in self.images])
            for index, name in enumerate(names):
                caption = self.caption(index, choose)
                archive.writestr(
                    name, sidecars.sidecar_text(caption, choose.tag_format, choose.tag_names)
                )
            if self.failures:
                listed = self.folder / FAILURES
                files.write_csv(listed, FailedImage._fields, self.failures)
                archive.write(listed, FAILURES)
        return path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def safe_name(name: str) -> str:
    """Return the name of a file without folders, fit to be shown and to be one in a zip."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(char if char.isprintable() else "_" for char in last) or "picture"


def sidecar_names(image_names: Sequence[str]) -> list[str]:
    """Return the name of each picture's sidecar. No two are the same, on whatever system.

    `cat.txt` for cat.png; where there is a cat.webp, too, `cat.png.txt` and `cat.webp.txt`.
    """
    stems = Counter(Path(name).stem.casefold() for name in image_names)
    used: set[str] = set()
    found = []
    for name in image_names:
        base = Path(name).stem if stems[Path(name).stem.casefold()] == 1 else name
        free, number = base, 1
        while free.casefold() in used:
            number += 1
            free = f"{base} ({number})"
        used.add(free.casefold())
        found.append(f"{free}.txt")
    return found
