"""Pretrained weights loaded into a model, at any image size, with a report of what fits.

A model of another shape takes the weights that fit. The others are logged, never ignored.
"""

import inspect
import logging
import math
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from timm.models import model_entrypoint
from torch import Tensor, nn

from tagger.core.errors import TaggerError, one_line
from tagger.models.checkpoints import UNREADABLE_ERRORS, Checkpoint
from tagger.models.heads import QueryTagger

_BACKBONE, _DECODER = "backbone.", "decoder"  # of a QueryTagger
_COUNTER = ".num_batches_tracked"  # of batch norm, not used here; old files lack it
_MIN_FRACTION = 0.5  # of a model's numbers, below which the weights are of another network
_MAX_PREFIX_TOKENS = 10  # class, distillation and register tokens
_log = logging.getLogger(__name__)


class _Fit(NamedTuple):
    """How a checkpoint fits a model, by the names of the model's entries."""

    taken: dict[str, Tensor]
    missing: list[str]  # in the model, not in the checkpoint
    unexpected: list[str]  # the other way round
    misshapen: dict[str, str]  # "3 x 5 instead of 3 x 4"
    fraction: float  # of the backbone's numbers that are taken


def load_pretrained(
    model: nn.Module, checkpoint: Checkpoint, *, fresh: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Load weights into a model; return the checkpoint's tensors of the head, by the model's names.

    fresh: entries of the model that keep their values; None: all of the head

    Position embeddings and tables of relative positions are resampled to the model's image size.
    The model also takes the normalisation of images for these weights, if it is known.
    A report goes to the log. Raises TaggerError if hardly anything fits.
    """
    prefix = _BACKBONE if isinstance(model, QueryTagger) else ""
    bare = _bare(checkpoint.entries)
    stored = _converted(model, bare, prefix, checkpoint.source)
    heads = _heads(model, prefix)
    if fresh is None:
        fresh = {name for name in model.state_dict() if _within(name, heads)}
    fit = _compare(model, stored, heads, fresh)
    if fit.fraction < _MIN_FRACTION:
        raise TaggerError(_unfit(model, checkpoint, fit))
    model.load_state_dict(fit.taken, strict=False)
    _log_fit(model, checkpoint.source, fit)
    _log_resampled({prefix + name: value for name, value in bare.items()}, fit.taken)
    _normalise_alike(model, checkpoint)
    return {name: value for name, value in stored.items() if _within(name, heads)}


def shortened_list(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def head_name(model: nn.Module) -> str:
    """Return the name of the module that gives the logits; "" if it is not a single one."""
    timm_model: Any = model
    head = timm_model.get_classifier()
    return next((name for name, module in model.named_modules() if module is head), "")


def _heads(model: nn.Module, prefix: str) -> list[str]:
    """Return the names of modules that are heads, in the model or in a checkpoint for it."""
    config: Any = model.pretrained_cfg
    names = config.get("classifier") or ()
    names = [names] if isinstance(names, str) else list(names)
    return [name for name in (head_name(model), _DECODER, *(prefix + n for n in names)) if name]


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _architecture(model: nn.Module) -> str:
    config: Any = model.pretrained_cfg
    return str(config.get("architecture", ""))


def _bare(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries by timm's names, also those of a query tagger, which wraps timm's model."""
    is_query_tagger = any(_within(name, [_DECODER]) for name in entries)
    return {
        name.removeprefix(_BACKBONE if is_query_tagger else ""): entries[name] for name in entries
    }


def _converted(
    model: nn.Module, bare: Mapping[str, Any], prefix: str, source: str
) -> dict[str, Tensor]:
    """Return a checkpoint with the model's names and sizes, by timm's conversion for its family.

    timm's conversions also know the forms that the original authors published.
    """
    decoder = {name: value for name, value in bare.items() if _within(name, [_DECODER])}
    named = {name: value for name, value in bare.items() if name not in decoder}
    body = model.get_submodule(prefix.rstrip("."))
    try:
        module = sys.modules[model_entrypoint(_architecture(model)).__module__]
        convert = getattr(module, "checkpoint_filter_fn", getattr(module, "_filter_fn", None))
        if convert:
            takes_model = len(inspect.signature(convert).parameters) > 1
            # timm 1.0.31 resamples by a function that torch 2.15 advises against.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                named = convert(dict(named), body) if takes_model else convert(dict(named))
    except UNREADABLE_ERRORS as error:  # such as for a network with other blocks: the rest may fit
        reason = f"{type(error).__name__}: {one_line(error)}"
        _log.warning("%s is used unconverted: timm cannot convert it (%s).", source, reason)
    everything = {prefix + name: value for name, value in named.items()} | decoder
    return {name: value for name, value in everything.items() if isinstance(value, Tensor)}


def _compare(
    model: nn.Module,
    stored: Mapping[str, Tensor],
    heads: Sequence[str],
    fresh: Collection[str],
) -> _Fit:
    expected = {name: value for name, value in model.state_dict().items() if name not in fresh}
    taken, misshapen, missing = {}, {}, []
    for name, value in expected.items():
        if name not in stored:
            if not name.endswith(_COUNTER):
                missing.append(name)
        elif stored[name].shape == value.shape:
            taken[name] = stored[name]
        else:
            misshapen[name] = f"{_shape(stored[name])} instead of {_shape(value)}"
    unexpected = [name for name in stored if name not in expected and not _within(name, heads)]
    body = {name: value.numel() for name, value in expected.items() if not _within(name, heads)}
    fraction = sum(body[name] for name in taken if name in body) / max(1, sum(body.values()))
    return _Fit(taken, missing, unexpected, misshapen, fraction)


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def _unfit(model: nn.Module, checkpoint: Checkpoint, fit: _Fit) -> str:
    """Return that the weights are those of another network, with the differences."""
    name, other = _architecture(model), checkpoint.architecture
    of_another = f", but those of {other}" if other and other != name else ""
    shapes = [f"{entry} is {shape}" for entry, shape in fit.misshapen.items()]
    differences = [
        f"of another shape: {shortened_list(shapes, 2)}" if shapes else "",
        f"the model lacks {shortened_list(fit.unexpected, 3)}" if fit.unexpected else "",
        f"the weights lack {shortened_list(fit.missing, 3)}" if fit.missing else "",
    ]
    return (
        f"{checkpoint.source} holds no weights of {name}{of_another}: {fit.fraction:.0%} of the "
        f"model would be taken ({'; '.join(filter(None, differences))}). "
        f"Use weights of {name}, or the backbone of these weights."
    )


def _log_fit(model: nn.Module, source: str, fit: _Fit) -> None:
    total = len(fit.taken) + len(fit.missing) + len(fit.misshapen)
    name = _architecture(model)
    _log.info("%s: %d of %d tensors from %s", name, len(fit.taken), total, source)
    if fit.missing:
        _log.warning(
            "%s lacks %s: these are newly initialised.", source, shortened_list(fit.missing)
        )
    if fit.misshapen:
        shapes = [f"{entry} ({shapes})" for entry, shapes in fit.misshapen.items()]
        _log.warning(
            "%s has other shapes: %s. These are newly initialised.", source, shortened_list(shapes)
        )
    if fit.unexpected:
        _log.warning(
            "%s has entries that %s lacks: %s.", source, name, shortened_list(fit.unexpected)
        )


def _log_resampled(before: Mapping[str, Any], after: Mapping[str, Tensor]) -> None:
    """Log which entries have another shape than they had, one line for all that are alike."""
    changed: dict[str, list[str]] = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, Tensor) and old.numel() != value.numel():
            changed.setdefault(_resampling(name, old.shape, value.shape), []).append(name)
    for resampling, names in changed.items():
        _log.info("%s: %s", resampling, shortened_list(names, 2))


