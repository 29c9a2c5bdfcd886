"""Upload the folder of a trained tagger to the Hugging Face hub.

huggingface_hub reads HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_DISABLE_XET.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    ModelInfo,
    constants,
    errors,
    get_session,
    get_token,
    hf_raise_for_status,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    disable_progress_bars,
)

from tagger.core import hub_errors
from tagger.core.errors import TaggerError, one_line

_TEMPORARY = ("*.partial", "*.swp", "*.tmp", "*~", "Thumbs.db", "__pycache__", "desktop.ini")


def upload(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload the files of a folder to a model repository, in one commit, and return its address.

    repo: `owner/name`, or `name` for one of the token's owner; it is made if it is not there
    private: show the repository to its owner alone; else as it is, or as the hub makes new ones
    message: of the commit

    Files of the repository that the folder lacks stay. Hidden and temporary files are not sent. If
    the repository has all files already, there is no commit, and its own address is returned.
    Raises TaggerError; the files of the repository are then as they were.
    """
    additions = _additions(folder)
    if hub_errors.is_offline():
        raise TaggerError(
            f"HF_HUB_OFFLINE is set, so {folder} is not uploaded. Unset it to upload."
        )
    if not (token := get_token()):
        raise TaggerError(
            "There is no token to upload with. Set HF_TOKEN to a token that may write, see "
            f"{constants.ENDPOINT}/settings/tokens, or run `hf auth login`."
        )
    api = HfApi(token=token)
    try:
        with _quiet():
            about = _repository(api, repo, private)
            with _transfers(about.id, token):
                # upload_folder may commit in parts, and keeps the first if a later one fails
                commit = api.create_commit(about.id, additions, commit_message=message)
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise TaggerError(_explain(error, folder, repo)) from error
    return f"{constants.ENDPOINT}/{about.id}" if commit.oid == about.sha else commit.commit_url


def _additions(folder: Path) -> list[CommitOperationAdd]:
    if not folder.is_dir():
        raise TaggerError(f"{folder} is missing. Run `dvc repro`, which writes it.")
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    try:
        additions = [
            CommitOperationAdd(name.as_posix(), path)
            for name, path in paths.items()
            if path.is_file() and not any(map(_is_temporary, name.parts))
        ]
    except OSError as error:
        raise TaggerError(
            f"{error.filename} cannot be read: {error.strerror}. Check its owner and mode."
        ) from error
    if not additions:
        raise TaggerError(f"{folder} holds nothing to upload. Export a tagger first: `dvc repro`.")
    return additions


def _is_temporary(name: str) -> bool:
    """Return whether a file or folder is hidden, or left behind by a program."""
    return name.startswith(".") or any(fnmatchcase(name, pattern) for pattern in _TEMPORARY)


def _repository(api: HfApi, repo: str, private: bool) -> ModelInfo:
    """Return the repository, which is made if it does not exist."""
    try:
        # First, as this is the only request with a time limit.
        about = _about(api, repo)
    except errors.RepositoryNotFoundError:
        about = None
    if about is None or "/" not in repo:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        about = _about(api, url.repo_id)
    if private and not about.private:
        address = f"{constants.ENDPOINT}/{about.id}"
        raise TaggerError(
            f"{address} is public. Make it private on {address}/settings, or name another "
            "repository."
        )
    return about


def _about(api: HfApi, repo: str) -> ModelInfo:
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    return api.model_info(repo, timeout=timeout, expand=["private", "sha"])


@contextmanager
def _transfers(repo: str, token: str) -> Iterator[None]:
    """Send large files by Xet if the server has it, else by Git LFS.

    huggingface_hub asks for Xet if it is installed, and fails if the server has none.
    """
    chosen = constants.HF_HUB_DISABLE_XET
    if not chosen:
        url = f"{constants.ENDPOINT}/api/models/{repo}/xet-write-token/main"
        response = get_session().get(url, headers=build_hf_headers(token=token))
        if response.status_code != 404:
            hf_raise_for_status(response)
        constants.HF_HUB_DISABLE_XET = response.status_code == 404
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings, and its progress bars outside a terminal."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.callback(log.setLevel, level)
        log.setLevel(logging.CRITICAL)
        if not sys.stderr.isatty():
            stack.enter_context(disable_progress_bars())
        yield


def _explain(error: BaseException, folder: Path, repo: str) -> str:
    """Return why a folder cannot be uploaded, and what to do."""
    site = constants.ENDPOINT
    match error:
        case RuntimeError(__cause__=Exception() as cause):  # for one of the files
            return _explain(cause, folder, repo)
        case errors.HfHubHTTPError() if error.response.status_code == 403:
            return (
                f"{site} refuses: {_reason(error)}. Set HF_TOKEN to a token that may write to "
                f"{repo}, see {site}/settings/tokens, or name another."
            )
        case errors.HfHubHTTPError() if error.response.status_code in (400, 402, 409, 412, 413):
            return f"{site} refuses the files of {folder}: {_reason(error)}."
        case httpx2.HTTPError() | errors.HFValidationError():
            return hub_errors.explain(error, repo, None, "model")
        case ValueError():
            return f"{folder} cannot be uploaded: {one_line(error)}. Correct it, then upload again."
        case _:
            return (
                f"{folder} cannot be uploaded: {one_line(error)}. Try again, with "
                "HF_HUB_DISABLE_XET=1 in the environment if the network blocks Xet."
            )


def _reason(error: errors.HfHubHTTPError) -> str:
    """Return the reason from the server, as part of a sentence."""
    reason = error.server_message or error.response.reason_phrase
    return " ".join(reason.split()).rstrip(".")
