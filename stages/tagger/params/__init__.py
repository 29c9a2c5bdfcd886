"""The parameters of every stage: `params.yaml`, checked when it is read."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_origin

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tagger.core.errors import ArgumentParser, TaggerError, did_you_mean, one_line
from tagger.core.vocabulary import Category
from tagger.params.base import Frozen
from tagger.params.prepare import (
    CopiesParams,
    DownloadParams,
    FilterParams,
    GroupParams,
    PrepareParams,
)
from tagger.params.train import AUTO, AugmentParams, Interval, LossParams, Preset, TrainParams

__all__ = [
    "AugmentParams",
    "CopiesParams",
    "DownloadParams",
    "FilterParams",
    "GroupParams",
    "Interval",
    "LossParams",
    "PrepareParams",
    "Preset",
    "ThresholdParams",
    "TrainParams",
]

PATH = Path("params.yaml")

F = TypeVar("F", bound=Frozen)


class DemoParams(Frozen):
    images: PositiveInt
    size: int = Field(ge=16)  # pixels, square


class VocabularyParams(Frozen):
    source: Path  # data/tags.parquet, or a selected_tags.csv
    min_count: NonNegativeInt  # posts
    min_counts: dict[Category, NonNegativeInt]  # where it is another
    categories: list[Category]
    max_tags: PositiveInt | None  # the most frequent stay
    max_tags_of: dict[Category, NonNegativeInt]
    include: list[str]  # globs of tags that stay whatever the rest says
    exclude: list[str]  # globs


class SplitParams(Frozen):
    method: Literal["stratified", "iterative", "random", "hash", "modulo", "time", "given"]
    train: PositiveFloat  # fractions of the posts, which sum to 1
    validation: PositiveFloat
    test: PositiveFloat
    order: Literal[1, 2]  # stratified, iterative: 2 balances pairs of tags, too
    table: Path  # given: a table with the split of each post
    id_column: str
    split_column: str

    @property
    def fractions(self) -> tuple[float, float, float]:
        return self.train, self.validation, self.test

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"train, validation and test sum to {sum(self.fractions):g}, not 1")
        return self


class ThresholdParams(Frozen):
    """Which threshold each tag has, and what it is fitted for."""

    kind: Literal["global", "category", "tag"]
    objective: Literal["f1", "precision_recall", "precision", "recall"]
    target: float | None = Field(gt=0, le=1)  # the precision or recall to reach

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        if (self.target is None) == (self.objective in ("precision", "recall")):
            wants = "needs a target, such as 0.9" if self.target is None else "takes no target"
            raise ValueError(f"threshold.objective: {self.objective} {wants}")
        return self


class EvaluateParams(Frozen):
    threshold: ThresholdParams
    batch_size: PositiveInt
    workers: NonNegativeInt

    @property
    def loading(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "workers": self.workers}


class ExportParams(Frozen):
    opset: int = Field(ge=13, le=17)  # older runtimes refuse newer ones
    parity_images: PositiveInt  # test images on which every tool is compared with the model
    tolerance: PositiveFloat  # largest difference in confidence, for the same preprocessing
    min_agreement: float = Field(ge=0, le=1)  # warn if the fraction of the same tags is smaller
    quantize: list[Literal["fp16", "int8"]]
    evaluate_on: PositiveInt  # test images at most to evaluate quantized weights on
    max_metric_drop: NonNegativeFloat  # in macro AP, macro F1 or micro F1
    min_speedup: NonNegativeFloat  # of int8 over fp32
    samples: NonNegativeInt  # test images to ship with the export


class InferParams(Frozen):
    model: Path  # an export folder, an ONNX file in one, or a training folder
    batch_size: Annotated[PositiveInt | None, AUTO]  # images; auto: as suits the device
    workers: Annotated[NonNegativeInt | None, AUTO]  # that decode; auto: one per core
    timeout: PositiveFloat  # seconds to decode an image
    calibrated: bool  # confidences by the temperatures fitted
    lang: Literal["en", "zh"]


class Params(Frozen):
    seed: NonNegativeInt
    model: str  # the preset to train, a key of `models`
    models: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Preset]
    demo: DemoParams
    prepare: PrepareParams
    vocabulary: VocabularyParams
    split: SplitParams
    train: TrainParams  # with the values of the preset in place of its own
    evaluate: EvaluateParams
    export: ExportParams
    infer: InferParams

    @property
    def preset(self) -> Preset:
        return self.models[self.model]


def load_for_stage(description: str | None) -> Params:
    """Return the parameters of a stage, which takes no argument but `--help`."""
    epilog = f"It takes no arguments: {PATH} sets what it does, and `dvc repro` runs it."
    ArgumentParser(description=description, epilog=epilog).parse_args()
    return load()


def load(path: Path = PATH) -> Params:
    """Return the checked parameters.

    Raises TaggerError with one line for an unknown key, a wrong type or a value out of range.
    """
    return parse(_read(path), str(path))


def parse(content: dict[str, Any], file: str = str(PATH)) -> Params:
    """Return the parameters of a mapping laid out like the file, which errors name."""
    params = _check(Params, content, file)
    if params.model not in params.models:
        hint = did_you_mean(params.model, params.models)
        presets = ", ".join(params.models)
        raise TaggerError(f"{file}: Unknown preset {params.model!r}.{hint} Presets: {presets}.")
    train = merge(params.train.model_dump(), params.preset.train)
    where = f"{file}: models.{params.model}.train"
    return params.model_copy(update={"train": _check(TrainParams, train, where)})


def _check(model: type[F], content: dict[str, Any], where: str) -> F:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise TaggerError(f"{where}: {_explain(error, model)}") from None


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a nested mapping with the values of another in place of its own."""
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaggerError(f"{path} is missing. Run from the root of the project.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaggerError(f"{path} cannot be read as YAML: {one_line(error)}.") from None
    if not isinstance(content, dict):
        raise TaggerError(f"{path} contains no parameters. Restore it from Git.")
    return content


def _explain(errors: ValidationError, owner: type[Frozen]) -> str:
    # A misspelt key is also a missing one, and only the first helps.
    error = min(errors.errors(), key=lambda error: error["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in error["loc"] if part not in ("bool", "str"))
    if error["type"] == "extra_forbidden":
        *section, key = error["loc"]
        return f"Unknown key {where}.{did_you_mean(str(key), _keys(section, owner))}"
    if error["type"] == "missing":
        return f"{where} is missing. Add it, or restore {PATH} from Git."
    if error["type"] == "value_error":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}.".removeprefix(": ")
    return f"{where} is {error['input']!r}. {error['msg']}."


def _keys(path: list[str | int], root: type[Frozen]) -> list[str]:
    """Return the keys of a section, such as models.convnext."""
    section: Any = root
    for name in path:
        if section is dict:
            section = Preset
        else:
            section = section.model_fields[str(name)].annotation
            section = get_origin(section) or section
    return list(getattr(section, "model_fields", []))
