"""The page in the browser: drop pictures, see their tags, take the captions along. Gradio's."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from tagger.web import widgets
from tagger.web.handlers import CUSTOM, PageHandlers
from tagger.web.messages import PageMessages

_ALL: dict[str, Any] = {"api_visibility": "private"}  # listeners are for this page
_QUICK: dict[str, Any] = {**_ALL, "show_progress": "hidden", "trigger_mode": "always_last"}
_SLOW: dict[str, Any] = {**_ALL, "concurrency_id": "model", "concurrency_limit": 1}
_AWAKE = 30  # seconds until it is seen that a visitor has left

# The address is there only once the zip is: a link that is followed by itself.
_FETCH = """file => {
    const link = document.createElement("a");
    [link.href, link.download] = [file.url, file.orig_name];
    link.click();
}"""


@dataclass(frozen=True)
class _States:
    album: Any
    index: Any  # of the picture that is looked at
    chosen: Any  # the tag whose place is shown, or None


@dataclass(frozen=True)
class _Seen:
    """What there is to see, once there are pictures."""

    failures: Any
    gallery: Any
    picture: Any
    hint: Any
    results: Any
    download: Any


@dataclass(frozen=True)
class _Said:
    """What the model says of the picture that is looked at, by the settings."""

    caption: Any
    tags: Any


@dataclass(frozen=True)
class _Settings:
    kind: Any
    spaces: Any
    escape: Any
    own: Any  # what holds the sliders
    sliders: Sequence[Any]

    @property
    def all(self) -> list[Any]:
        return [self.kind, self.spaces, self.escape, *self.sliders]


def build(visits: PageHandlers) -> gr.Blocks:
    words = visits.messages
    blocks = gr.Blocks(title=words.title, analytics_enabled=False)
    with blocks:
        states = _States(gr.State(None, delete_callback=visits.close), gr.State(0), gr.State(None))
        gr.HTML(widgets.heading(words, visits.model_summary))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                drop = gr.File(file_count="multiple", show_label=False, height=120, elem_id="drop")
                left = _pictures(words)
            with gr.Column(scale=6, min_width=320, visible=False) as results:
                said, settings, download, zipped, restart = _answers(visits)
        seen = _Seen(**left, results=results, download=download)
        _listen(visits, states, seen, said, settings, drop, restart)
        seen.download.click(visits.archive, [states.album, *settings.all], zipped, **_ALL).success(
            None, zipped, js=_FETCH, **_ALL
        )
        blocks.load(_stay, show_progress="hidden", concurrency_limit=None, **_ALL)
    blocks.queue(default_concurrency_limit=4)
    return blocks


async def _stay() -> AsyncIterator[None]:
    """Keep the stream of answers open for as long as the page is.

    Gradio closes it after each last answer, and loses what is asked for in that very moment.
    """
    while True:
        await asyncio.sleep(_AWAKE)
        yield


def _pictures(words: PageMessages) -> dict[str, Any]:
    return {
        "failures": gr.HTML(),
        "gallery": gr.Gallery(
            label=words.images,
            show_label=False,
            visible=False,
            interactive=False,
            height=200,
            object_fit="cover",
            allow_preview=False,
            buttons=[],
            elem_id="gallery",
        ),
        "picture": gr.Image(
            visible=False,
            interactive=False,
            type="filepath",
            show_label=False,
            buttons=["fullscreen"],
            height=420,
            elem_id="picture",
        ),
        "hint": gr.HTML(elem_id="hint"),
    }


def _answers(visits: PageHandlers) -> tuple[_Said, _Settings, Any, Any, Any]:
    words = visits.messages
    caption = gr.Textbox(
        label=words.caption, buttons=["copy"], lines=3, max_lines=8, elem_id="caption"
    )
    with gr.Row():
        spaces = gr.Checkbox(label=words.spaces, container=False, min_width=180)
        escape = gr.Checkbox(label=words.escape, container=False, min_width=180)
    with gr.Row():
        download = gr.Button(variant="primary", min_width=200, scale=2)
        restart = gr.Button(words.restart, min_width=100)
    zipped = gr.File(visible=False)
    kinds = [(words.kinds[kind], kind) for kind in visits.threshold_kinds]
    kind = gr.Radio(kinds, value=kinds[0][1], label=words.thresholds)
    with gr.Row(visible=False) as own:
        sliders = [
            gr.Slider(0, 1, value, step=0.01, label=words.categories[name], min_width=240)
            for name, value in visits.default_thresholds().items()
        ]
    tags = gr.HTML(js_on_load=widgets.CLICK_JS, container=True, padding=True, elem_id="tags")
    settings = _Settings(kind, spaces, escape, own, sliders)
    return _Said(caption, tags), settings, download, zipped, restart


def _listen(
    visits: PageHandlers,
    states: _States,
    seen: _Seen,
    said: _Said,
    settings: _Settings,
    drop: Any,
    restart: Any,
) -> None:
    """Say what happens when.

    Whatever was done, what the model says is asked for by itself afterwards, one after the other:
    so it is by the settings as they are, and no answer comes later than one to a later question.
    """
    shown = [getattr(seen, field.name) for field in fields(seen)]
    state = [states.album, states.index, states.chosen]
    say: dict[str, Any] = {
        "fn": visits.show_tags,
        "inputs": [*state, *settings.all],
        "outputs": [said.caption, said.tags],
        "concurrency_id": "say",
        "concurrency_limit": 1,
        **_QUICK,
    }
    # `preprocess` would forget the names that files have on the visitor's machine.
    drop.upload(
        visits.upload,
        [states.album, drop],
        [*state, drop, *shown],
        preprocess=False,
        trigger_mode="multiple",  # what is dropped meanwhile waits for its turn
        show_progress_on=drop,
        **_SLOW,
    ).success(**say)
    seen.gallery.select(
        visits.select_image,
        states.album,
        [states.index, states.chosen, seen.picture, seen.hint],
        **_QUICK,
    ).success(**say)
    said.tags.click(
        visits.toggle_saliency,
        state,
        [states.chosen, seen.picture, seen.hint],
        show_progress_on=seen.picture,
        **_SLOW,
    ).success(**say)
    gr.on([moved.input for moved in settings.all], **say)
    settings.kind.input(
        lambda kind: gr.update(visible=kind == CUSTOM), settings.kind, settings.own, **_QUICK
    )
    restart.click(visits.restart, states.album, [*state, drop, *shown], **_ALL).success(**say)
