"""Errors of the Hugging Face hub in plain words, with what to do.

huggingface_hub reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from typing import Literal, TypeAlias

from huggingface_hub import constants, errors

RepoKind: TypeAlias = Literal["data set", "model"]


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids every request."""
    return constants.is_offline_mode()


def describe_status(error: errors.HfHubHTTPError) -> str:
    return f"{error.response.status_code} {error.response.reason_phrase}"


def explain(error: Exception, repo: str, revision: str | None, kind: RepoKind = "data set") -> str:
    """Return why a data set or a model cannot be had, and what to do."""
    hub = constants.ENDPOINT
    match error:
        case errors.GatedRepoError():
            page = f"{hub}/datasets/{repo}" if kind == "data set" else f"{hub}/{repo}"
            return f"{repo} is gated: accept its terms on {page}, then set HF_TOKEN to your token."
        case errors.RepositoryNotFoundError():
            return (
                f"{hub} has no {kind} {repo}, or it is private. Check the name, or set HF_TOKEN "
                "to a token that may read it."
            )
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {revision!r}. Name a branch, a tag or a commit of it."
        case errors.HfHubHTTPError() if error.response.status_code == 401:
            return (
                f"{hub} refuses the token. Set HF_TOKEN to a valid one, see {hub}/settings/tokens."
            )
        case errors.HfHubHTTPError():
            return f"{hub} answers {describe_status(error)} when asked for {repo}. Try again later."
        case errors.HFValidationError():
            return f"{repo!r} is no name of a {kind}. It must look like owner/name."
        case _ if constants.is_offline_mode():
            return f"HF_HUB_OFFLINE is set, and not all of {repo} is here. Unset it to download."
        case _:
            return f"No connection to {hub}: {error}. Check the network, and HF_ENDPOINT if set."
