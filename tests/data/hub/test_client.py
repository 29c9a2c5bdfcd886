"""Downloads are complete or absent, whatever the network does. Errors say what to do."""

import hashlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from support.hub_server import (
    COMMIT,
    REPO,
    TOKEN,
    Fault,
    HubServer,
    environment,
    serve_hub,
    use_hub,
)
from tagger.core.errors import TaggerError
from tagger.data.hub import client, download
from tagger.data.hub.download import RemoteFile

TAR = bytes(range(256)) * 400  # 102,400 bytes
FILES = {
    "README.md": b"# tiny\n",
    "images/0000.tar": TAR,
    "images/0000.json": b"{}",
    "images/0001.tar": TAR[::-1],
}
CONTENT = TAR[1024:6024]
MEMBER = RemoteFile(
    "images/0000/7.webp", 5000, hashlib.sha256(CONTENT).hexdigest(), "images/0000.tar", 1024
)
WHOLE = RemoteFile("images/0000.tar", len(TAR), hashlib.sha256(TAR).hexdigest())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    with serve_hub(FILES) as server, use_hub(server.url, tmp_path / "home", monkeypatch):
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def get(folder: Path, *files: RemoteFile, connections: int = 2) -> dict[str, str]:
    return download.download_files(REPO, files, folder, COMMIT, connections)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_huggingface_hub_can_download_from_the_test_server(server: HubServer, folder: Path) -> None:
    for path, content in FILES.items():
        got = huggingface_hub.hf_hub_download(REPO, path, repo_type="dataset", local_dir=folder)
        assert Path(got).read_bytes() == content


def test_listing_has_every_file_with_size_and_hash(server: HubServer) -> None:
    commit, files = client.list_files(REPO)
    assert commit == COMMIT
    sizes = {path: file.size for path, file in files.items()}
    assert sizes == {path: len(content) for path, content in FILES.items()}
    assert files["images/0000.tar"].sha256 == WHOLE.sha256
    assert files["README.md"].sha256 is None


def test_files_and_members_are_downloaded_byte_for_byte(server: HubServer, folder: Path) -> None:
    assert get(folder, WHOLE, MEMBER, RemoteFile("README.md", 7)) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR
    assert (folder / MEMBER.path).read_bytes() == CONTENT
    assert (folder / "README.md").read_bytes() == FILES["README.md"]
    assert files_in(folder) == {WHOLE.path, MEMBER.path, "README.md"}


def test_member_downloads_request_only_their_bytes(server: HubServer, folder: Path) -> None:
    get(folder, MEMBER)
    assert server.requested_ranges("images/0000.tar") == ["bytes=1024-6023"]


def test_complete_files_are_not_downloaded_again(server: HubServer, folder: Path) -> None:
    get(folder, WHOLE, MEMBER)
    requests = len(server.log)
    assert get(folder, WHOLE, MEMBER) == {}
    assert len(server.log) == requests


def test_files_of_another_size_are_replaced(server: HubServer, folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / WHOLE.path).write_bytes(b"an older one")
    assert get(folder, WHOLE) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR


def test_empty_files_need_no_request(server: HubServer, folder: Path) -> None:
    assert get(folder, RemoteFile("empty", 0)) == {}
    assert (folder / "empty").read_bytes() == b""
    assert not server.log


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_are_limited(server: HubServer, folder: Path, connections: int) -> None:
    server.inject_faults("images/0000.tar", repeat(Fault(delay=0.01)))
    files = [RemoteFile(f"{i}", 9000, tar="images/0000.tar", offset=i) for i in range(9)]
    assert get(folder, *files, connections=connections) == {}
    assert server.peak_connections == connections


