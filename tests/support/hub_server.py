"""A hub with one data set or model on this machine, in the protocol of huggingface_hub 2.4.

Files with a suffix of `LFS` are in Git LFS: asked for one, the hub names its hash and sends the
client on to a content server of another name, which must not see the token.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

REPO = "deepghs/tiny"
COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_valid"
LFS = (".onnx", ".tar")
PAGE = 3  # entries of the file list in one answer


class Fault(NamedTuple):
    """What goes wrong with one answer that carries bytes of a file."""

    status: int = 0  # instead of the bytes
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    drop_after: int | None = None  # bytes, then the connection breaks
    missing_bytes: int = 0  # bytes that the answer lacks, by its own account too
    corrupted: bool = False  # the first byte is another
    ignores_range: bool = False  # the range asked for is not heeded
    wrong_range: bool = False  # another range is sent than the one asked for
    delay: float = 0.0  # seconds before each 4,096 bytes


class Request(NamedTuple):
    method: str
    path: str  # in the repository; of the API the URL's
    range: str  # the header, or ""
    token: str  # the header Authorization, or ""
    host: str  # "hub" or "content"


class HubServer(ThreadingHTTPServer):
    """Serves `files`. Faults that a test injects for a file are used up one an answer."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], model: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.model = model
        self.commit = COMMIT
        self.gated = False
        self.private = False
        self.faults: dict[str, Iterator[Fault]] = {}
        self.log: list[Request] = []
        self.peak_connections = 0
        self.open_connections = 0
        self.lock = Lock()
        self.links: dict[str, tuple[str, Fault]] = {}  # signed URLs of the content server
        self.serial = count()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def inject_faults(self, path: str, faults: Iterable[Fault]) -> None:
        self.faults[path] = iter(faults)

    def requested_ranges(self, path: str) -> list[str]:
        """Return the ranges of a file that were requested from the hub, in order."""
        return [r.range for r in self.log if r.path == path and r.host == "hub"]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that went away
            super().handle_error(request, client_address)


@contextmanager
def serve_hub(files: dict[str, bytes], model: str = "") -> Iterator[HubServer]:
    """Yield a server of files, which are those of `REPO`, or of a model of this name instead."""
    with HubServer(files, model) as server, run_server(server):
        yield server


@contextmanager
def run_server(server: HubServer) -> Iterator[None]:
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def use_hub(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the library, which reads its environment at import only, ask this server."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    huggingface_hub.close_session()


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process whose library asks this server."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**ours, "HF_ENDPOINT": url, "HF_HOME": str(home), **more}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms an answer
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        data, files = f"/api/datasets/{REPO}/", f"/datasets/{REPO}/resolve/"
        if self.server.model:
            data, files = f"/api/models/{self.server.model}", f"/{self.server.model}/resolve/"
        if path == "/api/agent-harnesses":  # asked for by the library on its own account
            self.refuse(404)
        elif path.startswith("/content/"):
            name, fault = self.server.links[path]
            self.record(name, "content")
            self.send_file(name, fault)
        elif path.startswith(data):
            self.record(path, "hub")
            what, _, revision = path.removeprefix(data).lstrip("/").partition("/")
            if self.may_pass(revision or "main"):
                self.send_tree() if what == "tree" else self.send_about()
        elif path.startswith(files):
            _, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            self.record(name, "hub")
            if self.may_pass(revision, gate=True):
                self.resolve(name)
        else:
            self.record(path, "hub")
            self.refuse(404 if self.headers["Authorization"] else 401, "RepoNotFound")

    def record(self, path: str, host: str) -> None:
        token, range_ = self.headers["Authorization"] or "", self.headers["Range"] or ""
        self.server.log.append(Request(self.command, path, range_, token, host))

    def may_pass(self, revision: str, gate: bool = False) -> bool:
        """Return whether the request is allowed; answer it where it is not."""
        token = self.headers["Authorization"]
        if token and token != f"Bearer {TOKEN}":
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif self.server.private and not token:
            self.refuse(401, "RepoNotFound")
        elif self.server.gated and gate and not token:
            self.refuse(401, "GatedRepo")
        elif revision not in ("main", self.server.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_about(self) -> None:
        siblings = [{"rfilename": path} for path in self.server.files]
        about = {
            "id": self.server.model or REPO,
            "sha": self.server.commit,
            "private": self.server.private,
            "siblings": siblings,
        }
        self.answer(200, json.dumps(about).encode(), {})

    def send_tree(self) -> None:
        """One page of the list of files, and where the next one is."""
        query = urlsplit(self.path).query
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "images", "oid": "0" * 40}]
        entries += [self.entry(path) for path in self.server.files]
        address = f"{self.server.url}{urlsplit(self.path).path}?cursor={start + PAGE}"
        more = {"Link": f'<{address}>; rel="next"'} if start + PAGE < len(entries) else {}
        self.answer(200, json.dumps(entries[start : start + PAGE]).encode(), more)

    def entry(self, path: str) -> dict[str, Any]:
        content = self.server.files[path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = hashlib.sha1(content).hexdigest()
        if path.endswith(LFS):
            hash_ = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": hash_, "size": len(content), "pointerSize": 134}
        return entry

    def resolve(self, name: str) -> None:
        if name not in self.server.files:
            return self.refuse(404, "EntryNotFound")
        fault = next(self.server.faults.get(name, iter(())), Fault()) if self.is_get() else Fault()
        if fault.status:
            return self.answer(fault.status, b"", fault.headers)
        content = self.server.files[name]
        if not name.endswith(LFS):
            return self.send_file(name, fault)
        link = f"/content/{next(self.server.serial)}"
        self.server.links[link] = name, fault
        headers = {
            "Location": f"http://localhost:{self.server.server_port}{link}",
            "X-Repo-Commit": self.server.commit,
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        self.answer(302, b"", headers)

    def is_get(self) -> bool:
        return self.command == "GET"

    def send_file(self, name: str, fault: Fault) -> None:
        content = self.server.files[name]
        first, end = 0, len(content)
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": self.server.commit,
        }
        ranged = bool(self.headers["Range"]) and not fault.ignores_range
        if ranged:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            if fault.wrong_range:
                first, last = first + 1, last + 1
            end = min(last + 1, len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        body = content[first : end - fault.missing_bytes]
        if fault.corrupted:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault.drop_after is None and not fault.delay:
            return self.answer(206 if ranged else 200, body, headers)
        self.send_response(206 if ranged else 200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.trickle(body[: fault.drop_after], fault.delay)
        self.close_connection = True

    def trickle(self, body: bytes, delay: float) -> None:
        """Send a body slowly. Its connection counts until the last block, not while that is sent.

        The client may start the next request as soon as it has the last block.
        """
        server = self.server
        *blocks, last = [body[start : start + 4096] for start in range(0, len(body), 4096)] or [b""]
        with server.lock:
            server.open_connections += 1
            server.peak_connections = max(server.peak_connections, server.open_connections)
        try:
            for block in blocks:
                time.sleep(delay)
                self.wfile.write(block)
                self.wfile.flush()
            time.sleep(delay)
        finally:
            with server.lock:
                server.open_connections -= 1
        self.wfile.write(last)
        self.wfile.flush()
