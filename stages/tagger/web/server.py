"""Serve a Gradio page from this machine: no calls to others, no files but those of the page."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from tagger.core.errors import TaggerError
from tagger.web.messages import PageMessages

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp, Receive, Scope, Send

_LOCAL = ("127.0.0.1", "localhost", "::1")
_SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False", "HF_HUB_OFFLINE": "1"}
_REPORTED = 4  # times the limit: files up to this size are reported by name, larger ones refused
_REQUIREMENTS = "stages/app-requirements.txt"


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0: any that is free. Raises TaggerError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port > 65535:
        raise TaggerError(f"There is no port {port}: the last one is 65535.")
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        number = error.errno or 0  # below 0: about the name of the host
        reason = os.strerror(number) if number > 0 else error.strerror
        raise TaggerError(
            f"{host}:{port}: {reason}. Name another --port, or another --host."
        ) from None


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder for the files of Gradio; it is removed at the end, also after a signal.

    Enter it before Gradio is imported. Raises TaggerError if Gradio is missing.
    """
    with tempfile.TemporaryDirectory(prefix="tagger-") as folder:
        os.environ.update(_SETTINGS, GRADIO_TEMP_DIR=folder)
        signal.signal(signal.SIGTERM, _stop)
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            raise TaggerError(
                f"The page needs {error.name}, which is missing: pip install -r {_REQUIREMENTS}"
            ) from None
        yield Path(folder)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def serve(
    blocks: "gr.Blocks", listener: socket.socket, max_megabytes: float, messages: PageMessages
) -> None:
    """Serve the page until a signal ends it.

    max_megabytes: of a file; much larger uploads are refused before they are complete
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from tagger.web import widgets

    gr.processing_utils.async_ssrf_protected_download = _refuse_download

    host, port = listener.getsockname()[:2]
    no_docs: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    blocks.has_launched = True  # else Gradio does not check which files a visitor may name
    app = gr.mount_gradio_app(
        FastAPI(**no_docs),
        blocks,
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        max_file_size=round(_REPORTED * max_megabytes * 1e6),
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs=dict(no_docs),
        theme=_theme(widgets.FONTS),
        css=widgets.drop_css(messages),
        css_paths=widgets.CSS_PATH,
    )
    app.add_middleware(_RequestFilter, local=host in _LOCAL)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


async def _refuse_download(url: str, cache_dir: str) -> NoReturn:
    """Replace Gradio's download: what takes a file takes an address, too."""
    raise PermissionError(f"{url[:200]} is an address. Only files that were dropped are read.")


def _theme(fonts: list[str]) -> "gr.themes.Base":
    import gradio as gr

    theme = gr.themes.Default(primary_hue="indigo", font=fonts, font_mono="monospace")
    faint = {
        "body_text_color_subdued": "*neutral_500",
        "body_text_color_subdued_dark": "*neutral_400",
    }
    return theme.set(**faint)


class _RequestFilter:
    """Refuse requests that the page never makes: addresses to fetch, and another host name.

    Another site could let its name resolve to this machine, and read a page that is for this
    machine alone.
    """

    def __init__(self, app: "ASGIApp", *, local: bool) -> None:
        self._app = app
        self._local = local

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and self._refuses(scope):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("Forbidden", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuses(self, scope: "Scope") -> bool:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        is_allowed = not self._local or urlsplit(f"//{host}").hostname in _LOCAL
        return "://" in scope["path"] or not is_allowed
