"""The page in the browser: drop images, see their tags, download the captions. Made with Gradio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from tagger.web import widgets
from tagger.web.handlers import CUSTOM, PageHandlers

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


def build_page(handlers: PageHandlers) -> gr.Blocks:
    blocks = gr.Blocks(title=handlers.messages.title, analytics_enabled=False)
    with blocks:
        _Page(handlers).connect()
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


class _Page:
    """The components, laid out in the order in which they are made."""

    def __init__(self, handlers: PageHandlers) -> None:
        self._handlers = handlers
        self.album = gr.State(None, delete_callback=handlers.close)
        self.index = gr.State(0)  # of the image shown
        self.selected_tag = gr.State(None)  # whose map is shown
        gr.HTML(widgets.heading(handlers.messages, handlers.model_summary))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._add_images()
            with gr.Column(scale=6, min_width=320, visible=False) as self.results:
                self._add_tags()

    def _add_images(self) -> None:
        self.drop = gr.File(file_count="multiple", show_label=False, height=120, elem_id="drop")
        self.failures = gr.HTML()
        self.gallery = gr.Gallery(
            label=self._handlers.messages.images,
            show_label=False,
            visible=False,
            interactive=False,
            height=200,
            object_fit="cover",
            allow_preview=False,
            buttons=[],
            elem_id="gallery",
        )
        self.image = gr.Image(
            visible=False,
            interactive=False,
            type="filepath",
            show_label=False,
            buttons=["fullscreen"],
            height=420,
            elem_id="image",
        )
        self.hint = gr.HTML(elem_id="hint")

    def _add_tags(self) -> None:
        messages = self._handlers.messages
        self.caption = gr.Textbox(
            label=messages.caption, buttons=["copy"], lines=3, max_lines=8, elem_id="caption"
        )
        with gr.Row():
            self.spaces = gr.Checkbox(label=messages.spaces, container=False, min_width=180)
            self.escape = gr.Checkbox(label=messages.escape, container=False, min_width=180)
        with gr.Row():
            self.download = gr.Button(variant="primary", min_width=200, scale=2)
            self.restart = gr.Button(messages.restart, min_width=100)
        self.zip_file = gr.File(visible=False)
        kinds = [(messages.kinds[kind], kind) for kind in self._handlers.threshold_kinds]
        self.kind = gr.Radio(kinds, value=kinds[0][1], label=messages.thresholds)
        with gr.Row(visible=False) as self.slider_row:
            self.sliders = [
                gr.Slider(0, 1, value, step=0.01, label=messages.categories[name], min_width=240)
                for name, value in self._handlers.default_thresholds().items()
            ]
        self.tags = gr.HTML(
            js_on_load=widgets.CLICK_JS, container=True, padding=True, elem_id="tags"
        )

    def connect(self) -> None:
        """Connect what a visitor does with its handler.

        After each action the tags are asked for as a step of their own, one after the other: so
        they follow the settings as they are, and no answer overtakes a later one.
        """
        handlers, state = self._handlers, [self.album, self.index, self.selected_tag]
        settings: list[Any] = [self.kind, self.spaces, self.escape, *self.sliders]
        images = [self.failures, self.gallery, self.image, self.hint, self.results, self.download]
        show_tags: dict[str, Any] = {
            "fn": handlers.show_tags,
            "inputs": [*state, *settings],
            "outputs": [self.caption, self.tags],
            "concurrency_id": "tags",
            "concurrency_limit": 1,
            **_QUICK,
        }
        # `preprocess` would forget the names that files have on the visitor's machine.
        self.drop.upload(
            handlers.upload,
            [self.album, self.drop],
            [*state, self.drop, *images],
            preprocess=False,
            trigger_mode="multiple",  # what is dropped meanwhile waits for its turn
            show_progress_on=self.drop,
            **_SLOW,
        ).success(**show_tags)
        self.gallery.select(
            handlers.select_image,
            self.album,
            [self.index, self.selected_tag, self.image, self.hint],
            **_QUICK,
        ).success(**show_tags)
        self.tags.click(
            handlers.toggle_saliency,
            state,
            [self.selected_tag, self.image, self.hint],
            show_progress_on=self.image,
            **_SLOW,
        ).success(**show_tags)
        gr.on([component.input for component in settings], **show_tags)
        self.kind.input(
            lambda kind: gr.update(visible=kind == CUSTOM), self.kind, self.slider_row, **_QUICK
        )
        self.restart.click(
            handlers.restart, self.album, [*state, self.drop, *images], **_PRIVATE
        ).success(**show_tags)
        self.download.click(
            handlers.archive, [self.album, *settings], self.zip_file, **_PRIVATE
        ).success(None, self.zip_file, js=_DOWNLOAD_JS, **_PRIVATE)
