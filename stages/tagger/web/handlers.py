"""What the page does when a visitor acts. Each visitor has an album."""

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
from tagger.inference import sidecars, threshold_choice
from tagger.inference.captions import Captioner
from tagger.inference.pipeline import PipelineOptions
from tagger.inference.tag_format import TagFormat
from tagger.inference.threshold_choice import BEST, CATEGORY, ThresholdChoice
from tagger.models.tagger import Tagger
from tagger.web import saliency, widgets
from tagger.web.album import Album, Upload, UploadDecoder
from tagger.web.messages import PageMessages
from tagger.web.saliency import MissingRequirement, Saliency

CUSTOM = "own"  # thresholds that the visitor sets

Update = Any  # of a component, as Gradio makes it


@dataclass(frozen=True)
class PageHandlers:
    """The methods are handlers, the fields are the same for all visitors.

    `settings` are the kind of thresholds, spaces, escape, and the visitor's thresholds of each
    category of the model.
    """

    tagger: Tagger
    options: PipelineOptions
    decode_upload: UploadDecoder
    messages: PageMessages
    model_summary: str
    folder: Path  # of the albums
    saliency: Saliency | MissingRequirement

    @property
    def hint(self) -> str:
        """HTML: how to see where the model looks for a tag, or why that is not possible."""
        key = self.saliency if isinstance(self.saliency, str) else "how"
        return widgets.hint(self.messages.saliency_hints[key])

    @property
    def categories(self) -> list[str]:
        return list(count_categories(self.tagger.tags))

    @property
    def threshold_kinds(self) -> list[str]:
        return [BEST, CATEGORY, CUSTOM] if self.tagger.thresholds_path.is_file() else [BEST, CUSTOM]

    def default_thresholds(self) -> Mapping[str, float]:
        """Return where the sliders begin: the thresholds fitted for the categories."""
        choice = ThresholdChoice(self.threshold_kinds[-2])
        thresholds = threshold_choice.resolve_thresholds(choice, self.tagger)
        names = np.array([CATEGORIES[tag.category] for tag in self.tagger.tags])
        return {n: round(float(np.median(thresholds[names == n])), 2) for n in self.categories}

    def upload(
        self,
        album: Album | None,
        files: Sequence[Mapping[str, str]],
        progress: Any = gr.Progress(),  # noqa: B008  # Gradio finds it by this default
    ) -> list[Any]:
        """Tag the files that were dropped, and show the first of them."""
        is_new, album = album is None, album or Album(Path(tempfile.mkdtemp(dir=self.folder)))
        uploads = [Upload(Path(file["path"]), file.get("orig_name") or "") for file in files]
        first = len(album.images)
        progress((0, len(uploads)), desc=self.messages.tagging)
        try:
            for done in album.add(uploads, self.tagger, self.options, self.decode_upload):
                progress((done, len(uploads)), desc=self.messages.tagging)
        except BaseException:
            if is_new:  # nobody else would remove it
                album.close()
            raise
        if isinstance(self.saliency, Saliency):
            self.saliency.load_in_background()
        index = max(0, min(first, len(album.images) - 1))
        return [album, index, None, None, *self._show(album, index)]

    def _show(self, album: Album, index: int) -> list[Update]:
        """Return failures, gallery, image, hint, results and download button for an album."""
        messages, count = self.messages, len(album.images)
        total = count + len(album.failures)
        views = [(str(image.view), image.name) for image in album.images]
        return [
            widgets.failure_list(album.failures, total, messages),
            gr.update(value=views, visible=count > 1, selected_index=index if count else None),
            gr.update(value=views[index][0] if count else None, visible=count > 0),
            self.hint if count else "",
            gr.update(visible=count > 0),
            gr.update(value=messages.download.format(count)),
        ]

    def restart(self, album: Album | None) -> list[Any]:
        self.close(album)
        return [None, 0, None, None, *self._show(Album(self.folder), 0)]

    def close(self, album: Album | None) -> None:
        if album:
            album.close()

    def select_image(self, event: gr.SelectData, album: Album) -> list[Any]:
        return [event.index, None, str(album.images[event.index].view), self.hint]

    def show_tags(
        self, album: Album | None, index: int, selected_tag: str | None, *settings: Any
    ) -> tuple[str, str]:
        """Return the caption of an image, and its tags as HTML."""
        if not album or not album.images:
            return "", ""
        captioner = self._captioner(*settings)
        caption = album.caption(index, captioner)
        text = sidecars.sidecar_text(caption, captioner)
        names = [tag.name for tag in self.tagger.tags]
        thresholds = dict(zip(names, captioner.thresholds.tolist(), strict=True))
        selectable = isinstance(self.saliency, Saliency)
        return text.rstrip("\n"), widgets.tag_list(
            caption, thresholds, self.messages, selected_tag, selectable=selectable
        )

    def _captioner(self, kind: str, spaces: bool, escape: bool, *custom: float) -> Captioner:
        choice = ThresholdChoice(kind)
        if kind == CUSTOM:
            choice = ThresholdChoice(categories=dict(zip(self.categories, custom, strict=True)))
        thresholds = threshold_choice.resolve_thresholds(choice, self.tagger)
        tag_format = TagFormat(spaces=spaces, escape=escape)
        return Captioner(self.tagger.tags, thresholds, tag_format=tag_format)

    def toggle_saliency(
        self, event: gr.EventData, album: Album, index: int, selected_tag: str | None
    ) -> list[Any]:
        """Show where the model looks for a tag, or the image alone if that is shown already."""
        view, tag = album.images[index].view, str(event.tag)
        columns = [column for column, each in enumerate(self.tagger.tags) if each.name == tag]
        if isinstance(self.saliency, str) or tag == selected_tag or not columns:
            return [None, str(view), self.hint]
        pixels = np.asarray(Image.open(view))
        try:
            heatmap = self.saliency(pixels, columns[0])
        except TaggerError as error:
            raise gr.Error(str(error)) from None
        for earlier in view.parent.glob(f"{view.stem}-*.jpg"):
            earlier.unlink()
        path = view.with_name(f"{view.stem}-{columns[0]}.jpg")
        Image.fromarray(saliency.overlay(pixels, heatmap)).save(path, quality=90)
        messages = self.messages
        text = messages.saliency_shown if heatmap.any() else messages.saliency_empty
        return [tag, str(path), widgets.hint(text.format(tag))]

    def archive(self, album: Album, *settings: Any) -> str:
        """Return the path of a zip of sidecars."""
        return str(album.archive(self._captioner(*settings)))
