"""What the page answers its visitors, each of whom has an album of their own."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from tagger.core.errors import TaggerError
from tagger.core.vocabulary import CATEGORIES, count_categories
from tagger.inference import limits, sidecars
from tagger.inference.captions import Captioner
from tagger.inference.given import Caption
from tagger.inference.limits import BEST, CATEGORY, ThresholdChoice
from tagger.inference.naming import TagFormat
from tagger.inference.pipeline import PipelineOptions
from tagger.models.tagger import Tagger
from tagger.web import saliency, widgets
from tagger.web.album import Album, Upload, UploadDecoder
from tagger.web.messages import PageMessages
from tagger.web.saliency import MissingRequirement, Saliency

CUSTOM = "own"  # limits that the visitor sets

Update = Any  # of a component, as Gradio makes it


@dataclass(frozen=True)
class PageHandlers:
    """What is the same for all visitors.

    Its methods answer what a visitor does. `settings` are the kind of thresholds, the two switches
    of captions, and the visitor's own limits, one for each category that the model has.
    """

    tagger: Tagger
    pace: PipelineOptions
    decode_upload: UploadDecoder
    messages: PageMessages
    model_summary: str  # which one it is, in words
    folder: Path  # where albums lie
    saliency: Saliency | MissingRequirement

    @property
    def hint(self) -> str:
        """How a tag's place is seen, or why it is not."""
        lacks = self.saliency if isinstance(self.saliency, str) else "how"
        return widgets.hint(self.messages.saliency_hints[lacks])

    @property
    def categories(self) -> list[str]:
        return list(count_categories(self.tagger.tags))

    @property
    def threshold_kinds(self) -> list[str]:
        """The kinds of thresholds that there are to choose from."""
        return [BEST, CATEGORY, CUSTOM] if self.tagger.thresholds_path.is_file() else [BEST, CUSTOM]

    def default_thresholds(self) -> Mapping[str, float]:
        """Return the limits that sliders begin at: what was fitted for their categories."""
        found = limits.resolve_thresholds(ThresholdChoice(self.threshold_kinds[-2]), self.tagger)
        names = np.array([CATEGORIES[tag.category] for tag in self.tagger.tags])
        return {n: round(float(np.median(found[names == n])), 2) for n in self.categories}

    def upload(
        self,
        album: Album | None,
        files: Sequence[Mapping[str, str]],
        progress: Any = gr.Progress(),  # noqa: B008  # how Gradio is asked for it
    ) -> list[Any]:
        """Tag what was dropped, and show the first of it."""
        known, album = album, album or Album(Path(tempfile.mkdtemp(dir=self.folder)))
        uploads = [Upload(Path(file["path"]), file.get("orig_name") or "") for file in files]
        first = len(album.images)
        progress((0, len(uploads)), desc=self.messages.tagging)
        try:
            for done in album.add(uploads, self.tagger, self.pace, self.decode_upload):
                progress((done, len(uploads)), desc=self.messages.tagging)
        except BaseException:
            if not known:  # nobody else would remove it
                album.close()
            raise
        if isinstance(self.saliency, Saliency):
            self.saliency.load_in_background()
        index = max(0, min(first, len(album.images) - 1))
        return [album, index, None, None, *self._all(album, index)]

    def _all(self, album: Album, index: int) -> list[Update]:
        """Return what is seen: what failed, pictures, picture, hint, whether there is more, zip."""
        words, count = self.messages, len(album.images)
        failed = widgets.failure_list(album.failures, count + len(album.failures), words)
        views = [(str(picture.view), picture.name) for picture in album.images]
        return [
            failed,
            gr.update(value=views, visible=count > 1, selected_index=index if count else None),
            gr.update(value=views[index][0] if count else None, visible=count > 0),
            self.hint if count else "",
            gr.update(visible=count > 0),
            gr.update(value=words.download.format(count)),
        ]

    def restart(self, album: Album | None) -> list[Any]:
        self.close(album)
        return [None, 0, None, None, *self._all(Album(self.folder), 0)]

    def close(self, album: Album | None) -> None:
        if album:
            album.close()

    def select_image(self, event: gr.SelectData, album: Album) -> list[Any]:
        """Show another picture."""
        return [event.index, None, str(album.images[event.index].view), self.hint]

    def show_tags(
        self, album: Album | None, index: int, chosen: str | None, *settings: Any
    ) -> tuple[str, str]:
        """Return the caption of a picture, and its tags."""
        if not album or not album.images:
            return "", ""
        choose = self._captioner(*settings)
        said = album.caption(index, choose)
        line = sidecars.sidecar_text(said, choose.tag_format, choose.tag_names).rstrip("\n")
        return line, self._tags(said, choose, chosen)

    def _tags(self, said: Caption, choose: Captioner, chosen: str | None) -> str:
        names = [tag.name for tag in self.tagger.tags]
        by_tag = dict(zip(names, choose.thresholds.tolist(), strict=True))
        look = isinstance(self.saliency, Saliency)
        return widgets.tag_list(said, by_tag, self.messages, chosen, selectable=look)

    def _captioner(self, kind: str, spaces: bool, escape: bool, *own: float) -> Captioner:
        asked = ThresholdChoice(kind)
        if kind == CUSTOM:
            asked = ThresholdChoice(categories=dict(zip(self.categories, own, strict=True)))
        found = limits.resolve_thresholds(asked, self.tagger)
        return Captioner(
            self.tagger.tags, found, tag_format=TagFormat(spaces=spaces, escape=escape)
        )

    def toggle_saliency(
        self, event: gr.EventData, album: Album, index: int, chosen: str | None
    ) -> list[Any]:
        """Show where the model looks for a tag, or the picture alone where it is shown already."""
        picture, tag = album.images[index], str(event.tag)
        columns = [c for c, known in enumerate(self.tagger.tags) if known.name == tag]
        if isinstance(self.saliency, str) or tag == chosen or not columns:
            return [None, str(picture.view), self.hint]
        pixels = np.asarray(Image.open(picture.view))
        try:
            heat = self.saliency(pixels, columns[0])
        except TaggerError as error:
            raise gr.Error(str(error)) from None
        for former in picture.view.parent.glob(f"{picture.view.stem}-*.jpg"):
            former.unlink()
        painted = picture.view.with_name(f"{picture.view.stem}-{columns[0]}.jpg")
        Image.fromarray(saliency.overlay(pixels, heat)).save(painted, quality=90)
        told = self.messages.saliency_shown if heat.any() else self.messages.saliency_empty
        return [tag, str(painted), widgets.hint(told.format(tag))]

    def archive(self, album: Album, *settings: Any) -> str:
        """Return the zip of sidecars."""
        return str(album.archive(self._captioner(*settings)))
