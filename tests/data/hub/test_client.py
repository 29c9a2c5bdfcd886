"""Bytes of a data set arrive whole or not at all, whatever the network does; mistakes are told."""

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
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)
    with serve_hub(FILES) as server, use_hub(server.url, tmp_path / "home", monkeypatch):
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def get(folder: Path, *pieces: RemoteFile, connections: int = 2) -> dict[str, str]:
    return download.download_files(REPO, pieces, folder, COMMIT, connections)


def below(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}


# The stand-in


def test_the_library_itself_can_download_from_the_test_server(
    server: HubServer, folder: Path
) -> None:
    for path, content in FILES.items():
        got = huggingface_hub.hf_hub_download(REPO, path, repo_type="dataset", local_dir=folder)
        assert Path(got).read_bytes() == content


# What there is


def test_a_listing_has_every_file_with_its_size_and_hash(server: HubServer) -> None:
    commit, files = client.list_files(REPO)
    assert commit == COMMIT
    sizes = {path: file.size for path, file in files.items()}
    assert sizes == {path: len(content) for path, content in FILES.items()}
    assert files["images/0000.tar"].sha256 == WHOLE.sha256
    assert files["README.md"].sha256 is None


# Getting it


def test_files_and_members_arrive_byte_for_byte(server: HubServer, folder: Path) -> None:
    assert get(folder, WHOLE, MEMBER, RemoteFile("README.md", 7)) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR
    assert (folder / MEMBER.path).read_bytes() == CONTENT
    assert (folder / "README.md").read_bytes() == FILES["README.md"]
    assert below(folder) == {WHOLE.path, MEMBER.path, "README.md"}


def test_of_a_tar_only_the_wanted_bytes_are_asked_for(server: HubServer, folder: Path) -> None:
    get(folder, MEMBER)
    assert server.requested_ranges("images/0000.tar") == ["bytes=1024-6023"]


def test_what_is_there_is_not_fetched_again(server: HubServer, folder: Path) -> None:
    get(folder, WHOLE, MEMBER)
    asked = len(server.log)
    assert get(folder, WHOLE, MEMBER) == {}
    assert len(server.log) == asked


def test_a_file_of_another_size_is_replaced(server: HubServer, folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / WHOLE.path).write_bytes(b"an older one")
    assert get(folder, WHOLE) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR


def test_an_empty_file_needs_no_request(server: HubServer, folder: Path) -> None:
    assert get(folder, RemoteFile("empty", 0)) == {}
    assert (folder / "empty").read_bytes() == b""
    assert not server.log


@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_connections_are_used_than_allowed(
    server: HubServer, folder: Path, connections: int
) -> None:
    server.inject_faults("images/0000.tar", repeat(Fault(delay=0.01)))
    pieces = [RemoteFile(f"{i}", 9000, tar="images/0000.tar", offset=i) for i in range(9)]
    assert get(folder, *pieces, connections=connections) == {}
    assert server.peak_connections == connections


# What goes wrong on the way


@pytest.mark.parametrize("piece", [WHOLE, MEMBER], ids=["file", "member"])
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
def test_a_fault_that_passes_costs_nothing_but_time(
    server: HubServer, folder: Path, piece: RemoteFile, fault: Fault
) -> None:
    server.inject_faults("images/0000.tar", [fault])
    assert get(folder, piece) == {}
    assert (folder / piece.path).read_bytes() == (TAR if piece is WHOLE else CONTENT)
    assert len(server.requested_ranges("images/0000.tar")) == 2
    assert below(folder) == {piece.path}


def test_a_broken_download_goes_on_where_it_stopped(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(drop_after=40_000), Fault(drop_after=20_000)])
    assert get(folder, WHOLE) == {}
    assert server.requested_ranges("images/0000.tar") == [
        "bytes=0-102399",
        "bytes=40000-102399",
        "bytes=60000-102399",
    ]


