"""The page in the browser: drop images, see their tags, download the captions. Made with Gradio."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from tagger.web import widgets
from tagger.web.handlers import CUSTOM, PageHandlers
from tagger.web.messages import PageMessages

_PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # listeners are for this page
_QUICK: dict[str, Any] = {**_PRIVATE, "show_progress": "hidden", "trigger_mode": "always_last"}
_SLOW: dict[str, Any] = {**_PRIVATE, "concurrency_id": "model", "concurrency_limit": 1}
_KEEP_ALIVE = 30  # seconds after which a visitor who has left is noticed

# The file has its address only when the zip is written: then the link is followed at once.
_DOWNLOAD_JS = """file => {
    const link = document.createElement("a");
    [link.href, link.download] = [file.url, file.orig_name];
    link.click();
}"""


@dataclass(frozen=True)
class _Components:
    # states
    album: Any
    index: Any  # of the image shown
    selected_tag: Any  # whose map is shown, or None
    # images
    drop: Any
    failures: Any
    gallery: Any
    image: Any
    hint: Any
    # tags of the image, hidden until there is one
    results: Any
    caption: Any
    spaces: Any
    escape: Any
    download: Any
    restart: Any
    zip_file: Any
    kind: Any  # of thresholds
    slider_row: Any
    sliders: Sequence[Any]
    tags: Any

    @property
    def state(self) -> list[Any]:
        return [self.album, self.index, self.selected_tag]

    @property
    def shown(self) -> list[Any]:
        """What changes with the images of the album."""
        components = [self.failures, self.gallery, self.image, self.hint]
        return [*components, self.results, self.download]

    @property
    def settings(self) -> list[Any]:
        return [self.kind, self.spaces, self.escape, *self.sliders]


def build_page(handlers: PageHandlers) -> gr.Blocks:
    blocks = gr.Blocks(title=handlers.messages.title, analytics_enabled=False)
    with blocks:
        _connect(handlers, _lay_out(handlers))
        blocks.load(_keep_alive, show_progress="hidden", concurrency_limit=None, **_PRIVATE)
    blocks.queue(default_concurrency_limit=4)
    return blocks


async def _keep_alive() -> AsyncIterator[None]:
    """Keep the stream of answers open for as long as the page is.

    Gradio closes it after each last answer, and loses what is asked for in that moment.
    """
    while True:
        await asyncio.sleep(_KEEP_ALIVE)
        yield


def _lay_out(handlers: PageHandlers) -> _Components:
    states: dict[str, Any] = {
        "album": gr.State(None, delete_callback=handlers.close),
        "index": gr.State(0),
        "selected_tag": gr.State(None),
    }
    gr.HTML(widgets.heading(handlers.messages, handlers.model_summary))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            images = _image_components(handlers.messages)
        with gr.Column(scale=6, min_width=320, visible=False) as results:
            tags = _tag_components(handlers)
    return _Components(**states, **images, results=results, **tags)


def _image_components(messages: PageMessages) -> dict[str, Any]:
    return {
        "drop": gr.File(file_count="multiple", show_label=False, height=120, elem_id="drop"),
        "failures": gr.HTML(),
        "gallery": gr.Gallery(
            label=messages.images,
            show_label=False,
            visible=False,
            interactive=False,
            height=200,
            object_fit="cover",
            allow_preview=False,
            buttons=[],
            elem_id="gallery",
        ),
        "image": gr.Image(
            visible=False,
            interactive=False,
            type="filepath",
            show_label=False,
            buttons=["fullscreen"],
            height=420,
            elem_id="image",
        ),
        "hint": gr.HTML(elem_id="hint"),
    }


def _tag_components(handlers: PageHandlers) -> dict[str, Any]:
    messages = handlers.messages
    caption = gr.Textbox(
        label=messages.caption, buttons=["copy"], lines=3, max_lines=8, elem_id="caption"
    )
    with gr.Row():
        spaces = gr.Checkbox(label=messages.spaces, container=False, min_width=180)
        escape = gr.Checkbox(label=messages.escape, container=False, min_width=180)
    with gr.Row():
        download = gr.Button(variant="primary", min_width=200, scale=2)
        restart = gr.Button(messages.restart, min_width=100)
    zip_file = gr.File(visible=False)
    kinds = [(messages.kinds[kind], kind) for kind in handlers.threshold_kinds]
    kind = gr.Radio(kinds, value=kinds[0][1], label=messages.thresholds)
    with gr.Row(visible=False) as slider_row:
        sliders = [
            gr.Slider(0, 1, value, step=0.01, label=messages.categories[name], min_width=240)
            for name, value in handlers.default_thresholds().items()
        ]
    tags = gr.HTML(js_on_load=widgets.CLICK_JS, container=True, padding=True, elem_id="tags")
    return {
        "caption": caption,
        "spaces": spaces,
        "escape": escape,
        "download": download,
        "restart": restart,
        "zip_file": zip_file,
        "kind": kind,
        "slider_row": slider_row,
        "sliders": sliders,
        "tags": tags,
    }


def _connect(handlers: PageHandlers, page: _Components) -> None:
    """Connect what a visitor does with its handler.

    After each action the tags are asked for as a step of their own, one after the other: so they
    follow the settings as they are, and no answer overtakes a later one.
    """
    show_tags: dict[str, Any] = {
        "fn": handlers.show_tags,
        "inputs": [*page.state, *page.settings],
        "outputs": [page.caption, page.tags],
        "concurrency_id": "tags",
        "concurrency_limit": 1,
        **_QUICK,
    }
    # `preprocess` would forget the names that files have on the visitor's machine.
    page.drop.upload(
        handlers.upload,
        [page.album, page.drop],
        [*page.state, page.drop, *page.shown],
        preprocess=False,
        trigger_mode="multiple",  # what is dropped meanwhile waits for its turn
        show_progress_on=page.drop,
        **_SLOW,
    ).success(**show_tags)
    page.gallery.select(
        handlers.select_image,
        page.album,
        [page.index, page.selected_tag, page.image, page.hint],
        **_QUICK,
    ).success(**show_tags)
    page.tags.click(
        handlers.toggle_saliency,
        page.state,
        [page.selected_tag, page.image, page.hint],
        show_progress_on=page.image,
        **_SLOW,
    ).success(**show_tags)
    gr.on([component.input for component in page.settings], **show_tags)
    page.kind.input(
        lambda kind: gr.update(visible=kind == CUSTOM), page.kind, page.slider_row, **_QUICK
    )
    restarted = [*page.state, page.drop, *page.shown]
    page.restart.click(handlers.restart, page.album, restarted, **_PRIVATE).success(**show_tags)
    page.download.click(
        handlers.archive, [page.album, *page.settings], page.zip_file, **_PRIVATE
    ).success(None, page.zip_file, js=_DOWNLOAD_JS, **_PRIVATE)
