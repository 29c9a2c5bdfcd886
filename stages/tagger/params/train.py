"""The parameters of training: the presets, which are backbones, and the recipe."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tagger.core.colours import WHITE
from tagger.core.vocabulary import Category
from tagger.params.base import Byte, Fraction, Frozen


class Interval(NamedTuple):
    """How often something is done: `1 epoch`, `500 steps`, `5 minutes`."""

    number: float
    unit: str  # epoch, step or minute

    def __str__(self) -> str:
        return f"{self.number:.15g} {self.unit}{'s' if self.number != 1 else ''}"


def _parse_interval(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    found = re.fullmatch(r"(\d*\.?\d+) *(epoch|step|minute)s?", str(value))
    if not found or not float(found[1]):
        raise ValueError(f"{value!r} is not like '1 epoch', '500 steps' or '5 minutes'")
    return Interval(float(found[1]), found[2])


IntervalField = Annotated[Interval, BeforeValidator(_parse_interval), PlainSerializer(str)]
AUTO = BeforeValidator(lambda value: None if value == "auto" else value)


def _check_stages(value: Any) -> Any:
    if value == "all" or str(value).isdecimal():
        return value
    raise ValueError(f"{value!r} is neither a number of stages, 0 or more, nor 'all'")


FrozenStages = Annotated[int | Literal["all"], BeforeValidator(_check_stages)]


class Preset(Frozen):
    """One entry of `models:`, everything that differs between backbones."""

    backbone: str  # timm name, "eva02_large_patch14_clip_336.merged2b"
    image_size: Annotated[PositiveInt, Field(le=4_096)]  # pixels, square
    batch_size: int = Field(ge=2)  # pictures per optimizer step, over all processes
    learning_rate: PositiveFloat  # peak, after warmup
    layer_decay: float = Field(gt=0, le=1)  # learning rate of a layer over that of the next
    drop_path: float = Field(ge=0, lt=1)  # share of residual branches left out in training
    pretrained: bool | str  # from scratch, timm's weights, or a file, folder or hf-hub:owner/name
    model_args: dict[str, Any] = Field(default_factory=dict)  # more of its constructor's
    train: dict[str, Any] = Field(default_factory=dict)  # keys of `train`, where it wants others


class LossParams(Frozen):
    kind: Literal["bce", "asymmetric", "focal", "two_way"]
    reduction: Literal["sum", "mean"]  # over tags; over pictures it is the mean
    gamma_negative: NonNegativeFloat  # asymmetric
    gamma_positive: NonNegativeFloat  # asymmetric
    clip: float = Field(ge=0, lt=1)  # asymmetric: probability by which negatives are shifted
    gamma: NonNegativeFloat  # focal
    temperature: PositiveFloat  # two_way, of the positives
    smoothing: Fraction  # of labels, toward a half
    tag_weights: Literal["none", "log_count"]


class AugmentParams(Frozen):
    flip: Fraction  # of the pictures mirrored
    min_crop: float = Field(gt=0, le=1)  # smallest share of the picture's area that a crop keeps
    random_resize: bool  # by any filter, in place of the backbone's
    trivial_augment: bool  # changes shapes and colours
    mixup: NonNegativeFloat  # alpha
    cutmix: NonNegativeFloat  # alpha
    cutout: Fraction  # side of a square cut out over that of the picture
    sizes: list[PositiveInt]  # pixels, one drawn for each batch; none: the preset's alone


class TrainParams(Frozen):
    epochs: PositiveInt
    optimizer: str  # timm's name
    weight_decay: NonNegativeFloat
    schedule: Literal["cosine", "one_cycle"]
    warmup: float = Field(ge=0, lt=1)  # share of all steps
    clip_grad_norm: PositiveFloat | None  # of the gradient; null: not clipped
    ema: float = Field(ge=0, lt=1)  # decay of the moving average of the weights
    loss: LossParams
    unlabelled: list[Category]  # where a post has no tag of one, its tags there are unknown
    augment: AugmentParams
    fit: Literal["pad", "crop", "stretch"]  # of a picture into the model's square
    background: tuple[Byte, Byte, Byte]  # R, G, B, under transparency and beside the picture
    head: Literal["linear", "query"]
    init_from: Path | None  # folder of a trained tagger
    new_tags: Literal["related", "mean", "fresh"]  # what its rows begin as
    freeze: FrozenStages  # of the backbone, from the input on, or all of it
    unfreeze_every: PositiveInt | None  # epochs, after each of which one more stage is trained
    cache_embeddings: bool  # freeze: all: let the backbone see each picture once
    resume_from: Path | None  # snapshot
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, AUTO]  # of the forward pass
    micro_batch: Annotated[PositiveInt | None, AUTO]  # pictures at a time on each device
    gradient_checkpointing: bool
    compile: bool
    parallel: Literal["ddp", "fsdp"]
    workers: NonNegativeInt  # processes that read pictures, for each training process
    validate_every: IntervalField
    validate_on: PositiveInt  # pictures at most
    best_metric: Literal["macro_ap", "micro_ap", "validation_loss"]
    patience: PositiveInt | None  # validations without a better one
    snapshot_every: IntervalField
    keep_every: IntervalField | None
    max_nonfinite_steps: NonNegativeInt  # of which the loss or gradient is no number
    max_unreadable: Fraction  # of the pictures; beyond it training stops

    @model_validator(mode="after")
    def _check_background(self) -> Self:
        if self.fit != "pad" and self.background != WHITE:
            raise ValueError(f"a background other than white needs fit: pad, not {self.fit}")
        return self

    @model_validator(mode="after")
    def _check_cached_embeddings(self) -> Self:
        if self.cache_embeddings and (
            self.freeze != "all" or self.unfreeze_every or self.head != "linear"
        ):
            raise ValueError(
                "cache_embeddings needs freeze: all, no unfreeze_every and head: linear"
            )
        return self

    @model_validator(mode="after")
    def _check_intervals(self) -> Self:
        for name in ("validate_every", "keep_every"):
            often = getattr(self, name)
            if often and often.unit == "minute":
                raise ValueError(f"{name}: {often} would differ each time. Give epochs or steps")
        return self

    @model_validator(mode="after")
    def _check_starting_point(self) -> Self:
        if self.init_from and self.resume_from:
            raise ValueError("init_from starts anew and resume_from goes on: give one of them")
        return self
