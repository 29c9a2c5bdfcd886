"""Weights as they lie in a file, in a folder or on the hub, and what is said beside them.

huggingface_hub heeds HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
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
# Of a folder the first that is there, in timm's own order.
WEIGHTS_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_PLAIN_TORCH = "model_state_dict"  # as in torch's own tutorial, beside the keys that timm knows

# What timm, safetensors and torch raise for weights that are away, damaged or of another network.
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
    source: str  # where the weights are from, as a person would name it
    entries: dict[str, Any]  # tensors by the names they have there; some are nested further
    config: dict[str, Any]  # timm's config.json beside them; empty where there is none

    @property
    def architecture(self) -> str:
        """The backbone that config.json names, or ""."""
        name = self.config.get("architecture", "")
        return name if isinstance(name, str) else ""

    @property
    def pretrained(self) -> dict[str, Any]:
        """What config.json says of how the weights were trained; older ones have it all in one."""
        inner = self.config.get("pretrained_cfg", self.config)
        return inner if isinstance(inner, dict) else {}


def read(source: bool | str | Path, backbone: str) -> Checkpoint:
    """Return weights from where they are.

    source: a file, a folder as timm, `train` and `export` write them, `hf-hub:owner/name`, or
        True for those that timm names for the backbone

    Code in a file is never run. Raises TaggerError for weights that cannot be had.
    """
    if isinstance(source, bool):
        return _timms(backbone)
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
    """Return the file of weights that a path names, as far as it is plain which one that is."""
    path = path.expanduser()
    if path.is_file():
        return path
    return next((path / name for name in WEIGHTS_NAMES if (path / name).is_file()), None)


def _from_folder(folder: Path) -> Checkpoint:
    """Return the weights of a folder, of which there must be no two without a usual name."""
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
    """Return timm's config.json, empty where there is none."""
    content = files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise TaggerError(f"{path} is no config of timm: it must hold an object. Get it again.")
    return content


def _entries(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name; of a training checkpoint the averaged ones."""
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
    refused = error.__cause__  # timm tells every failure of torch's unpickler alike
    if found := re.search(r"GLOBAL ([\w.]+)", str(refused)):
        return (
            f"{path} holds more than tensors: {found[1]}, which would be code to run, and is not. "
            "Have its tensors saved as .safetensors by someone whom you trust."
        )
    kind = "safetensors" if path.suffix == ".safetensors" else "weights of torch"
    reason = "it is no pickle of tensors" if refused else one_line(error)[:200]
    return f"{path} is damaged, or no file of {kind}: {reason}. Get it again."


def _timms(backbone: str) -> Checkpoint:
    """Return the weights that timm names for a backbone."""
    known = get_pretrained_cfg(backbone)
    if known and known.hf_hub_id:
        repo, _, revision = known.hf_hub_id.partition("@")
        return _from_hub(repo, revision or None)
    if not (known and known.url):
        tagged = timm.list_pretrained(f"{backbone.split('.')[0]}.*")
        hint = f" It has {', '.join(tagged[:5])}." if tagged else ""
        raise TaggerError(
            f"timm has no weights for {backbone}.{hint} Name one of these as the backbone, "
            f"{_WAYS_OUT}."
        )
    try:
        path = Path(download_cached_file(known.url, check_hash=True))
    except UNREADABLE_ERRORS as error:
        raise TaggerError(
            f"The weights of {backbone} cannot be downloaded from {known.url}: {one_line(error)}. "
            f"Check the network, {_WAYS_OUT}."
        ) from error
    return Checkpoint(str(known.url), _entries(path), {})


def _from_hub(repo: str, revision: str | None) -> Checkpoint:
    """Return the weights of a repository; those of the cache where the hub cannot be asked."""
    source = f"{HUB}{repo}" + (f"@{revision}" if revision else "")
    try:
        weights, config = _download(repo, revision)
    except errors.HFValidationError:
        raise TaggerError(f"{repo!r} is no model of the hub: write {HUB}owner/name.") from None
    except _UNREACHABLE as error:
        weights, config = _cached(repo, revision)
        if weights is None:
            told = hub_errors.explain(error, repo, revision, "model").removesuffix(".")
            raise TaggerError(f"{told}, {_WAYS_OUT}.") from error
        if not constants.is_offline_mode():
            _log.warning("%s is taken from the cache, without asking the hub.", source)
    if weights is None:
        raise TaggerError(
            f"{source} holds no weights for timm: it has neither {WEIGHTS_NAMES[0]} nor {WEIGHTS_NAMES[1]}. "
            f"Name another, {_WAYS_OUT}."
        )
    return Checkpoint(source, _entries(weights), _config(config) if config else {})


def _download(repo: str, revision: str | None) -> tuple[Path | None, Path | None]:
    """Return the files of weights and of the config, where there are such."""
    # unlike a download, this fails at once where there is no connection
    about = HfApi().model_info(
        repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, expand=["siblings"]
    )
    there = {sibling.rfilename for sibling in about.siblings or ()}
    names = [next((name for name in WEIGHTS_NAMES if name in there), None), CONFIG]
    weights, config = (
        Path(hf_hub_download(repo, name, revision=revision)) if name in there else None
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
