"""A data set of the hub: what it holds, and the bytes of its files.

huggingface_hub reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx2
from huggingface_hub import HfApi, constants, errors, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    parse_ratelimit_headers,
)

from tagger.core.errors import TaggerError
from tagger.core.hub_errors import describe_status, explain


class HubFile(NamedTuple):
    path: str  # in the repository
    size: int  # bytes
    sha256: str | None  # hexadecimal; known for files in Git LFS


class RepoListing(NamedTuple):
    commit: str  # hexadecimal; current commit of the revision
    files: dict[str, HubFile]  # by path


class TransientError(Exception):
    """A fault that the next attempt may not have. Its message is the reason, one line."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


class NoConnectionError(TransientError):
    """The server cannot be reached at all."""


def list_files(repo: str, revision: str = "main") -> RepoListing:
    """Return the files of a data set. Raises TaggerError if it is not accessible."""
    api = HfApi()
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        # without a connection this fails at once; the tree would retry for half a minute
        about = api.dataset_info(repo, revision=revision, timeout=timeout, expand=["sha"])
        commit = about.sha or revision
        tree = api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True)
        files = [
            HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, RepoFile)
        ]
    except (httpx2.HTTPError, OSError, errors.HFValidationError) as error:
        raise TaggerError(explain(error, repo, revision)) from error
    return RepoListing(commit, {file.path: file for file in files})


@contextmanager
def open_range(
    repo: str, path: str, revision: str, first: int, last: int
) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield the position of the first byte, and the bytes of a file in chunks.

    first, last: positions of the requested bytes, both included. A server without ranges sends
        the whole file, from position 0.

    Raises TransientError if another attempt may help, here or while reading, else TaggerError.
    """
    url = hf_hub_url(repo, path, repo_type="dataset", revision=revision)
    request_headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte
    try:
        headers = build_hf_headers(headers=request_headers)
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            _require_success(response)
            if response.status_code == 200:
                yield 0, response.iter_bytes()
            elif response.headers.get("Content-Range", "").startswith(f"bytes {first}-"):
                yield first, response.iter_bytes()
            else:
                raise TransientError("the server sent other bytes than requested")
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise TaggerError(explain(error, repo, revision)) from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise NoConnectionError(explain(error, repo, revision)) from error
    except httpx2.HTTPError as error:
        raise TransientError(str(error) or type(error).__name__) from error


def _require_success(response: httpx2.Response) -> None:
    """Raise HfHubHTTPError if no file is accessible, TransientError if this one fails for now."""
    try:
        hf_raise_for_status(response)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except errors.HfHubHTTPError as error:
        if response.status_code == 401:
            raise
        raise TransientError(
            f"the server answers {describe_status(error)}", _requested_wait(response)
        ) from None


def _requested_wait(response: httpx2.Response) -> float | None:
    """Return the seconds to wait before the next request, if the server names them."""
    limit = parse_ratelimit_headers(response.headers)
    if limit and not limit.remaining:
        return float(limit.reset_in_seconds)
    after: str = response.headers.get("Retry-After", "")
    return float(after) if after.isdecimal() else None
