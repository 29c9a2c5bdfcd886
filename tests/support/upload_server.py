"""A hub that takes uploads of a model, in the protocol of huggingface_hub 2.4.

What was uploaded can be downloaded again, see `hub_server`.
"""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml

from support.hub_server import LFS, TOKEN, Handler, HubServer, run_server

OWNER = "someone"
PLAIN_CHUNK = 0  # of a xorb, one that is not compressed


class Commit(NamedTuple):
    message: str
    files: frozenset[str]  # those that it changed


class UploadServer(HubServer):
    """Keeps what it gets. Steps of the protocol fail as a test orders, see `order`."""

    def __init__(self) -> None:
        super().__init__({}, "")
        self.RequestHandlerClass = _Handler
        self.xet = False
        self.readonly = False  # the token may read only
        self.commits: list[Commit] = []
        self.objects: dict[str, bytes] = {}  # of Git LFS or Xet, by their SHA-256
        self.received: list[str] = []  # objects in the order in which they came
        self.visibility: str | None = None  # as the request to make the repository had it

    def add(self, files: dict[str, bytes], message: str) -> str:
        """Return the new commit."""
        self.files |= files
        self.commits.append(Commit(message, frozenset(files)))
        self.commit = hashlib.sha1(f"{self.commits}".encode()).hexdigest()
        return self.commit

    def store_object(self, content: bytes) -> str:
        """Return the SHA-256 of an object."""
        hash_ = hashlib.sha256(content).hexdigest()
        self.objects[hash_] = content
        self.received.append(hash_)
        return hash_


@contextmanager
def serve_uploads() -> Iterator[UploadServer]:
    with UploadServer() as server, run_server(server):
        yield server


class _Handler(Handler):
    server: UploadServer

    def do_GET(self) -> None:
        if "/xet-write-token/" in self.path:
            self.record(self.path, "hub")
            if self.may_write("xet"):
                self.send_xet_token()
        elif self.path.startswith("/cas/"):
            self.refuse(404)  # no chunk is known
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        self.record(self.path, "content")
        content = self.body()  # of a refused request, too: else it is read as the next one
        if not self.fails("put"):
            digest = self.server.store_object(content)
            self.answer(200 if self.path.endswith(digest) else 400, b"", {})

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        if path.startswith(("/cas/", "/v1/telemetry")):
            return self.take_xet(path, body)
        self.record(path, "hub")
        model = f"/api/models/{self.server.model}/"
        steps = {
            "/api/repos/create": self.create,
            "/api/validate-yaml": self.validate,
            f"{model}preupload/main": self.preupload,
            f"/{self.server.model}.git/info/lfs/objects/batch": self.batch,
            f"{model}commit/main": self.take_commit,
            "/verify": self.verify,
        }
        if step := steps.get(path):
            if self.may_write(step.__name__):
                step(body)
        else:
            self.refuse(404, "RepoNotFound")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def may_write(self, step: str) -> bool:
        """Return whether the request is allowed and is to succeed; answer it where it is not."""
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif self.server.readonly:
            self.refuse(403, message="You must use a write token to upload to a repository.")
        elif not self.fails(step):
            return True
        return False

    def fails(self, step: str) -> bool:
        fault = next(self.server.faults.get(step, iter(())), None)
        if fault:
            self.refuse(fault.status, message="This is a test.")
        return fault is not None

    def reply(self, content: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request['organization'] or OWNER}/{request['name']}"
        there = self.server.model == name
        if not there:
            self.server.model = name
            self.server.visibility = request.get("visibility")
            self.server.private = self.server.visibility == "private"
            self.server.add({".gitattributes": b""}, "initial commit")
        self.reply({"url": f"{self.server.url}/{name}"}, 409 if there else 200)

    def validate(self, body: bytes) -> None:
        _, _, rest = json.loads(body)["content"].partition("---\n")
        head, end, _ = rest.partition("---\n")
        warnings = [] if end else [{"message": "empty or missing yaml metadata in repo card"}]
        try:
            yaml.safe_load(head)
        except yaml.YAMLError:
            self.reply({"errors": [{"message": "it is no YAML"}], "warnings": warnings}, 400)
        else:
            self.reply({"errors": [], "warnings": warnings})

    def preupload(self, body: bytes) -> None:
        self.reply({"files": [self.plan(file["path"]) for file in json.loads(body)["files"]]})

    def plan(self, path: str) -> dict[str, Any]:
        """How a file is to be sent, and which content of it is there."""
        large = path.endswith(LFS)
        plan = {"path": path, "shouldIgnore": False, "uploadMode": "lfs" if large else "regular"}
        if path in self.server.files:
            content = self.server.files[path]
            blob = b"blob %d\0" % len(content) + content  # as git has it
            digest = hashlib.sha256(content) if large else hashlib.sha1(blob)
            plan["oid"] = digest.hexdigest()
        return plan

    def batch(self, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.objects:
                put = f"http://localhost:{self.server.server_port}/content/{item['oid']}"
                verify = {"href": f"{self.server.url}/verify"}
                item["actions"] = {"upload": {"href": put}, "verify": verify}
        self.reply({"transfer": "basic", "objects": objects})

    def verify(self, body: bytes) -> None:
        request = json.loads(body)
        content = self.server.objects.get(request["oid"], b"")
        self.reply({}, 200 if len(content) == request["size"] else 400)

    def take_commit(self, body: bytes) -> None:
        files: dict[str, bytes] = {}
        message = ""
        for line in body.splitlines():
            match json.loads(line):
                case {"key": "header", "value": value}:
                    message = value["summary"]
                case {"key": "file", "value": value}:
                    files[value["path"]] = base64.b64decode(value["content"])
                case {"key": "lfsFile", "value": value}:
                    files[value["path"]] = self.server.objects[value["oid"]]
                case other:
                    raise ValueError(other)
        commit = self.server.add(files, message)
        address = f"{self.server.url}/{self.server.model}/commit/{commit}"
        self.reply({"success": True, "commitOid": commit, "commitUrl": address})

    def send_xet_token(self) -> None:
        if not self.server.xet:
            return self.refuse(404)
        headers = {
            "X-Xet-Cas-Url": f"{self.server.url}/cas",
            "X-Xet-Access-Token": "of Xet",
            "X-Xet-Token-Expiration": f"{int(time.time()) + 3600}",
        }
        token = {"casUrl": headers["X-Xet-Cas-Url"], "accessToken": "of Xet", "exp": 2**40}
        self.answer(200, json.dumps(token).encode(), headers)

    def take_xet(self, path: str, body: bytes) -> None:
        """Keep each chunk as if it were a file: one of less than 8 KiB is a single chunk."""
        self.record(path, "xet")
        if "/v1/xorbs/" in path and not self.fails("xorb"):
            while body:
                size = int.from_bytes(body[1:4], "little")
                assert body[4] == PLAIN_CHUNK
                self.server.store_object(body[8 : 8 + size])
                body = body[8 + size :]
            self.reply({"was_inserted": True})
        elif path == "/cas/v1/shards":
            self.reply({"result": 1})
        elif "/v1/xorbs/" not in path:
            self.refuse(404)  # what is newer, which the library then does without
