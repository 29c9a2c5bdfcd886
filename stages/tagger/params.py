"""The parameters of every stage: `params.yaml`, checked at the door."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tagger.errors import TaggerError, did_you_mean
from tagger.images import WHITE
from tagger.vocabulary import Category

PATH = Path("params.yaml")

Byte = Annotated[int, Field(ge=0, le=255)]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Preset(Frozen):
    """One entry of `models:`, everything that differs between backbones."""

    backbone: str  # timm name, "eva02_large_patch14_clip_336.merged2b"
    image_size: PositiveInt  # pixels, square
    batch_size: int = Field(ge=2)  # pictures per optimizer step; batch norm needs two
    learning_rate: PositiveFloat  # peak, after warmup
    layer_decay: float = Field(gt=0, le=1)  # learning rate of a layer over that of the next
    drop_path: float = Field(ge=0, lt=1)  # share of residual branches left out in training
    pretrained: bool | str  # from scratch, timm's weights from the hub, or a weights file
    model_args: dict[str, Any] = {}  # further arguments of the backbone's constructor


class Demo(Frozen):
    pictures: PositiveInt
    size: int = Field(ge=16)  # pixels, square


class Fetch(Frozen):
    """How the pictures of `danbooru` are had from the hub."""

    repo: str | None  # data set on the hub; null: only what is there already
    revision: str
    tag_tables: str | None  # data set on the hub with `tags.csv` and `tag_aliases.csv`
    how: Literal["auto", "shards", "members"]  # whole tars, or only the wanted members of each
    connections: PositiveInt  # at a time


class Filters(Frozen):
    """Which posts are wanted; null and empty lists want all."""

    ratings: list[Literal["general", "sensitive", "questionable", "explicit"]] | None
    min_score: int | None
    max_score: int | None
    after: date | None  # first day, UTC
    before: date | None  # the first day no longer wanted, UTC
    min_id: int | None
    max_id: int | None
    keep_deleted: bool
    keep_banned: bool
    min_tags: NonNegativeInt  # general tags on a post
    min_side: NonNegativeInt  # pixels, of the shorter side
    max_aspect: float | None = Field(ge=1)  # longer side over shorter
    required: list[str]  # globs; each must match a tag
    excluded: list[str]  # globs; none may match a tag
    max_posts_per_tag: PositiveInt | None
    capped: list[Category]
    sample: PositiveInt | None  # posts, drawn by id
    seed: NonNegativeInt  # of the draws of the two before


class Groups(Frozen):
    """Which posts are never parted by a split."""

    parents: bool  # parent and child posts
    duplicates: bool  # the same file twice
    near: int | None = Field(ge=0, le=31)  # bits of 256 in which PDQ hashes may differ


class Copies(Frozen):
    """A smaller copy of the pictures, in tars."""

    side: PositiveInt | None  # pixels, the longest that the shorter side may be; null: no copy
    folder: Path
    form: Literal["webp", "jpeg"]
    quality: int = Field(ge=1, le=100)
    shard_size: PositiveInt  # megabytes


class Prepare(Frozen):
    source: Literal["folder", "table", "danbooru"]
    path: Path  # a folder of pictures with sidecars, a table, or Danbooru's metadata.parquet
    more_folders: list[Path]  # folder: further ones
    pictures: Path  # table, danbooru: where the pictures are
    separator: str = Field(min_length=1)  # between the tags of a text
    path_column: str  # table
    tag_column: str  # table
    rules: Path  # folder of tags, tag_aliases, tag_implications and renames, each where it is there
    verify: Literal["none", "header", "decode"]
    animated: Literal["first", "drop"]  # take the first frame, or leave the picture out
    fetch: Fetch
    filters: Filters
    groups: Groups
    copies: Copies

    @property
    def folders(self) -> list[Path]:
        """The folders of pictures that `folder` reads; none for another source."""
        return [self.path, *self.more_folders] if self.source == "folder" else []

    @property
    def rule_folders(self) -> list[Path]:
        """Where tables of tags may be: the user's own first, then those that came with the data."""
        beside = [self.path.parent] if self.source == "danbooru" else self.folders
        return [self.rules, *beside]


class Vocabulary(Frozen):
    source: Path  # data/tags.parquet, or a selected_tags.csv
    min_count: NonNegativeInt  # posts
    min_counts: dict[Category, NonNegativeInt]  # where it is another
    categories: list[Category]
    max_tags: PositiveInt | None  # the most frequent stay
    max_tags_of: dict[Category, NonNegativeInt]
    include: list[str]  # globs of tags that stay whatever the rest says
    exclude: list[str]  # globs