def _resampling(name: str, old: Sequence[int], new: Sequence[int]) -> str:
    """Return the kind of an entry, and from which grid to which it was resampled."""
    same_rank = len(old) == len(new)
    sizes = [(a, b) for a, b in zip(old, new, strict=False) if a != b and same_rank]
    if len(sizes) == 1:  # a grid in one row, after class and register tokens
        for extra in range(_MAX_PREFIX_TOKENS):
            a, b = (math.isqrt(max(0, size - extra)) for size in sizes[0])
            if (a * a + extra, b * b + extra) != sizes[0]:
                continue
            if "rel" not in name:
                return f"position embeddings resampled from {a} x {a} to {b} x {b}"
            a, b = (a + 1) // 2, (b + 1) // 2  # a window of w has 2 w - 1 offsets each way
            return f"relative positions resampled from windows of {a} x {a} to {b} x {b}"
    shapes = zip(*sizes, strict=True) if sizes else (old, new)
    before, after = (" x ".join(map(str, shape)) for shape in shapes)
    what = "patches" if "patch" in name else "positions"
    return f"{what} resampled from {before} to {after}"


def _normalise_alike(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Let `backbone.build_preprocess` normalise images as for these weights."""
    config: Any = model.pretrained_cfg
    constants = {key: _colour(checkpoint.pretrained.get(key)) for key in ("mean", "std")}
    interpolation = checkpoint.pretrained.get("interpolation")
    settings = constants | {
        "interpolation": interpolation if isinstance(interpolation, str) else None
    }
    changed = {key: value for key, value in settings.items() if value and value != config.get(key)}
    config.update(changed)
    if changed:
        listed = ", ".join(f"{key} {value}" for key, value in changed.items())
        _log.info("images are prepared as for %s: %s", checkpoint.source, listed)


def _colour(values: Any) -> tuple[float, ...] | None:
    if isinstance(values, list) and len(values) == 3:
        return tuple(values) if all(isinstance(v, float | int) for v in values) else None
    return None
