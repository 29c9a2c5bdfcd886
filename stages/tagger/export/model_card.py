"""The model card: what a model is, how good it is, and how to use it in each tool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tagger.core import files, thresholds
from tagger.export import checksums, formats, samples, trial
from tagger.export.compatibility import Compatibility
from tagger.export.trial import QuantizationTrial
from tagger.images import preprocess
from tagger.models import layouts
from tagger.params import Params, ThresholdParams
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
_OPTIONS = ("general", "character", "copyright", "artist", "meta")  # of kohya's thresholds
_METRICS = ("macro_ap", "macro_f1", "micro_f1")


@dataclass(frozen=True)
class CardContent:
    """What a card is written from."""

    run: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Any]  # evaluate.json
    image_counts: Mapping[str, int]  # by split
    params: Params
    compatibility: Compatibility
    trials: Mapping[str, QuantizationTrial]


def write(folder: Path, content: CardContent) -> None:
    """Write the card into an export that is otherwise complete."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    preset, test = content.run["params"]["preset"], content.metrics["test"]
    by_category = thresholds.read_category_thresholds(folder / layouts.THRESHOLDS)
    squares = preprocess.read(folder / layouts.PREPROCESS)
    text = environment.get_template(_TEMPLATE.name).render(
        title=f"{preset['backbone']} tagger",
        backbone=preset["backbone"],
        size=squares.size,
        fitting=_FITTING[squares.fitting],
        tags=test["tags"] + test["unsupported"],
        categories=_category_rows(test, by_category),
        images=test["images"],
        unsupported=test["unsupported"],
        samples=_samples(folder),
        image_counts=content.image_counts,
        hashes=", ".join(f"`{sha256[:12]}`" for sha256 in content.run["data"].values()),
        training=training_summary(content.run["params"]),
        policy=_describe_policy(content.params.evaluate.threshold),
        files=_files(folder),
        trials=content.trials,
        file_names=trial.FILE_NAMES,
        metrics=_METRICS,
        cores=read_world().cores,
        timm="timm" in content.compatibility.tools,
        kohya="".join(
            f" --{name}_threshold {by_category[name]:.2f}"
            for name in _OPTIONS
            if name in by_category
        ),
        compatibility=content.compatibility,
        opset=content.params.export.opset,
    )
    files.write_text(folder / checksums.CARD, text)


def _category_rows(
    test: Mapping[str, Any], by_category: Mapping[str, float]
) -> list[tuple[str, ...]]:
    """Return name, number of tags, metrics and threshold of each category, and of all."""
    return [
        (
            name,
            f"{metrics['tags']:,}",
            *(_with_interval(metrics, metric) for metric in _METRICS),
            f"{by_category[name]:.3f}" if name in by_category else "",
        )
        for name, metrics in {**test["categories"], "all": test}.items()
    ]


def _with_interval(metrics: Mapping[str, Any], metric: str) -> str:
    if metrics.get(metric) is None:
        return ""
    low, high = metrics["intervals"][metric]
    return f"{metrics[metric]:.3f} ({low:.3f} to {high:.3f})"


def _samples(folder: Path) -> Sequence[tuple[str, str]]:
    return [
        (f"{samples.FOLDER}/{path.name}", path.with_suffix(".txt").read_text("utf-8").strip())
        for path in sorted((folder / samples.FOLDER).glob("*.jpg"))
    ]


def training_summary(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the training in a few lines, from the parameters in run.json."""
    preset, train = params["preset"], params["train"]
    is_pretrained = train["init_from"] or preset["pretrained"]
    average = f", moving average {train['ema']:g}" if train["ema"] else ""
    return {
        "initial weights": "pretrained" if is_pretrained else "random",
        "epochs": f"{train['epochs']}, {preset['batch_size']} images a step",
        "optimizer": f"{train['optimizer']}, learning rate {preset['learning_rate']:g}, "
        f"{train['schedule']} with {100 * train['warmup']:g} % warmup",
        "loss": f"{train['loss']['kind']}",
        "weights": f"of the best validation{average}",
        "seed": str(params["seed"]),
    }


def _describe_policy(policy: ThresholdParams) -> str:
    scopes = {"global": "one for all tags", "category": "one for each category"}
    objective = thresholds.describe(policy.objective, policy.target)
    return f"{objective}, {scopes.get(policy.kind, 'one for each tag')}"


def _files(folder: Path) -> list[tuple[str, str, str]]:
    """Return name, use and size in MB of each file with weights."""
    return [
        (name, use, f"{(folder / name).stat().st_size / 1e6:.1f}")
        for name, use in _USES.items()
        if (folder / name).is_file()
    ]
