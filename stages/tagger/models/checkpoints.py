"""Weights in a file, in a folder or on the hub, with the config beside them.

huggingface_hub reads HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
"""

import logging
import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import httpx2
import timm
from huggingface_hub import HfApi, constants, errors, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from timm.models import clean_state_dict, get_pretrained_cfg, load_state_dict
from timm.models._hub import download_cached_file

from tagger.core import files, hub_errors
from tagger.core.errors import TaggerError, one_line

HUB = "hf-hub:"
CONFIG = "config.json"
# Of a folder the first one that exists is read, in timm's order.
WEIGHTS_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_PLAIN_TORCH = "model_state_dict"  # as in torch's tutorial; timm knows the other usual keys

# Raised by timm, safetensors and torch for weights that are missing, damaged or of another network.
UNREADABLE_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    AttributeError,
    AssertionError,
    SafetensorError,
    UnpicklingError,
)

_UNREACHABLE = (httpx2.HTTPError, OSError)
_WAYS_OUT = "or give a file or folder of weights instead, or `pretrained: false`"
_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    source: str  # of the weights, for messages
    entries: dict[str, Any]  # tensors by their names in the file; some are nested further
    config: dict[str, Any]  # timm's config.json beside them; empty if there is none

    @property
    def architecture(self) -> str:
        """The backbone in config.json, or ""."""
        name = self.config.get("architecture", "")
        return name if isinstance(name, str) else ""

    @property
    def pretrained(self) -> dict[str, Any]:
        """How the weights were trained, by config.json; older ones have no inner object for it."""
        inner = self.config.get("pretrained_cfg", self.config)
        return inner if isinstance(inner, dict) else {}


def read(source: bool | str | Path, backbone: str) -> Checkpoint:
    """Return the weights of a source.

    source: a file, a folder that timm, `train` or `export` wrote, `hf-hub:owner/name`, or True
        for timm's weights of the backbone

    Code in a file is never run. Raises TaggerError for weights that cannot be read or downloaded.
    """
    if isinstance(source, bool):
        return _from_timm(backbone)
    if str(source).startswith(HUB):
        repo, _, revision = str(source).removeprefix(HUB).partition("@")
        return _from_hub(repo, revision or None)
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return Checkpoint(str(path), _entries(path), {})
    hint = ""
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)) and path.suffix not in SUFFIXES:
        hint = f" Did you mean {HUB}{source}?"
    raise TaggerError(
        f"`pretrained` names {source}, which is no file or folder here.{hint} Name one that is, "
        f"{HUB}owner/name, true for timm's own weights, or false to train from scratch."
    )


def find_weights(path: Path) -> Path | None:
    """Return the file of weights of a path: the file itself, or one of a usual name in a folder."""
    path = path.expanduser()
    if path.is_file():
        return path
    return next((path / name for name in WEIGHTS_NAMES if (path / name).is_file()), None)


def _from_folder(folder: Path) -> Checkpoint:
    """Return the weights of a folder: those of a usual name, or else the only file of weights."""
    usual = [folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()]
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not (usual or others):
        raise TaggerError(
            f"{folder} holds no weights: it has neither {WEIGHTS_NAMES[0]} nor {WEIGHTS_NAMES[1]}. "
            "Name the file, or a folder that `train`, `export` or timm wrote."
        )
    if not usual and len(others) > 1:
        listed = ", ".join(path.name for path in others[:5])
        raise TaggerError(f"{folder} holds several files of weights: {listed}. Name the file.")
    return Checkpoint(str(folder), _entries((usual or others)[0]), _config(folder / CONFIG))


def _config(path: Path) -> dict[str, Any]:
    """Return timm's config.json, empty if there is none."""
    content = files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise TaggerError(
            f"{path} is no config of timm: it must hold an object. Download it again."
        )
    return content