@pytest.mark.parametrize("file", [WHOLE, MEMBER], ids=["file", "member"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop_after=1000),
        Fault(drop_after=0),
        Fault(missing_bytes=300),
        Fault(status=500),
        Fault(status=503),
        Fault(status=403),  # a link of the content server that has expired
        Fault(status=429),
        Fault(corrupted=True),
    ],
    ids=str,
)
def test_transient_faults_are_retried(
    server: HubServer, folder: Path, file: RemoteFile, fault: Fault
) -> None:
    server.inject_faults("images/0000.tar", [fault])
    assert get(folder, file) == {}
    assert (folder / file.path).read_bytes() == (TAR if file is WHOLE else CONTENT)
    assert len(server.requested_ranges("images/0000.tar")) == 2
    assert files_in(folder) == {file.path}


def test_interrupted_downloads_continue_where_they_stopped(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(drop_after=40_000), Fault(drop_after=20_000)])
    assert get(folder, WHOLE) == {}
    assert server.requested_ranges("images/0000.tar") == [
        "bytes=0-102399",
        "bytes=40000-102399",
        "bytes=60000-102399",
    ]


def test_downloads_that_are_interrupted_often_complete(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(drop_after=4096)] * 20)
    assert get(folder, WHOLE) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR


@pytest.mark.parametrize(
    ("fault", "reason", "attempts"),
    [
        (Fault(status=500), "the server answers 500 Internal Server Error", 6),
        (Fault(status=429), "the server answers 429 Too Many Requests", 6),
        (Fault(drop_after=0), "peer closed connection", 6),
        (Fault(missing_bytes=10**6), "the answer ended 5,000 bytes early", 6),
        (Fault(corrupted=True), "its SHA-256 is not the one that the data set names", 2),
    ],
    ids=lambda value: str(value),
)
def test_failed_files_have_a_reason_and_do_not_stop_others(
    server: HubServer, folder: Path, fault: Fault, reason: str, attempts: int
) -> None:
    server.inject_faults("images/0000.tar", repeat(fault))
    other = RemoteFile("images/0001.tar", len(TAR), hashlib.sha256(TAR[::-1]).hexdigest())
    failed = get(folder, MEMBER, other, connections=1)
    assert failed.keys() == {MEMBER.path}
    assert failed[MEMBER.path].startswith(reason)
    assert "\n" not in failed[MEMBER.path]
    assert len(server.requested_ranges("images/0000.tar")) == attempts
    assert {MEMBER.path, other.path} & files_in(folder) == {other.path}
    assert (folder / other.path).read_bytes() == TAR[::-1]


def test_deleted_files_have_a_reason(server: HubServer, folder: Path) -> None:
    gone = RemoteFile("images/0009.tar", 10)
    assert get(folder, gone) == {gone.path: "the server answers 404 Not Found"}


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}], ids=str
)
def test_server_sets_the_wait_before_a_retry(
    server: HubServer, folder: Path, headers: dict[str, str]
) -> None:
    server.inject_faults("images/0000.tar", [Fault(status=429, headers=headers)])
    started = time.monotonic()
    assert get(folder, MEMBER) == {}
    assert 1 <= time.monotonic() - started < 3


def test_waits_double_until_a_byte_arrives(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        download, "Event", lambda: SimpleNamespace(is_set=bool, set=bool, wait=waits.append)
    )
    faults = [Fault(status=500)] * 3 + [Fault(drop_after=4096)] + [Fault(status=500)] * 2
    server.inject_faults("images/0000.tar", faults)
    assert get(folder, WHOLE) == {}
    assert [round(wait * 1000) for wait in waits] == [1, 2, 4, 1, 2, 4]


def test_servers_without_ranges_give_files_but_no_members(server: HubServer, folder: Path) -> None:
    server.inject_faults(
        "images/0000.tar", [Fault(drop_after=50_000), *[Fault(ignores_range=True)] * 2]
    )
    assert get(folder, WHOLE) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR
    with pytest.raises(TaggerError, match=r"no part of images/0000\.tar\. Download whole shards"):
        get(folder, MEMBER)
    assert files_in(folder) <= {WHOLE.path, "images/0000/.7.webp.partial"}