def test_a_line_that_breaks_time_and_again_brings_all_in_the_end(
    server: HubServer, folder: Path
) -> None:
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
def test_what_cannot_be_had_is_named_with_its_reason_and_stops_nothing_else(
    server: HubServer, folder: Path, fault: Fault, reason: str, attempts: int
) -> None:
    server.inject_faults("images/0000.tar", repeat(fault))
    other = RemoteFile("images/0001.tar", len(TAR), hashlib.sha256(TAR[::-1]).hexdigest())
    failed = get(folder, MEMBER, other, connections=1)
    assert failed.keys() == {MEMBER.path}
    assert failed[MEMBER.path].startswith(reason)
    assert "\n" not in failed[MEMBER.path]
    assert len(server.requested_ranges("images/0000.tar")) == attempts
    assert {MEMBER.path, other.path} & below(folder) == {other.path}
    assert (folder / other.path).read_bytes() == TAR[::-1]


def test_a_file_that_was_deleted_meanwhile_is_named(server: HubServer, folder: Path) -> None:
    gone = RemoteFile("images/0009.tar", 10)
    assert get(folder, gone) == {gone.path: "the server answers 404 Not Found"}


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}], ids=str
)
def test_the_server_says_how_long_to_wait(
    server: HubServer, folder: Path, headers: dict[str, str]
) -> None:
    server.inject_faults("images/0000.tar", [Fault(status=429, headers=headers)])
    started = time.monotonic()
    assert get(folder, MEMBER) == {}
    assert 1 <= time.monotonic() - started < 3


def test_waits_grow_until_something_comes(
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


def test_a_server_without_ranges_gives_files_but_no_members(
    server: HubServer, folder: Path
) -> None:
    server.inject_faults(
        "images/0000.tar", [Fault(drop_after=50_000), *[Fault(ignores_range=True)] * 2]
    )
    assert get(folder, WHOLE) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR
    with pytest.raises(TaggerError, match=r"no part of images/0000\.tar\. Download whole shards"):
        get(folder, MEMBER)
    assert below(folder) <= {WHOLE.path, "images/0000/.7.webp.partial"}


def test_a_piece_without_a_hash_is_of_the_bytes_asked_for(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(wrong_range=True)])
    assert get(folder, MEMBER._replace(sha256=None)) == {}
    assert (folder / MEMBER.path).read_bytes() == CONTENT


def test_an_answer_longer_than_asked_for_is_cut(server: HubServer, folder: Path) -> None:
    server.inject_faults("images/0000.tar", [Fault(ignores_range=True)])
    assert get(folder, RemoteFile("images/0000.tar", 1000)) == {}
    assert (folder / WHOLE.path).read_bytes() == TAR[:1000]


