"""The parameters of training: presets, which are backbones, and the recipe they share."""

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
    """`1 epoch`, `500 steps`, `5 minutes`."""

    number: float
    unit: str  # epoch, step or minute

    def __str__(self) -> str:
        return f"{self.number:.15g} {self.unit}{'s' if self.number != 1 else ''}"


def _parse_interval(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    match = re.fullmatch(r"(\d*\.?\d+) *(epoch|step|minute)s?", str(value))
    if not match or not float(match[1]):
        raise ValueError(f"{value!r} is not like '1 epoch', '500 steps' or '5 minutes'")
    return Interval(float(match[1]), match[2])


def _check_stages(value: Any) -> Any:
    if value == "all" or str(value).isdecimal():
        return value
    raise ValueError(f"{value!r} is neither a number of stages, 0 or more, nor 'all'")


IntervalField = Annotated[Interval, BeforeValidator(_parse_interval), PlainSerializer(str)]
FrozenStages = Annotated[int | Literal["all"], BeforeValidator(_check_stages)]
AUTO = BeforeValidator(lambda value: None if value == "auto" else value)


class Preset(Frozen):
    """An entry of `models`: everything that differs between backbones."""

    backbone: str  # timm's name, "eva02_large_patch14_clip_336.merged2b"
    image_size: Annotated[PositiveInt, Field(le=4_096)]  # pixels, square
    batch_size: int = Field(ge=2)  # images per optimizer step, over all processes
    learning_rate: PositiveFloat  # peak, after warmup
    layer_decay: float = Field(gt=0, le=1)  # learning rate of a layer over that of the next
    drop_path: float = Field(ge=0, lt=1)  # fraction of residual branches dropped in training
    pretrained: bool | str  # no, timm's weights, or a file, a folder or hf-hub:owner/name
    model_args: dict[str, Any] = Field(default_factory=dict)  # more arguments of its constructor
    train: dict[str, Any] = Field(default_factory=dict)  # overrides; `Params.train` has them


class LossParams(Frozen):
    kind: Literal["bce", "asymmetric", "focal", "two_way"]
    reduction: Literal["sum", "mean"]  # over tags; over images it is the mean
    gamma_negative: NonNegativeFloat  # asymmetric: exponent of the focus on hard negatives
    gamma_positive: NonNegativeFloat  # asymmetric: exponent of the focus on hard positives
    clip: float = Field(ge=0, lt=1)  # asymmetric: negatives below this probability do not count
    gamma: NonNegativeFloat  # focal: exponent of the focus on hard labels
    temperature: PositiveFloat  # two_way: of the positives
    smoothing: Fraction  # of the way from a label to 0.5
    tag_weights: Literal["none", "log_count"]


class AugmentParams(Frozen):
    flip: Fraction  # of images to mirror
    min_crop: float = Field(gt=0, le=1)  # smallest fraction of the image's area in a random crop
    random_resize: bool  # by a random filter instead of the backbone's
    trivial_augment: bool  # changes shapes and colours
    mixup: NonNegativeFloat  # alpha of the beta distribution of the ratio; 0: off
    cutmix: NonNegativeFloat  # alpha of the beta distribution of the area; 0: off
    cutout: Fraction  # side of a square that is cut out, over the image's; 0: off
    sizes: list[PositiveInt]  # pixels; each batch has one of them or the preset's, at random


class TrainParams(Frozen):
    epochs: PositiveInt
    optimizer: str  # timm's name
    weight_decay: NonNegativeFloat  # not on norms and biases
    schedule: Literal["cosine", "one_cycle"]  # of the learning rate
    warmup: float = Field(ge=0, lt=1)  # fraction of all steps
    clip_grad_norm: PositiveFloat | None  # L2 norm of the whole gradient; None: not clipped
    ema: float = Field(ge=0, lt=1)  # decay of the moving average of the weights; 0: none
    loss: LossParams
    unlabelled: list[Category]  # their tags are unknown on a post that has none of them
    augment: AugmentParams
    fit: Literal["pad", "crop", "stretch"]  # how an image fits the model's square
    background: tuple[Byte, Byte, Byte]  # R, G, B, under transparency and beside the image
    head: Literal["linear", "query"]
    init_from: Path | None  # folder of a trained tagger
    new_tags: Literal["related", "mean", "fresh"]  # init_from: their first rows of the head
    freeze: FrozenStages  # stages of the backbone from the input on
    unfreeze_every: PositiveInt | None  # epochs until one more stage trains
    cache_embeddings: bool  # freeze: all: run the backbone once per image
    resume_from: Path | None  # snapshot
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, AUTO]  # None: by the device
    micro_batch: Annotated[PositiveInt | None, AUTO]  # images on each device; None: by its memory
    gradient_checkpointing: bool
    compile: bool
    parallel: Literal["ddp", "fsdp"]
    workers: NonNegativeInt  # processes that read images, for each device
    validate_every: IntervalField  # not in minutes
    validate_on: PositiveInt  # images at most
    best_metric: Literal["macro_ap", "micro_ap", "validation_loss"]
    patience: PositiveInt | None  # validations without improvement; None: no end
    snapshot_every: IntervalField
    keep_every: IntervalField | None  # not in minutes; None: keep only best and last
    max_nonfinite_steps: NonNegativeInt
    max_unreadable: Fraction  # of the images

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
            interval: Interval | None = getattr(self, name)
            if interval and interval.unit == "minute":
                raise ValueError(f"{name}: {interval} would differ each time. Give epochs or steps")
        return self

    @model_validator(mode="after")
    def _check_starting_point(self) -> Self:
        if self.init_from and self.resume_from:
            raise ValueError(
                "init_from starts a training and resume_from continues one: give one of them"
            )
        return self