def test_wrong_ranges_are_not_accepted_without_a_hash(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(wrong_range=True)])
    assert get(folder, MEMBER._replace(sha256=None)) == {}
    assert (folder / MEMBER.path).read_bytes() == CONTENT


def test_longer_answers_are_cut(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(ignores_range=True)])
    assert get(folder, RemoteFile("images/0000.tar", 1000)) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR[:1000]


def test_silent_servers_are_asked_again(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.inject_faults("images/0000.tar", [Fault(delay=1)])
    started = time.monotonic()
    assert get(folder, MEMBER) == {}
    assert time.monotonic() - started < 1


def test_partial_files_of_another_version_are_replaced(server: HubServer, folder: Path) -> None:
    for file, rest in (
        (WHOLE, b"?" * 5000),
        (MEMBER, b"?" * 9000),
        (RemoteFile("README.md", 7), b"?"),
    ):
        partial = (folder / file.path).with_name(f".{Path(file.path).name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(rest)
        assert get(folder, file) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR
    assert (folder / MEMBER.path).read_bytes() == CONTENT
    assert (folder / "README.md").read_bytes() == FILES["README.md"]


DOWNLOAD = """
import sys
from pathlib import Path
from tagger.core import errors
from tagger.data.hub import client, download
repo, folder, path = sys.argv[1:]
with errors.exit_on_error():
    commit, files = client.list_files(repo)
    print(download.download_files(repo, [download.RemoteFile(*files[path])], Path(folder), commit))
"""


@pytest.fixture
def program(
    server: HubServer, folder: Path, root: Path, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that downloads images/0000.tar, with more in its environment."""

    def start(stdout: int = subprocess.PIPE, **more: str) -> subprocess.Popen[str]:
        settings = {"PYTHONPATH": str(root / "stages"), **more}
        words = [sys.executable, "-W", "error", "-c", DOWNLOAD, REPO, str(folder), WHOLE.path]
        env = {**environment(server.url, tmp_path / "home"), **settings}
        return subprocess.Popen(words, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)

    return start


def test_killed_downloads_continue_where_they_stopped(
    server: HubServer, folder: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    server.inject_faults("images/0000.tar", [Fault(delay=0.05)])
    unfinished = folder / "images/.0000.tar.partial"
    with program() as process:
        while not (unfinished.exists() and unfinished.stat().st_size > 20_000):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    size = unfinished.stat().st_size
    assert size < len(TAR)
    assert not (folder / WHOLE.path).exists()
    assert get(folder, WHOLE) == {}
    assert server.requested_ranges("images/0000.tar") == ["bytes=0-102399", f"bytes={size}-102399"]
    assert (folder / WHOLE.path).read_bytes() == TAR
    assert files_in(folder) == {WHOLE.path}


def test_ctrl_c_ends_a_download_at_once(
    server: HubServer, folder: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    server.inject_faults("images/0000.tar", [Fault(delay=0.3)])  # 25 times
    with program() as process:
        while len(server.log) < 4:  # with the request for the file
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert time.monotonic() - started < 3


def test_terminals_show_bytes_rate_and_time_left(
    server: HubServer, folder: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    server.inject_faults("images/0000.tar", [Fault(delay=0.05)])
    ours, theirs = pty.openpty()
    with program(stdout=theirs, TERM="xterm", COLUMNS="120") as process:
        os.close(theirs)
        shown = read_terminal(ours)
    assert process.returncode == 0
    assert re.search(r"Downloading .*\d+% .*0:00:0\d.* [\d.]+/102\.4 kB.* [\d.]+ kB/s", shown)


def read_terminal(terminal: int) -> str:
    """Return what a process writes to a pseudo terminal until it ends, without its colours."""
    parts = []
    with open(terminal, "rb", buffering=0) as file, suppress(OSError):  # Linux's end of file
        while part := file.read(4096):
            parts.append(part)
    return re.sub(r"\x1b\[[\d;?]*\w", "", b"".join(parts).decode())


def test_environment_sets_server_and_token(
    server: HubServer, folder: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    server.gated = server.private = True
    with program(HF_TOKEN=TOKEN) as process:
        out, err = process.communicate(timeout=30)
    assert (out.strip(), err) == ("{}", "")
    assert (folder / WHOLE.path).read_bytes() == TAR
    tokens = {request.host: request.token for request in server.log}
    assert tokens == {"hub": f"Bearer {TOKEN}", "content": ""}


def test_offline_mode_is_an_error_without_a_request(
    server: HubServer, program: Callable[..., subprocess.Popen[str]]
) -> None:
    with program(HF_HUB_OFFLINE="1") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err == (
        f"error: HF_HUB_OFFLINE is set, and not all of {REPO} is here. Unset it to download.\n"
    )
    assert not server.log


def test_no_connection_is_an_error_at_once(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        TaggerError, match=r"^No connection to http://127\.0\.0\.1:9: .*HF_ENDPOINT"
    ):
        client.list_files(REPO)
    assert time.monotonic() - started < 2


def test_servers_that_never_answer_are_an_error(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with pytest.raises(TaggerError, match=f"^No connection to {url}: timed out"):
            client.list_files(REPO)


def test_lost_connections_end_a_download(server: HubServer, folder: Path) -> None:
    server.shutdown()
    server.socket.close()
    files = [RemoteFile(f"{i}", 10) for i in range(1000)]
    with pytest.raises(TaggerError, match=r"^No connection to"):
        get(folder, *files)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_unknown_data_sets_are_an_error(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(TaggerError, match=r"has no data set deepghs/nothing, or .* set HF_TOKEN"):
        client.list_files("deepghs/nothing")


def test_private_data_sets_are_an_error(server: HubServer) -> None:
    server.private = True
    with pytest.raises(TaggerError, match=f"has no data set {REPO}, or it is private"):
        client.list_files(REPO)


def test_gated_data_sets_are_an_error(server: HubServer, folder: Path) -> None:
    server.gated = True
    assert client.list_files(REPO).files  # the names are free to read
    with pytest.raises(TaggerError) as error:
        get(folder, WHOLE, MEMBER)
    assert str(error.value) == (
        f"{REPO} is gated: accept its terms on {server.url}/datasets/{REPO}, then set HF_TOKEN to "
        "your token."
    )


def test_unknown_revisions_are_an_error(server: HubServer, folder: Path) -> None:
    with pytest.raises(TaggerError, match=rf"^{REPO} has no revision 'v2'\. Name a branch"):
        client.list_files(REPO, "v2")
    with pytest.raises(TaggerError, match="has no revision 'v2'"):
        download.download_files(REPO, [WHOLE], folder, "v2")


def test_wrong_tokens_are_an_error(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for attempt in (lambda: client.list_files(REPO), lambda: get(folder, WHOLE)):
        with pytest.raises(TaggerError, match=r"refuses the token\. Set HF_TOKEN") as error:
            attempt()
        assert "hf_wrong" not in str(error.value)


def test_invalid_repository_names_are_an_error(server: HubServer) -> None:
    with pytest.raises(TaggerError, match="'no name' is no name of a data set"):
        client.list_files("no name")
    assert not server.log


def test_lack_of_disk_space_is_an_error_before_the_first_byte(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(TaggerError, match=r"2\.0 GB free, and 3\.0 GB are needed\. Make"):
        get(folder, RemoteFile("images/0000.tar", 3_000_000_000))
    assert not server.log


def test_partial_files_count_for_the_needed_disk_space(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.inject_faults("images/0000.tar", [Fault(drop_after=60_000), *[Fault(status=500)] * 6])
    assert get(folder, WHOLE).keys() == {WHOLE.path}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    assert get(folder, WHOLE) == {}


def test_unwritable_folders_are_an_error(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(TaggerError, match="cannot be written: Not a directory"):
        get(tmp_path / "data", WHOLE)