def _entries(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name; the averaged ones of a training checkpoint."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            entries: dict[str, Any] = load_state_dict(str(path))
        if isinstance(inner := entries.get(_PLAIN_TORCH), dict):
            entries = clean_state_dict(inner)
        if not entries:
            raise ValueError("it is empty")
        return entries
    except UNREADABLE_ERRORS as error:
        raise TaggerError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    cause = error.__cause__  # timm has one message for every failure of torch's unpickler
    if code := re.search(r"GLOBAL ([\w.]+)", str(cause)):
        return (
            f"{path} holds more than tensors: {code[1]} is code, which is not run. "
            "Ask someone you trust to save its tensors as .safetensors."
        )
    kind = "safetensors" if path.suffix == ".safetensors" else "weights of torch"
    reason = "it is no pickle of tensors" if cause else one_line(error)[:200]
    return f"{path} is damaged, or no file of {kind}: {reason}. Download it again."


def _from_timm(backbone: str) -> Checkpoint:
    """Return timm's weights for a backbone."""
    config = get_pretrained_cfg(backbone)
    if config and config.hf_hub_id:
        repo, _, revision = config.hf_hub_id.partition("@")
        return _from_hub(repo, revision or None)
    if not (config and config.url):
        tagged = timm.list_pretrained(f"{backbone.split('.')[0]}.*")
        hint = f" It has {', '.join(tagged[:5])}." if tagged else ""
        raise TaggerError(
            f"timm has no weights for {backbone}.{hint} Name one of these as the backbone, "
            f"{_WAYS_OUT}."
        )
    try:
        path = Path(download_cached_file(config.url, check_hash=True))
    except UNREADABLE_ERRORS as error:
        raise TaggerError(
            f"The weights of {backbone} cannot be downloaded from {config.url}: {one_line(error)}. "
            f"Check the network, {_WAYS_OUT}."
        ) from error
    return Checkpoint(str(config.url), _entries(path), {})


def _from_hub(repo: str, revision: str | None) -> Checkpoint:
    """Return the weights of a repository, from the cache if the hub cannot be reached."""
    source = f"{HUB}{repo}" + (f"@{revision}" if revision else "")
    try:
        weights, config = _download(repo, revision)
    except errors.HFValidationError:
        raise TaggerError(f"{repo!r} is no model of the hub: write {HUB}owner/name.") from None
    except _UNREACHABLE as error:
        weights, config = _cached(repo, revision)
        if weights is None:
            reason = hub_errors.explain(error, repo, revision, "model").removesuffix(".")
            raise TaggerError(f"{reason}, {_WAYS_OUT}.") from error
        if not constants.is_offline_mode():
            _log.warning("%s is read from the cache, as the hub cannot be reached.", source)
    if weights is None:
        raise TaggerError(
            f"{source} holds no weights for timm: it has neither {WEIGHTS_NAMES[0]} nor "
            f"{WEIGHTS_NAMES[1]}. Name another, {_WAYS_OUT}."
        )
    return Checkpoint(source, _entries(weights), _config(config) if config else {})


def _download(repo: str, revision: str | None) -> tuple[Path | None, Path | None]:
    """Return the files of weights and of the config, None for a file that the hub lacks."""
    # Unlike a download, this fails at once without a connection.
    info = HfApi().model_info(
        repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, expand=["siblings"]
    )
    available = {sibling.rfilename for sibling in info.siblings or ()}
    names = [next((name for name in WEIGHTS_NAMES if name in available), None), CONFIG]
    weights, config = (
        Path(hf_hub_download(repo, name, revision=revision)) if name in available else None
        for name in names
    )
    return weights, config


def _cached(repo: str, revision: str | None) -> tuple[Path | None, Path | None]:
    paths = {
        name: Path(path)
        for name in (*WEIGHTS_NAMES, CONFIG)
        if isinstance(path := try_to_load_from_cache(repo, name, revision=revision), str)
    }
    return next((paths[name] for name in WEIGHTS_NAMES if name in paths), None), paths.get(CONFIG)
