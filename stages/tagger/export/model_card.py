"""The model card: what a model is, how good, and how to use it in each tool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tagger.core import files, thresholds
from tagger.core.thresholds import Aim, Policy
from tagger.export import checksums, formats, samples, trial
from tagger.export.compatibility import Compatibility
from tagger.export.trial import QuantizationTrial
from tagger.images import preprocess
from tagger.models import layouts
from tagger.params import Params
from tagger.system.world import read_world

_TEMPLATE = Path(__file__).with_name("model_card.md")
_FITTING = {
    "pad": "padded to a square, in the middle",
    "crop": "cropped to the square in its middle",
    "stretch": "stretched to a square",
}
_USES = {
    "model.safetensors": "timm, with `config.json`",
    layouts.ONNX: "ONNX Runtime, imgutils, `infer.py`",
    trial.FILE_NAMES["fp16"]: "GPUs",
    trial.FILE_NAMES["int8"]: "CPUs",
    f"{formats.WD14}/{layouts.ONNX}": "tools that load WD taggers",
    f"{formats.KOHYA}/{formats.KOHYA_ONNX}": "kohya's sd-scripts",
}
_OPTIONS = ("general", "character", "copyright", "artist", "meta")  # with a threshold of their own


@dataclass(frozen=True)
class CardContent:
    """What a card is written from."""

    run: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Any]  # evaluate.json
    image_counts: Mapping[str, int]  # pictures
    params: Params
    compatibility: Compatibility
    trials: Mapping[str, QuantizationTrial]


class _Row(NamedTuple):
    name: str
    tags: int
    macro_ap: str
    macro_f1: str
    micro_f1: str
    threshold: str


class _File(NamedTuple):
    name: str
    use: str
    size: str


def write(folder: Path, content: CardContent) -> None:
    """Write the card into an export that is otherwise done."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    preset, test = content.run["params"]["preset"], content.metrics["test"]
    of = thresholds.read_category_thresholds(folder / layouts.THRESHOLDS)
    prepared = preprocess.read(folder / layouts.PREPROCESS)
    text = environment.get_template(_TEMPLATE.name).render(
        title=f"{preset['backbone']} tagger",
        backbone=preset["backbone"],
        size=prepared.size,
        fitting=_FITTING[prepared.fitting],
        tags=test["tags"] + test["unsupported"],
        categories=_categories(test, of),
        images=test["images"],
        unsupported=test["unsupported"],
        samples=list(_samples(folder)),
        parts=content.image_counts,
        hashes=", ".join(f"`{one[:12]}`" for one in content.run["data"].values()),
        recipe=training_summary(content.run["params"]),
        policy=_policy(content.params.evaluate.threshold),
        files=_files(folder),
        trials=content.trials,
        names=trial.FILE_NAMES,
        cores=read_world().cores,
        timm="timm" in content.compatibility.tools,
        kohya="".join(f" --{one}_threshold {of[one]:.2f}" for one in _OPTIONS if one in of),
        found=content.compatibility,
        opset=content.params.export.opset,
    )
    files.write_text(folder / checksums.CARD, text)


def _categories(test: Mapping[str, Any], of: Mapping[str, float]) -> list[_Row]:
    every = {**test["categories"], "all": test}
    return [
        _Row(
            name,
            one["tags"],
            _with_interval(one, "macro_ap"),
            _with_interval(one, "macro_f1"),
            _with_interval(one, "micro_f1"),
            f"{of[name]:.3f}" if name in of else "",
        )
        for name, one in every.items()
    ]


def _with_interval(figures: Mapping[str, Any], measure: str) -> str:
    if figures.get(measure) is None:
        return ""
    low, high = figures["intervals"][measure]
    return f"{figures[measure]:.3f} ({low:.3f} to {high:.3f})"


def _samples(folder: Path) -> Sequence[tuple[str, str]]:
    return [
        (f"{samples.FOLDER}/{path.name}", path.with_suffix(".txt").read_text("utf-8").strip())
        for path in sorted((folder / samples.FOLDER).glob("*.jpg"))
    ]


def training_summary(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the training in a few lines, from the parameters that run.json has of it."""
    preset, train = params["preset"], params["train"]
    began = train["init_from"] or preset["pretrained"]
    return {
        "begun from": "random weights" if not began else "pretrained weights",
        "epochs": f"{train['epochs']}, {preset['batch_size']} pictures a step",
        "optimizer": f"{train['optimizer']}, learning rate {preset['learning_rate']:g}, "
        f"{train['schedule']} with {100 * train['warmup']:g} % warmup",
        "loss": f"{train['loss']['kind']}",
        "weights kept": "of the best validation"
        + (f", moving average {train['ema']:g}" if train["ema"] else ""),
        "seed": str(params["seed"]),
    }


def _policy(policy: Policy) -> str:
    whose = {"global": "one for all tags", "category": "one for each category"}
    aim = str(Aim(policy.by, policy.target)).replace("_", " = ").replace("f1", "best F1")
    return f"{aim}, {whose.get(policy.kind, 'one for each tag')}"


def _files(folder: Path) -> list[_File]:
    return [
        _File(name, use, f"{(folder / name).stat().st_size / 1e6:.1f}")
        for name, use in _USES.items()
        if (folder / name).is_file()
    ]
