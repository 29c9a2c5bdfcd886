"""A folder arrives at the hub whole, in one commit, or not at all; mistakes are told."""

import hashlib
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from support.hub_server import TOKEN, Fault, environment, use_hub
from support.upload_server import OWNER, Commit, UploadServer, serve_uploads
from tagger.core.errors import TaggerError
from tagger.export import publish

REPO = f"{OWNER}/tagger"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# A tagger\n",
    "thresholds.csv": "name,threshold\n猫,0.5\n".encode(),
    "empty.txt": b"",
    "model.onnx": random.Random(0).randbytes(5000),
    "kohya/model.onnx": random.Random(1).randbytes(7000),
    "wd14/selected_tags.csv": b"tag_id,name\n1,cat\n",
}
LARGE = {path: content for path, content in FILES.items() if path.endswith(".onnx")}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadServer]:
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    with serve_uploads() as server, use_hub(server.url, tmp_path / "home", monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def upload(folder: Path, repo: str = REPO, private: bool = False) -> str:
    return publish.upload(folder, repo, private=private, message="A first tagger")


def told(folder: Path, repo: str = REPO, private: bool = False) -> str:
    """Return the line that a failing upload ends with."""
    with pytest.raises(TaggerError) as error:
        upload(folder, repo, private)
    assert "\n" not in str(error.value)
    return str(error.value)


def uploaded(server: UploadServer) -> dict[str, bytes]:
    return {path: content for path, content in server.files.items() if path != ".gitattributes"}


# What arrives


def test_every_byte_arrives_in_one_commit(server: UploadServer, folder: Path) -> None:
    address = upload(folder)
    assert uploaded(server) == FILES
    assert server.commits[1:] == [Commit("A first tagger", frozenset(FILES))]
    assert address == f"{server.url}/{REPO}/commit/{server.commit}"


def test_large_files_go_by_git_lfs_where_the_server_has_nothing_else(
    server: UploadServer, folder: Path
) -> None:
    upload(folder)
    assert {server.objects[hash_] for hash_ in server.received} == set(LARGE.values())
    assert sum(one.path == "/verify" for one in server.log) == len(LARGE)
    assert constants.HF_HUB_DISABLE_XET is False


def test_the_token_goes_to_the_hub_alone(server: UploadServer, folder: Path) -> None:
    upload(folder)
    tokens = {(one.host, one.token) for one in server.log}
    assert tokens == {("hub", f"Bearer {TOKEN}"), ("content", "")}


def test_a_stored_login_will_do(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    stored = Path(constants.HF_TOKEN_PATH)
    stored.parent.mkdir()
    stored.write_text(TOKEN)
    upload(folder)
    assert uploaded(server) == FILES


@pytest.mark.parametrize(("private", "visibility"), [(True, "private"), (False, None)])
def test_a_repository_is_private_where_asked_else_as_the_hub_has_it(
    server: UploadServer, folder: Path, private: bool, visibility: str | None
) -> None:
    upload(folder, private=private)
    assert server.visibility == visibility
    assert server.private == private


def test_a_name_without_owner_is_of_the_owner_of_the_token(
    server: UploadServer, folder: Path
) -> None:
    for _ in range(2):
        assert upload(folder, "tagger").startswith(f"{server.url}/{REPO}")
    assert uploaded(server) == FILES


def test_what_lies_about_stays_at_home(
    server: UploadServer, folder: Path, write_file: Callable[[str, str], Path]
) -> None:
    stray = [".DS_Store", ".git/HEAD", ".cache/huggingface/x", "wd14/.gitignore", "Thumbs.db"]
    stray += ["model.onnx.partial", "README.md~", "wd14/.a.csv.swp", "__pycache__/a.pyc"]
    for name in stray:
        write_file(f"export/{name}", "*")
    upload(folder)
    assert uploaded(server) == FILES


def test_a_card_without_front_matter_is_taken_as_it_is(server: UploadServer, folder: Path) -> None:
    (folder / "README.md").write_bytes(b"# A tagger\n")
    upload(folder)
    assert server.files["README.md"] == b"# A tagger\n"


def test_what_was_uploaded_can_be_downloaded(
    server: UploadServer, folder: Path, tmp_path: Path
) -> None:
    upload(folder, private=True)
    got = Path(huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "got"))
    assert {path: (got / path).read_bytes() for path in FILES} == FILES


# Once more


def test_a_second_upload_changes_nothing(server: UploadServer, folder: Path) -> None:
    upload(folder)
    before, received = server.commits.copy(), server.received.copy()
    assert upload(folder) == f"{server.url}/{REPO}"
    assert (server.commits, server.received) == (before, received)


@pytest.mark.parametrize("changed", ["wd14/selected_tags.csv", "kohya/model.onnx"])
def test_a_changed_file_alone_is_sent(server: UploadServer, folder: Path, changed: str) -> None:
    upload(folder)
    server.received.clear()
    (folder / changed).write_bytes(b"another")
    upload(folder)
    assert server.commits[-1].files == {changed}
    assert len(server.received) == (changed in LARGE)
    assert uploaded(server) == {**FILES, changed: b"another"}


def test_what_the_folder_lacks_stays_in_the_repository(server: UploadServer, folder: Path) -> None:
    upload(folder)
    (folder / "model.onnx").unlink()
    upload(folder)
    assert uploaded(server) == FILES


def test_a_private_repository_stays_so_unless_told(server: UploadServer, folder: Path) -> None:
    upload(folder, private=True)
    upload(folder)
    assert server.private


# What goes wrong


def test_a_public_repository_is_not_filled_where_a_private_one_is_asked_for(
    server: UploadServer, folder: Path
) -> None:
    upload(folder)
    (folder / "README.md").write_bytes(b"# A secret\n")
    address = f"{server.url}/{REPO}"
    assert told(folder, private=True) == (
        f"{address} is public, and was to be private. Make it so on {address}/settings, or name "
        "another."
    )
    assert uploaded(server) == FILES


def test_no_token_is_told_before_any_request(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert told(folder) == (
        "There is no token to upload with. Set HF_TOKEN to one with the right to write, see "
        f"{server.url}/settings/tokens, or run `hf auth login`."
    )
    assert not server.log


@pytest.mark.parametrize("there", [False, True])
def test_a_wrong_token_is_told(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        upload(folder)
    before = server.commits.copy()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = told(folder)
    assert line.startswith(f"{server.url} refuses the token. Set HF_TOKEN to a valid one")
    assert "hf_wrong" not in line
    assert server.commits == before


@pytest.mark.parametrize("there", [False, True])
def test_a_token_without_the_right_to_write_is_told(
    server: UploadServer, folder: Path, there: bool
) -> None:
    if there:
        upload(folder)
    before = server.commits.copy()
    server.readonly = True
    (folder / "model.onnx").write_bytes(b"another")
    assert told(folder) == (
        f"{server.url} forbids it: You must use a write token to upload to a repository. Set "
        f"HF_TOKEN to a token that may write to {REPO}, see {server.url}/settings/tokens, or name "
        "another."
    )
    assert server.commits == before


@pytest.mark.parametrize("repo", ["a/b/c", "no name", "", "a--b/c", "a/b.git"])
def test_a_word_that_is_no_name_is_told(server: UploadServer, folder: Path, repo: str) -> None:
    assert told(folder, repo) == f"{repo!r} is no name of a model. It must look like owner/name."
    assert not server.log


def test_offline_is_told(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert told(folder) == f"HF_HUB_OFFLINE is set, so {folder} stays here. Unset it to upload."
    assert not server.log


def test_no_connection_is_told_at_once(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert told(folder).startswith("No connection to http://127.0.0.1:9: ")


@pytest.mark.parametrize("repo", [REPO, "tagger"])
def test_a_server_that_never_answers_is_told(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch, repo: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert told(folder, repo).startswith(f"No connection to {url}: timed out")


STEPS = ["create", "xet", "validate", "preupload", "batch", "put", "verify", "take_commit"]


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_fails_is_told_and_nothing_is_committed(
    server: UploadServer, folder: Path, step: str
) -> None:
    server.inject_faults(step, repeat(Fault(status=500)))
    assert told(folder) == (
        f"{server.url} answers 500 Internal Server Error when asked for {REPO}. Try again later."
    )
    assert uploaded(server) == {}
    server.inject_faults(step, [])
    upload(folder)
    assert uploaded(server) == FILES


@pytest.mark.parametrize("step", ["preupload", "batch", "put", "verify"])
def test_a_fault_that_passes_is_not_told(server: UploadServer, folder: Path, step: str) -> None:
    server.inject_faults(step, [Fault(status=503)])
    upload(folder)
    assert uploaded(server) == FILES


@pytest.mark.parametrize("status", [400, 409, 413])
def test_a_refusal_is_told_with_the_reason_of_the_server(
    server: UploadServer, folder: Path, status: int
) -> None:
    server.inject_faults("take_commit", [Fault(status=status)])
    assert told(folder) == f"{server.url} refuses the files of {folder}: This is a test."
    assert uploaded(server) == {}


def test_a_card_whose_front_matter_is_no_yaml_is_told(server: UploadServer, folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\na: [\n---\n")
    assert told(folder) == (
        f"{folder} cannot be uploaded: Invalid metadata in README.md. - it is no YAML. Mend it, "
        "then upload again."
    )
    assert uploaded(server) == {}


def test_a_folder_that_is_none_or_holds_nothing_is_told(
    server: UploadServer, folder: Path, tmp_path: Path
) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    (empty / ".git").mkdir(parents=True)
    (empty / ".git/HEAD").touch()
    for path in (missing, folder / "README.md"):
        assert told(path) == f"{path} is no folder. Name an export: `dvc repro` writes one."
    assert told(empty).startswith(f"{empty} holds nothing to upload.")
    assert not server.log


def test_a_file_that_cannot_be_read_is_told(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(publish, "CommitOperationAdd", refuse)  # root may read everything
    path = folder / "README.md"
    assert told(folder) == f"{path} cannot be read: Permission denied. Allow it."
    assert not server.log


# As a program


UPLOAD = """
import sys
from pathlib import Path
from tagger.core import errors
from tagger.export import publish
with errors.exit_on_error():
    print(publish.upload(Path(sys.argv[1]), sys.argv[2], private=True, message="by a program"))
"""


@pytest.fixture
def program(
    server: UploadServer, folder: Path, root: Path, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Upload in a process, whose library reads its environment anew."""

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        ours = {"PYTHONPATH": str(root / "stages"), "HF_TOKEN": TOKEN, **more}
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", UPLOAD, str(folder), REPO],
            env=environment(server.url, tmp_path / "home", **ours),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_a_program_says_no_more_than_the_address(
    server: UploadServer, folder: Path, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (folder / "README.md").write_bytes(b"# A tagger\n")  # of which the hub warns
    server.inject_faults("put", [Fault(status=503)])
    for address in (f"{server.url}/{REPO}/commit/", f"{server.url}/{REPO}"):
        ended = program()
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.rstrip("0123456789abcdef\n") == address
    assert server.commits[1:] == [Commit("by a program", frozenset(FILES))]


def test_large_files_go_by_xet_where_the_server_has_it(
    server: UploadServer, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server.xet = True
    ended = program()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert uploaded(server) == FILES
    hosts = {one.host for one in server.log}
    assert hosts == {"hub", "xet"}
    assert {one.token for one in server.log if one.host == "xet"} <= {"Bearer of Xet", ""}


def test_xet_can_be_forbidden(
    server: UploadServer, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server.xet = True
    assert program(HF_HUB_DISABLE_XET="1").returncode == 0
    assert {one.host for one in server.log} == {"hub", "content"}
    assert server.received and set(server.received) == {
        hashlib.sha256(content).hexdigest() for content in LARGE.values()
    }


def test_a_failure_of_xet_is_told_in_one_line(
    server: UploadServer, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server.xet = True
    server.inject_faults("xorb", repeat(Fault(status=403)))
    ended = program()
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "HF_HUB_DISABLE_XET=1" in ended.stderr
    assert uploaded(server) == {}