class Split(Frozen):
    method: Literal["stratified", "iterative", "random", "hash", "modulo", "time", "given"]
    train: PositiveFloat  # share of the posts; the three sum to 1
    validation: PositiveFloat
    test: PositiveFloat
    order: Literal[1, 2]  # stratified, iterative: single tags, or pairs of them, too
    given: Path  # given: a table that names the part of each post
    id_column: str
    split_column: str

    @property
    def proportions(self) -> tuple[float, float, float]:
        return self.train, self.validation, self.test

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(sum(self.proportions) - 1) > 1e-6:
            raise ValueError(f"train, validation and test sum to {sum(self.proportions):g}, not 1")
        return self


class Train(Frozen):
    epochs: PositiveInt
    warmup: float = Field(ge=0, lt=1)  # share of all steps
    weight_decay: NonNegativeFloat
    loss: Literal["bce", "asymmetric"]
    gamma_negative: NonNegativeFloat  # asymmetric loss only
    gamma_positive: NonNegativeFloat
    clip: float = Field(ge=0, lt=1)  # probability by which negatives are shifted
    flip: float = Field(ge=0, le=1)  # share of pictures mirrored
    min_crop: float = Field(gt=0, le=1)  # smallest share of the picture's area that a crop keeps
    random_resize: bool  # by any filter, in place of the backbone's
    trivial_augment: bool  # changes shapes and colours
    mixup: NonNegativeFloat  # alpha
    cutout: float = Field(ge=0, le=1)  # side of a square cut out over that of the picture
    fit: Literal["pad", "crop", "stretch"]  # of a picture into the model's square
    background: tuple[Byte, Byte, Byte]  # R, G, B, under transparency and beside the picture
    sizes: list[PositiveInt]  # pixels, one drawn for each batch; none: the preset's alone
    max_unreadable: float = Field(ge=0, le=1)  # share of the pictures; beyond it training stops
    precision: Literal["fp32", "bf16"]  # of the forward pass on CUDA; a CPU computes in fp32
    workers: NonNegativeInt  # processes that read pictures

    @model_validator(mode="after")
    def _keeps_the_background(self) -> Self:
        if self.fit != "pad" and self.background != WHITE:
            raise ValueError(f"a background other than white needs fit: pad, not {self.fit}")
        return self


class Evaluate(Frozen):
    threshold: Literal["global", "category"]
    batch_size: PositiveInt
    workers: NonNegativeInt


class Export(Frozen):
    opset: int = Field(ge=13, le=17)  # older runtimes refuse newer ones
    parity_pictures: PositiveInt  # test pictures on which torch and ONNX are compared
    tolerance: PositiveFloat  # largest difference of a probability


_AUTO = BeforeValidator(lambda value: None if value == "auto" else value)


class Infer(Frozen):
    model: Path  # an export folder, an ONNX file in one, or a training folder
    batch_size: Annotated[PositiveInt | None, _AUTO]  # pictures; auto: as suits the device
    workers: Annotated[NonNegativeInt | None, _AUTO]  # that decode; auto: one per core
    timeout: PositiveFloat  # seconds to decode a picture
    lang: Literal["en", "zh"]


class Params(Frozen):
    seed: NonNegativeInt
    model: str  # the preset to train, a key of `models`
    models: dict[str, Preset]
    demo: Demo
    prepare: Prepare
    vocabulary: Vocabulary
    split: Split
    train: Train
    evaluate: Evaluate
    export: Export
    infer: Infer

    @property
    def preset(self) -> Preset:
        return self.models[self.model]


def load(path: Path = PATH) -> Params:
    """Return the checked parameters.

    Raises TaggerError with one line for an unknown key, a wrong type, a value out of range.
    """
    content = _read(path)
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise TaggerError(f"{path}: {_explain(error)}") from None
    if params.model not in params.models:
        hint = did_you_mean(params.model, params.models)
        known = ", ".join(params.models)
        raise TaggerError(f"{path}: Unknown preset {params.model!r}.{hint} Presets: {known}.")
    return params


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaggerError(f"{path} is missing. Run from the root of the project.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaggerError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TaggerError(f"{path} holds no parameters. Restore it from Git.")
    return content


def _explain(mistakes: ValidationError) -> str:
    # A misspelt key is also a missing one: say what is wrong, not what follows from it.
    error = min(mistakes.errors(), key=lambda error: error["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in error["loc"] if part not in ("bool", "str"))
    if error["type"] == "extra_forbidden":
        *owner, key = error["loc"]
        return f"Unknown key {where}.{did_you_mean(str(key), _keys(owner))}"
    if error["type"] == "missing":
        return f"{where} is missing. Add it, or restore {PATH} from Git."
    if error["type"] == "value_error":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}."
    return f"{where} is {error['input']!r}. {error['msg']}."


def _keys(owner: list[str | int]) -> list[str]:
    """Return the keys known at a place of params.yaml, such as models.convnext."""
    if owner and owner[0] == "models":
        return list(Preset.model_fields)
    section: Any = Params
    for name in owner:
        section = section.model_fields[str(name)].annotation
    return list(getattr(section, "model_fields", []))
