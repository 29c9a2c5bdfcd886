"""The images of one visitor of the page, their probabilities, and a zip of sidecars."""

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
from tagger.inference.captions import Caption, Captioner
from tagger.inference.inputs import InputImage
from tagger.inference.outputs import FailedImage, RunStatus
from tagger.inference.pipeline import FloatRow, PipelineOptions
from tagger.models.tagger import Tagger

FAILURES = "infer_failures.csv"
VIEW_SIZE = 1024  # pixels, the longest side of the copies that the page shows


class Upload(NamedTuple):
    path: Path
    name: str  # on the visitor's machine


class TaggedImage(NamedTuple):
    """An image that could be read."""

    name: str
    view: Path  # a smaller copy, which the page shows
    probabilities: FloatRow  # (tags,)


@dataclass(frozen=True)
class UploadDecoder:
    """Decode uploads within limits, and write a smaller copy beside each."""

    max_megabytes: float  # of a file
    max_megapixels: float  # of an image, by its header

    def __call__(self, path: Path, background: Colour) -> Pixels:
        """Return an upright image. Raises Unreadable, for too large ones before it decodes them."""
        if not path.exists():  # another visitor dropped the same file
            raise decode.Unreadable("is gone: drop it again")
        megabytes = path.stat().st_size / 1e6
        if megabytes > self.max_megabytes:
            raise decode.Unreadable(
                f"its {megabytes:,.1f} MB are more than the {self.max_megabytes:g} MB allowed"
            )
        decode.limit_pixels(round(self.max_megapixels * 1e6))
        pixels = decode.open_pixels(path, background)
        view = Image.fromarray(pixels)
        view.thumbnail((VIEW_SIZE, VIEW_SIZE), reducing_gap=2.0)
        view.save(_view_path(path), quality=92, subsampling=0)
        return pixels


def _view_path(path: Path) -> Path:
    return path.with_suffix(".jpg")


@dataclass
class Album:
    """The images of one visitor. Only smaller copies of the uploads are kept."""

    folder: Path  # of the copies
    images: list[TaggedImage] = field(default_factory=list)
    status: RunStatus = field(default_factory=RunStatus)

    def add(
        self,
        uploads: Sequence[Upload],
        tagger: Tagger,
        options: PipelineOptions,
        decode_upload: UploadDecoder,
    ) -> Iterator[int]:
        """Tag uploads and delete them; yield how many are done.

        Other processes decode: an image that kills its decoder costs only itself.
        """
        links = [Upload(self._link(upload.path), safe_name(upload.name)) for upload in uploads]
        for path in {upload.path for upload in uploads}:
            path.unlink(missing_ok=True)
        decode_squares = partial(
            decoders.decode_squares, isolate_single=True, open_image=decode_upload
        )
        images = [InputImage(link.path, self.folder) for link in links]
        batches = pipeline.tag_images(
            tagger, images, options, embed=False, stop=threading.Event(), decode=decode_squares
        )
        done = 0
        for batch in batches:
            for prediction, link in zip(batch, links[done:], strict=False):
                self._add(link, prediction.probabilities, prediction.problem)
            done += len(batch)
            yield done

    def _link(self, path: Path) -> Path:
        """Return a link to an upload whose name no other visitor shares."""
        link = self.folder / secrets.token_hex(8)
        with suppress(FileNotFoundError):  # reported like every other failure
            os.link(path, link)
        return link

    def _add(self, upload: Upload, probabilities: FloatRow, problem: str) -> None:
        upload.path.unlink(missing_ok=True)
        if problem:
            self.status.add_failure(Path(upload.name), "unreadable image", problem)
        else:
            view = _view_path(upload.path)
            self.images.append(TaggedImage(upload.name, view, probabilities))

    @property
    def failures(self) -> Sequence[FailedImage]:
        return self.status.failures

    def caption(self, index: int, captioner: Captioner) -> Caption:
        image = self.images[index]
        return captioner(InputImage(Path(image.name), Path()), image.probabilities)

    def archive(self, captioner: Captioner) -> Path:
        """Return the path of a zip with a sidecar for each image, and a list of failures."""
        path = self.folder / "tags.zip"
        with files.atomic_write(path) as partial_path, zipfile.ZipFile(partial_path, "w") as zip_:
            for index, name in enumerate(sidecar_names([image.name for image in self.images])):
                caption = self.caption(index, captioner)
                text = sidecars.sidecar_text(caption, captioner)
                zip_.writestr(name, text)
            if self.failures:
                table = self.folder / FAILURES
                files.write_csv(table, FailedImage._fields, self.failures)
                zip_.write(table, FAILURES)
        return path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def safe_name(name: str) -> str:
    """Return the name of a file without folders and control characters."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(char if char.isprintable() else "_" for char in last) or "image"


def sidecar_names(image_names: Sequence[str]) -> list[str]:
    """Return the name of each image's sidecar, no two of them the same on any system.

    `cat.txt` for cat.png; if there is a cat.webp, too, `cat.png.txt` and `cat.webp.txt`.
    """
    stems = Counter(Path(name).stem.casefold() for name in image_names)
    names: dict[str, str] = {}  # by their form on systems that do not tell cases apart
    for image_name in image_names:
        stem = Path(image_name).stem
        base = stem if stems[stem.casefold()] == 1 else image_name
        name, number = base, 1
        while name.casefold() in names:
            number += 1
            name = f"{base} ({number})"
        names[name.casefold()] = f"{name}.txt"
    return list(names.values())
