"""params.yaml is checked when it is read: a mistake is one line that says where and what."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from tagger import params
from tagger.core.errors import TaggerError
from tagger.params import Interval, Params, TrainParams
from tagger.params.train import IntervalField

Edit = Callable[[str, object], Path]


@pytest.fixture
def edit(root: Path, tmp_path: Path) -> Edit:
    """Write params.yaml with another value at a dotted path; None removes the key."""

    def edit(where: str, value: object) -> Path:
        content = yaml.safe_load((root / params.PATH).read_text(encoding="utf-8"))
        *owners, key = where.split(".")
        section = content
        for owner in owners:
            section = section[owner]
        section.pop(key, None)
        if value is not None:
            section[key] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return edit


def fields(model: type[BaseModel]) -> set[str]:
    """Return the dotted path of every field of a model that is no model itself."""
    paths = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            paths |= {f"{name}.{path}" for path in fields(inner)}
        else:
            paths.add(name)
    return paths


def keys(content: dict[str, Any]) -> set[str]:
    """Return the dotted path of every value of params.yaml but the presets."""
    paths = set()
    for key, value in content.items():
        inner = keys(value) if isinstance(value, dict) else set()
        paths |= {f"{key}.{path}" for path in inner} if inner else {key}
    return {path for path in paths if not path.startswith("models.")}


def test_params_yaml_sets_every_parameter_and_no_other(root: Path) -> None:
    content = yaml.safe_load((root / params.PATH).read_text(encoding="utf-8"))
    assert keys(content) == fields(Params) - {"models"}
    for preset in content["models"].values():
        assert preset.keys() | {"model_args", "train"} == fields(params.Preset)


def explained(text: str) -> set[str]:
    """Return the dotted path of every key that has a comment beside it."""
    lines = text.splitlines()
    paths = set()

    def walk(mapping: yaml.MappingNode, owner: str) -> None:
        for key, value in mapping.value:
            path = f"{owner}{key.value}"
            if isinstance(value, yaml.MappingNode) and value.value:
                walk(value, f"{path}.")
            elif re.search(r" #\s+\S.*\w", lines[key.start_mark.line]):
                paths.add(path)

    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    walk(root, "")
    return paths


def test_every_key_of_params_yaml_is_explained_beside_it(root: Path) -> None:
    text = (root / params.PATH).read_text(encoding="utf-8")
    assert fields(Params) - {"models"} - explained(text) == set()


def test_every_parameter_is_read_by_the_code(root: Path) -> None:
    sources = (path.read_text(encoding="utf-8") for path in (root / "stages").rglob("*.py"))
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    parameters = {*fields(Params), *(f"models.{name}" for name in params.Preset.model_fields)}
    assert {path for path in parameters if path.rpartition(".")[2] not in read} == set()


def test_every_preset_field_is_explained_above_the_presets(root: Path) -> None:
    text = (root / params.PATH).read_text(encoding="utf-8")
    explained = text[text.index("# What differs") : text.index("\nmodels:")]
    for field in params.Preset.model_fields:
        assert f"{field}:" in explained


def test_presets_are_the_documented_ones(default_params: Params) -> None:
    laptop = {"mobilenetv4", "convnext", "vit", "swin", "eva02"}
    assert default_params.models.keys() == laptop | {
        "convnext_base",
        "vit_base",
        "swinv2_base",
        "eva02_large",
    }
    assert {
        name for name, preset in default_params.models.items() if not preset.pretrained
    } == laptop
    assert default_params.preset == default_params.models["mobilenetv4"]


def test_params_are_frozen(default_params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        default_params.train.epochs = 1


def test_unknown_key_is_refused_with_a_suggestion(edit: Edit) -> None:
    path = edit("models.convnext.lerning_rate", 0.1)
    message = "Unknown key models.convnext.lerning_rate. Did you mean 'learning_rate'?"
    with pytest.raises(TaggerError) as caught:
        params.load(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("key", "typo", "value"),
    [
        ("models.convnext.learning_rate", "models.convnext.lerning_rate", 0.1),
        ("train.epochs", "train.epoch", 3),
        ("infer", "infers", {"model": "x"}),
    ],
)
def test_misspelt_key_is_unknown_not_missing(
    edit: Edit, tmp_path: Path, key: str, typo: str, value: object
) -> None:
    content = yaml.safe_load(edit(key, None).read_text())
    owner = content
    for part in typo.split(".")[:-1]:
        owner = owner[part]
    owner[typo.split(".")[-1]] = value
    path = tmp_path / "misspelt.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(TaggerError, match=rf"Unknown key {typo}\. Did you mean"):
        params.load(path)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("tain", {}, r"Unknown key tain\. Did you mean 'train'\?"),
        ("model", "mobilnetv4", r"Unknown preset 'mobilnetv4'\. Did you mean 'mobilenetv4'\?.*vit"),
        ("train.epochs", None, r"train\.epochs is missing\."),
        ("train", None, r"train is missing\."),
        ("train", "fast", r"train is 'fast'\."),
        ("train.epochs", "many", r"train\.epochs is 'many'\..*integer"),
        ("train.epochs", 2.5, r"train\.epochs is 2\.5\..*integer"),
        ("train.epochs", 0, r"train\.epochs is 0\..*greater than 0"),
        ("train.epochs", [3], r"train\.epochs is \[3\]\."),
        ("train.loss.kind", "fokal", r"train\.loss\.kind is 'fokal'\..*'bce', 'asymmetric', 'foc"),
        ("train.loss", "focal", r"train\.loss is 'focal'\..*dictionary"),
        (
            "train.loss.smothing",
            0.1,
            r"Unknown key train\.loss\.smothing\. Did you mean 'smoothing",
        ),
        ("train.augment.mix_up", 1, r"Unknown key train\.augment\.mix_up\. Did you mean 'mixup'\?"),
        ("prepare.groups.nears", 1, r"Unknown key prepare\.groups\.nears\. Did you mean 'near'\?"),
        ("train.loss.gamma", None, r"train\.loss\.gamma is missing\."),
        ("train.unlabelled", ["ratings"], r"train\.unlabelled\.0 is 'ratings'\..*'rating'"),
        ("train.augment.sizes", [96, 0], r"train\.augment\.sizes\.1 is 0\..*greater than 0"),
        ("train.micro_batch", 0, r"train\.micro_batch is 0\..*greater than 0"),
        ("train.precision", "fp8", r"train\.precision is 'fp8'\..*'fp32', 'bf16' or 'fp16'"),
        ("train.validate_every", "", r"train\.validate_every: '' is not like '1 epoch', '500 st"),
        ("train.keep_every", "5", r"train\.keep_every: '5' is not like '1 epoch', '500 steps' or"),
        ("train.validate_every", "5 minutes", r"train: validate_every: 5 minutes would differ"),
        ("train.keep_every", "1 minute", r"train: keep_every: 1 minute would differ each time\. G"),
        ("train.cache_embeddings", True, r"train: cache_embeddings needs freeze: all, no unfreeze"),
        ("train.warmup", 1.0, r"train\.warmup is 1\.0\..*less than 1"),
        ("train.augment.min_crop", 0, r"train\.augment\.min_crop is 0\..*greater than 0"),
        ("train.loss.clip", float("nan"), r"train\.loss\.clip is nan\..*finite"),
        ("seed", -1, r"seed is -1\..*greater than or equal to 0"),
        ("export.opset", 18, r"export\.opset is 18\..*17"),
        ("demo.size", 8, r"demo\.size is 8\..*16"),
        ("prepare.separator", "", r"prepare\.separator is ''\.."),
        ("models.vit.image_size", -96, r"models\.vit\.image_size is -96\..*greater than 0"),
        ("models.vit.batch_size", 1, r"models\.vit\.batch_size is 1\..*or equal to 2"),
        ("models.vit.pretrained", 3.5, r"models\.vit\.pretrained is 3\.5\."),
        ("models.vit.layer_decay", 1.1, r"models\.vit\.layer_decay is 1\.1\..*less than or equal"),
        ("split.test", 0.3, r"split: train, validation and test sum to 1\.2, not 1\."),
        ("split.test", 0, r"split\.test is 0\..*greater than 0"),
    ],
)
def test_mistake_is_one_line_with_place_and_reason(
    edit: Edit, where: str, value: object, message: str
) -> None:
    path = edit(where, value)
    with pytest.raises(TaggerError, match=rf"\A{re.escape(str(path))}: {message}[^\n]*\Z"):
        params.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1, 2", "cannot be read as YAML"),
        (b"\xff\xfe\x00train", "cannot be read as YAML"),
        (b"", "contains no parameters"),
        (b"- 1\n- 2\n", "contains no parameters"),
        (b"42", "contains no parameters"),
    ],
)
def test_file_without_parameters_is_refused_in_one_line(
    write_file: Callable[[str, bytes], Path], content: bytes, message: str
) -> None:
    path = write_file("params.yaml", content)
    with pytest.raises(TaggerError, match=rf"\A{re.escape(str(path))} {message}[^\n]*\Z"):
        params.load(path)


def test_missing_file_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"params\.yaml is missing\. Run from the root"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["3e-05", "1e-4", "3E-5", "0.00003"])
def test_numbers_that_yaml_reads_as_text_are_numbers(edit: Edit, text: str) -> None:
    path = edit("models.vit.learning_rate", 777)
    path.write_text(path.read_text().replace("777", text))
    assert params.load(path).models["vit"].learning_rate == float(text)


def test_whole_numbers_value_as_text_are_numbers(edit: Edit) -> None:
    assert params.load(edit("train.epochs", "20")).train.epochs == 20


@pytest.mark.parametrize("value", [True, False, "weights/base.safetensors"])
def test_pretrained_is_a_choice_or_a_file(edit: Edit, value: bool | str) -> None:
    read = params.load(edit("models.vit.pretrained", value)).models["vit"].pretrained
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("1 epoch", 1, "epoch"),
        ("2 epochs", 2, "epoch"),
        ("0.5 epochs", 0.5, "epoch"),
        (".25 epochs", 0.25, "epoch"),
        ("500 steps", 500, "step"),
        ("1 step", 1, "step"),
        ("1000000 steps", 1_000_000, "step"),
        ("5minutes", 5, "minute"),
    ],
)
def test_interval_is_a_number_and_a_unit(edit: Edit, text: str, number: float, unit: str) -> None:
    read = params.load(edit("train.snapshot_every", text)).train.snapshot_every
    assert read == Interval(number, unit)


NOT_TEXT = [3, 1.5, True, ["1 epoch"]]
NOT_INTERVALS = ["", "epoch", "1", "every epoch", "1 hour", "1 epoch 5", "1,5 epochs"]
NOT_OVER_0 = ["0 epochs", "0.0 steps", "-1 epoch", "nan steps", "inf epochs"]


@pytest.mark.parametrize("text", [*NOT_TEXT, *NOT_INTERVALS, *NOT_OVER_0])
def test_invalid_interval_is_refused_with_examples(edit: Edit, text: object) -> None:
    path = edit("train.snapshot_every", text)
    message = (
        rf"train\.snapshot_every: {re.escape(repr(text))} is not like '1 epoch', '500 steps' or"
    )
    with pytest.raises(TaggerError, match=message):
        params.load(path)


@given(
    st.integers(1, 10**12) | st.decimals("0.0001", 10_000, places=4).map(float),
    st.sampled_from(["epoch", "step", "minute"]),
)
def test_interval_survives_text(number: float, unit: str) -> None:
    """Presets are merged with `train` as text."""
    interval = Interval(number, unit)
    assert TypeAdapter(IntervalField).validate_python(str(interval)) == interval


def test_auto_and_empty_values_are_none(edit: Edit) -> None:
    train = params.load(edit("train.precision", "auto")).train
    assert (train.precision, train.micro_batch, train.keep_every) == (None, None, None)
    assert params.load(edit("train.precision", "bf16")).train.precision == "bf16"
    assert params.load(edit("train.micro_batch", 16)).train.micro_batch == 16


@pytest.mark.parametrize(("value", "read"), [("all", "all"), (0, 0), (3, 3), ("3", 3)])
def test_freeze_is_a_number_of_stages_or_all(edit: Edit, value: object, read: object) -> None:
    assert params.load(edit("train.freeze", value)).train.freeze == read


@pytest.mark.parametrize("value", ["some", -1, 1.5])
def test_invalid_freeze_is_refused(edit: Edit, value: object) -> None:
    with pytest.raises(TaggerError, match=r"train\.freeze.* is "):
        params.load(edit("train.freeze", value))


CACHED = {"freeze": "all", "cache_embeddings": True}


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({}, True),
        ({"freeze": 3}, False),
        ({"freeze": 0}, False),
        ({"unfreeze_every": 2}, False),
        ({"head": "query"}, False),
        ({"freeze": 3, "cache_embeddings": False}, True),
    ],
)
def test_cache_embeddings_needs_a_frozen_backbone(
    default_params: Params, more: dict[str, object], allowed: bool
) -> None:
    content = default_params.train.model_dump() | CACHED | more
    if allowed:
        assert TrainParams.model_validate(content).cache_embeddings == content["cache_embeddings"]
        return
    with pytest.raises(ValidationError, match="cache_embeddings needs freeze: all"):
        TrainParams.model_validate(content)


def test_training_starts_from_one_model_only(default_params: Params) -> None:
    content = default_params.train.model_dump()
    for start in ({"init_from": "models/old"}, {"resume_from": "old.pt"}):
        TrainParams.model_validate(content | start)
    with pytest.raises(ValidationError, match="give one of them"):
        TrainParams.model_validate(content | {"init_from": "models/old", "resume_from": "old.pt"})


PRESET = "models.mobilenetv4.train"


def test_presets_override_train_and_only_where_they_say_so(edit: Edit) -> None:
    plain = params.load(edit(PRESET, {})).train
    overrides = {
        "ema": 0.999,
        "loss": {"kind": "focal", "gamma": 3.0},
        "unlabelled": [],
        "validate_every": "100 steps",
    }
    train = params.load(edit(PRESET, overrides)).train
    assert (train.loss.kind, train.loss.gamma) == ("focal", 3)
    assert train.model_dump() == params.merge(plain.model_dump(), overrides)
    content = yaml.safe_load(edit(PRESET, overrides).read_text(encoding="utf-8"))
    assert params.parse(content | {"model": "vit"}).train == plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, r"Unknown key epoch\. Did you mean 'epochs'\?"),
        ({"loss": {"kin": "bce"}}, r"Unknown key loss\.kin\. Did you mean 'kind'\?"),
        ({"loss": "focal"}, r"loss is 'focal'\."),
        ({"epochs": 0}, r"epochs is 0\..*greater than 0"),
        ({"augment": {"sizes": [0]}}, r"augment\.sizes\.0 is 0\..*greater than 0"),
        ({"validate_every": "often"}, r"validate_every: 'often' is not like '1 epoch', '500"),
        ({"validate_every": "5 minutes"}, r"validate_every: 5 minutes would differ each time\."),
        ({"cache_embeddings": True}, r"cache_embeddings needs freeze: all, "),
    ],
)
def test_mistake_in_a_preset_names_the_preset(
    edit: Edit, overrides: dict[str, object], message: str
) -> None:
    path = edit(PRESET, overrides)
    where = re.escape(f"{path}: {PRESET}")
    with pytest.raises(TaggerError, match=rf"\A{where}: {message}[^\n]*\Z"):
        params.load(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"animated": "drop", "verify": "none"}, "verify: none reads neither sizes nor frames"),
        ({"filters": {"min_side": 9}, "verify": "none"}, "verify: none reads neither sizes"),
        (
            {"source": "danbooru", "path": "data/mirror/metadata.parquet", "verify": "none"}
            | {"copies": {"side": 64, "folder": "data/mirror/shards"}},
            "would count as originals",
        ),
    ],
)
def test_impossible_prepare_params_are_refused(
    default_params: Params, overrides: dict[str, Any], message: str
) -> None:
    content = params.merge(default_params.prepare.model_dump(mode="json"), overrides)
    with pytest.raises(ValidationError, match=message):
        params.PrepareParams.model_validate(content)
    params.PrepareParams.model_validate(content | {"verify": "header", "source": "folder"})


@pytest.mark.parametrize("name", ["my/eva", "eva.02", "", "a b"])
def test_preset_names_are_valid_in_paths_and_dvc(edit: Edit, name: str) -> None:
    content = yaml.safe_load(edit("seed", 0).read_text(encoding="utf-8"))
    content["models"][name] = content["models"]["vit"]
    with pytest.raises(ValidationError):
        Params.model_validate(content)
