"""An export is uploaded to the hub whole, in one commit, or not at all, with one error line."""

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
from tagger.export import checksums, publish

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
    folder = tmp_path / "models" / "export"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def upload(folder: Path, repo: str = REPO, private: bool = False) -> str:
    return publish.upload(folder, repo, private=private, message="A first tagger")


def error_line(folder: Path, repo: str = REPO, private: bool = False) -> str:
    """Return the error of an upload that fails."""
    with pytest.raises(TaggerError) as error:
        upload(folder, repo, private)
    assert "\n" not in str(error.value)
    return str(error.value)


def uploaded(server: UploadServer) -> dict[str, bytes]:
    others = (".gitattributes", checksums.SUMS)
    return {path: content for path, content in server.files.items() if path not in others}


def test_upload_is_one_commit_with_every_byte(server: UploadServer, folder: Path) -> None:
    address = upload(folder)
    assert uploaded(server) == FILES
    assert server.commits[1:] == [Commit("A first tagger", frozenset(FILES))]
    assert address == f"{server.url}/{REPO}/commit/{server.commit}"


def test_large_files_go_by_git_lfs_if_the_server_has_no_xet(
    server: UploadServer, folder: Path
) -> None:
    upload(folder)
    assert {server.objects[hash_] for hash_ in server.received} == set(LARGE.values())
    assert sum(request.path == "/verify" for request in server.log) == len(LARGE)
    assert constants.HF_HUB_DISABLE_XET is False


def test_token_goes_to_the_hub_alone(server: UploadServer, folder: Path) -> None:
    upload(folder)
    tokens = {(request.host, request.token) for request in server.log}
    assert tokens == {("hub", f"Bearer {TOKEN}"), ("content", "")}


def test_stored_login_replaces_the_variable(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    stored = Path(constants.HF_TOKEN_PATH)
    stored.parent.mkdir()
    stored.write_text(TOKEN)
    upload(folder)
    assert uploaded(server) == FILES


@pytest.mark.parametrize(("private", "visibility"), [(True, "private"), (False, None)])
def test_new_repository_is_private_on_request(
    server: UploadServer, folder: Path, private: bool, visibility: str | None
) -> None:
    upload(folder, private=private)
    assert server.visibility == visibility
    assert server.private == private


def test_repository_without_owner_belongs_to_the_token(server: UploadServer, folder: Path) -> None:
    for _ in range(2):
        assert upload(folder, "tagger").startswith(f"{server.url}/{REPO}")
    assert uploaded(server) == FILES


def test_hidden_and_temporary_files_are_not_uploaded(
    server: UploadServer, folder: Path, write_file: Callable[[str, str], Path]
) -> None:
    names = [".DS_Store", ".git/HEAD", ".cache/huggingface/x", "wd14/.gitignore", "Thumbs.db"]
    names += ["model.onnx.partial", "README.md~", "wd14/.a.csv.swp", "__pycache__/a.pyc"]
    for name in names:
        write_file(f"models/export/{name}", "*")
    upload(folder)
    assert uploaded(server) == FILES


def test_model_card_without_front_matter_is_uploaded(server: UploadServer, folder: Path) -> None:
    (folder / "README.md").write_bytes(b"# A tagger\n")
    upload(folder)
    assert server.files["README.md"] == b"# A tagger\n"


def test_upload_can_be_downloaded(server: UploadServer, folder: Path, tmp_path: Path) -> None:
    upload(folder, private=True)
    copy = Path(huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "copy"))
    assert {path: (copy / path).read_bytes() for path in FILES} == FILES


def test_second_upload_changes_nothing(server: UploadServer, folder: Path) -> None:
    upload(folder)
    before, received = server.commits.copy(), server.received.copy()
    assert upload(folder) == f"{server.url}/{REPO}"
    assert (server.commits, server.received) == (before, received)


@pytest.mark.parametrize("changed", ["wd14/selected_tags.csv", "kohya/model.onnx"])
def test_only_changed_files_are_sent_again(
    server: UploadServer, folder: Path, changed: str
) -> None:
    upload(folder)
    server.received.clear()
    (folder / changed).write_bytes(b"another")
    upload(folder)
    assert server.commits[-1].files == {changed}
    assert len(server.received) == (changed in LARGE)
    assert uploaded(server) == {**FILES, changed: b"another"}


def test_files_missing_in_the_folder_stay_in_the_repository(
    server: UploadServer, folder: Path
) -> None:
    upload(folder)
    (folder / "model.onnx").unlink()
    upload(folder)
    assert uploaded(server) == FILES


def test_private_repository_stays_private(server: UploadServer, folder: Path) -> None:
    upload(folder, private=True)
    upload(folder)
    assert server.private


def test_private_upload_to_a_public_repository_is_an_error(
    server: UploadServer, folder: Path
) -> None:
    upload(folder)
    (folder / "README.md").write_bytes(b"# A secret\n")
    address = f"{server.url}/{REPO}"
    assert error_line(folder, private=True) == (
        f"{address} is public. Make it private on {address}/settings, or name another repository."
    )
    assert uploaded(server) == FILES