def test_a_server_that_falls_silent_is_asked_again(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.inject_faults("images/0000.tar", [Fault(delay=1)])
    started = time.monotonic()
    assert get(folder, MEMBER) == {}
    assert time.monotonic() - started < 1


def test_what_is_left_of_another_version_does_no_harm(server: HubServer, folder: Path) -> None:
    for piece, rest in (
        (WHOLE, b"?" * 5000),
        (MEMBER, b"?" * 9000),
        (RemoteFile("README.md", 7), b"?"),
    ):
        left = (folder / piece.path).with_name(f".{Path(piece.path).name}.partial")
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(rest)
        assert get(folder, piece) == {}
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


def test_a_killed_download_goes_on_where_it_stopped(
    server: HubServer, folder: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    server.inject_faults("images/0000.tar", [Fault(delay=0.05)])
    unfinished = folder / "images/.0000.tar.partial"
    with program() as process:
        while not (unfinished.exists() and unfinished.stat().st_size > 20_000):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    had = unfinished.stat().st_size
    assert had < len(TAR)
    assert not (folder / WHOLE.path).exists()
    assert get(folder, WHOLE) == {}
    assert server.requested_ranges("images/0000.tar") == ["bytes=0-102399", f"bytes={had}-102399"]
    assert (folder / WHOLE.path).read_bytes() == TAR
    assert below(folder) == {WHOLE.path}


def test_a_person_who_has_enough_need_not_wait(
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


def test_a_terminal_shows_bytes_rate_and_time_left(
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


# Who may


def test_the_environment_names_the_server_and_the_token(
    server: HubServer, folder: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    server.gated = server.private = True
    with program(HF_TOKEN=TOKEN) as process:
        out, err = process.communicate(timeout=30)
    assert (out.strip(), err) == ("{}", "")
    assert (folder / WHOLE.path).read_bytes() == TAR
    tokens = {one.host: one.token for one in server.log}
    assert tokens == {"hub": f"Bearer {TOKEN}", "content": ""}


def test_offline_is_told_in_one_line_and_asks_nothing(
    server: HubServer, program: Callable[..., subprocess.Popen[str]]
) -> None:
    with program(HF_HUB_OFFLINE="1") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err == (
        f"error: HF_HUB_OFFLINE is set, and not all of {REPO} is here. Unset it to download.\n"
    )
    assert not server.log


def test_no_connection_is_told_at_once(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        TaggerError, match=r"^No connection to http://127\.0\.0\.1:9: .*HF_ENDPOINT"
    ):
        client.list_files(REPO)
    assert time.monotonic() - started < 2


def test_a_server_that_never_answers_is_told(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with pytest.raises(TaggerError, match=f"^No connection to {url}: timed out"):
            client.list_files(REPO)


def test_a_connection_lost_for_good_ends_the_download(server: HubServer, folder: Path) -> None:
    server.shutdown()
    server.socket.close()
    pieces = [RemoteFile(f"{i}", 10) for i in range(1000)]
    with pytest.raises(TaggerError, match=r"^No connection to"):
        get(folder, *pieces)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_an_unknown_data_set_is_told(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(TaggerError, match=r"has no data set deepghs/nothing, or .* set HF_TOKEN"):
        client.list_files("deepghs/nothing")


def test_a_private_data_set_is_told(server: HubServer) -> None:
    server.private = True
    with pytest.raises(TaggerError, match=f"has no data set {REPO}, or it is private"):
        client.list_files(REPO)


def test_a_gated_data_set_is_told(server: HubServer, folder: Path) -> None:
    server.gated = True
    assert client.list_files(REPO).files  # the names are free to read
    with pytest.raises(TaggerError) as told:
        get(folder, WHOLE, MEMBER)
    assert str(told.value) == (
        f"{REPO} is gated: accept its terms on {server.url}/datasets/{REPO}, then set HF_TOKEN to "
        "your token."
    )


def test_an_unknown_revision_is_told(server: HubServer, folder: Path) -> None:
    with pytest.raises(TaggerError, match=rf"^{REPO} has no revision 'v2'\. Name a branch"):
        client.list_files(REPO, "v2")
    with pytest.raises(TaggerError, match="has no revision 'v2'"):
        download.download_files(REPO, [WHOLE], folder, "v2")


def test_a_wrong_token_is_told(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for attempt in (lambda: client.list_files(REPO), lambda: get(folder, WHOLE)):
        with pytest.raises(TaggerError, match=r"refuses the token\. Set HF_TOKEN") as told:
            attempt()
        assert "hf_wrong" not in str(told.value)


def test_a_word_that_is_no_name_is_told(server: HubServer) -> None:
    with pytest.raises(TaggerError, match="'no name' is no name of a data set"):
        client.list_files("no name")
    assert not server.log


# Room


def test_a_disk_too_small_is_told_before_the_first_byte(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(TaggerError, match=r"2\.0 GB free, and 3\.0 GB are needed\. Make"):
        get(folder, RemoteFile("images/0000.tar", 3_000_000_000))
    assert not server.log


def test_what_is_there_already_needs_no_room(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.inject_faults("images/0000.tar", [Fault(drop_after=60_000), *[Fault(status=500)] * 6])
    assert get(folder, WHOLE).keys() == {WHOLE.path}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    assert get(folder, WHOLE) == {}


def test_a_folder_that_cannot_be_written_is_told(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(TaggerError, match="cannot be written: Not a directory"):
        get(tmp_path / "data", WHOLE)