def test_missing_token_is_an_error_before_any_request(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert error_line(folder) == (
        "There is no token to upload with. Set HF_TOKEN to a token that may write, see "
        f"{server.url}/settings/tokens, or run `hf auth login`."
    )
    assert not server.log


@pytest.mark.parametrize("exists", [False, True])
def test_invalid_token_is_an_error(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    if exists:
        upload(folder)
    before = server.commits.copy()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = error_line(folder)
    assert line.startswith(f"{server.url} refuses the token. Set HF_TOKEN to a valid one")
    assert "hf_wrong" not in line
    assert server.commits == before


@pytest.mark.parametrize("exists", [False, True])
def test_read_only_token_is_an_error(server: UploadServer, folder: Path, exists: bool) -> None:
    if exists:
        upload(folder)
    before = server.commits.copy()
    server.readonly = True
    (folder / "model.onnx").write_bytes(b"another")
    assert error_line(folder) == (
        f"{server.url} refuses: You must use a write token to upload to a repository. Set "
        f"HF_TOKEN to a token that may write to {REPO}, see {server.url}/settings/tokens, or name "
        "another."
    )
    assert server.commits == before


@pytest.mark.parametrize("repo", ["a/b/c", "no name", "", "a--b/c", "a/b.git"])
def test_invalid_repository_name_is_an_error(server: UploadServer, folder: Path, repo: str) -> None:
    assert (
        error_line(folder, repo) == f"{repo!r} is no name of a model. It must look like owner/name."
    )
    assert not server.log


def test_offline_mode_is_an_error(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (
        error_line(folder)
        == f"HF_HUB_OFFLINE is set, so {folder} is not uploaded. Unset it to upload."
    )
    assert not server.log


def test_no_connection_is_an_error_at_once(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert error_line(folder).startswith("No connection to http://127.0.0.1:9: ")


@pytest.mark.parametrize("repo", [REPO, "tagger"])
def test_silent_server_is_an_error(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch, repo: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert error_line(folder, repo).startswith(f"No connection to {url}: timed out")


STEPS = ["create", "xet", "validate", "preupload", "batch", "put", "verify", "take_commit"]


@pytest.mark.parametrize("step", STEPS)
def test_failing_server_is_an_error_and_nothing_is_committed(
    server: UploadServer, folder: Path, step: str
) -> None:
    server.inject_faults(step, repeat(Fault(status=500)))
    assert error_line(folder) == (
        f"{server.url} answers 500 Internal Server Error when asked for {REPO}. Try again later."
    )
    assert uploaded(server) == {}
    server.inject_faults(step, [])
    upload(folder)
    assert uploaded(server) == FILES


@pytest.mark.parametrize("step", ["preupload", "batch", "put", "verify"])
def test_transient_fault_is_retried(server: UploadServer, folder: Path, step: str) -> None:
    server.inject_faults(step, [Fault(status=503)])
    upload(folder)
    assert uploaded(server) == FILES


@pytest.mark.parametrize("status", [400, 409, 413])
def test_refused_commit_names_the_reason_of_the_server(
    server: UploadServer, folder: Path, status: int
) -> None:
    server.inject_faults("take_commit", [Fault(status=status)])
    assert error_line(folder) == f"{server.url} refuses the files of {folder}: This is a test."
    assert uploaded(server) == {}


def test_invalid_front_matter_is_an_error(server: UploadServer, folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\na: [\n---\n")
    assert error_line(folder) == (
        f"{folder} cannot be uploaded: Invalid metadata in README.md. - it is no YAML. Correct it, "
        "then upload again."
    )
    assert uploaded(server) == {}


def test_missing_or_empty_folder_is_an_error(
    server: UploadServer, folder: Path, tmp_path: Path
) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    (empty / ".git").mkdir(parents=True)
    (empty / ".git/HEAD").touch()
    for path in (missing, folder / "README.md"):
        assert error_line(path) == f"{path} is missing. Run `dvc repro`, which writes it."
    assert error_line(empty).startswith(f"{empty} holds nothing to upload.")
    assert not server.log


def test_unreadable_file_is_an_error(
    server: UploadServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(publish, "CommitOperationAdd", refuse)  # root may read everything
    path = folder / "README.md"
    assert (
        error_line(folder) == f"{path} cannot be read: Permission denied. Check its owner and mode."
    )
    assert not server.log


@pytest.fixture
def run_publish(
    server: UploadServer, folder: Path, root: Path, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run stages/publish.py, where the library reads its environment anew."""
    checksums.write(folder)

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [str(root / "stages/publish.py"), REPO, "--private", "--message", "by a program"]
        return subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=tmp_path,
            env=environment(server.url, tmp_path / "home", HF_TOKEN=TOKEN, **more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_publish_prints_only_the_address(
    server: UploadServer, folder: Path, run_publish: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (folder / "README.md").write_bytes(b"# A tagger\n")  # the hub warns of it
    server.inject_faults("put", [Fault(status=503)])
    for address in (f"{server.url}/{REPO}/commit/", f"{server.url}/{REPO}"):
        ended = run_publish()
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.rstrip("0123456789abcdef\n") == f"models/export -> {address}"
    assert server.commits[1:] == [Commit("by a program", frozenset({*FILES, checksums.SUMS}))]


def test_large_files_go_by_xet_if_the_server_has_it(
    server: UploadServer, run_publish: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server.xet = True
    ended = run_publish()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert uploaded(server) == FILES
    hosts = {request.host for request in server.log}
    assert hosts == {"hub", "xet"}
    assert {request.token for request in server.log if request.host == "xet"} <= {
        "Bearer of Xet",
        "",
    }


def test_xet_can_be_disabled(
    server: UploadServer, run_publish: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server.xet = True
    assert run_publish(HF_HUB_DISABLE_XET="1").returncode == 0
    assert {request.host for request in server.log} == {"hub", "content"}
    assert server.received and set(server.received) == {
        hashlib.sha256(content).hexdigest() for content in LARGE.values()
    }


def test_failing_xet_is_one_error_line(
    server: UploadServer, run_publish: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server.xet = True
    server.inject_faults("xorb", repeat(Fault(status=403)))
    ended = run_publish()
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "HF_HUB_DISABLE_XET=1" in ended.stderr
    assert uploaded(server) == {}
