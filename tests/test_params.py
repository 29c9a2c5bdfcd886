"""params.yaml is checked at the door: what is wrong is told in one line, with the way out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from tagger import params
from tagger.errors import TaggerError
from tagger.params import Params

Edit = Callable[[str, object], Path]


@pytest.fixture
def edit(root: Path, tmp_path: Path) -> Edit:
    """Write params.yaml with another value at a dotted path, None to leave the key out."""

    def edit(where: str, value: object) -> Path:
        content = yaml.safe_load((root / params.PATH).read_text(encoding="utf-8"))
        *owners, key = where.split(".")
        place = content
        for owner in owners:
            place = place[owner]
        place.pop(key, None)
        if value is not None:
            place[key] = value
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
        assert preset.keys() | {"model_args"} == fields(params.Preset)


def test_every_preset_field_is_explained_above_the_presets(root: Path) -> None:
    text = (root / params.PATH).read_text(encoding="utf-8")
    explained = text[text.index("# What differs") : text.index("\nmodels:")]
    for field in params.Preset.model_fields:
        assert f"{field}:" in explained


def test_presets_are_those_promised(shipped: Params) -> None:
    laptop = {"mobilenetv4", "convnext", "vit", "swin", "eva02"}
    assert shipped.models.keys() == laptop | {
        "convnext_base",
        "vit_base",
        "swinv2_base",
        "eva02_large",
    }
    assert {name for name, preset in shipped.models.items() if not preset.pretrained} == laptop
    assert shipped.preset == shipped.models["mobilenetv4"]


def test_parameters_cannot_be_changed(shipped: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        shipped.train.epochs = 1


def test_an_added_unknown_key_names_the_nearest_one(edit: Edit) -> None:
    path = edit("models.convnext.lerning_rate", 0.1)
    wanted = "Unknown key models.convnext.lerning_rate. Did you mean 'learning_rate'?"
    with pytest.raises(TaggerError) as caught:
        params.load(path)
    assert str(caught.value) == f"{path}: {wanted}"


@pytest.mark.parametrize(
    ("key", "typo", "value"),
    [
        ("models.convnext.learning_rate", "models.convnext.lerning_rate", 0.1),
        ("train.epochs", "train.epoch", 3),
        ("infer", "infers", {"model": "x"}),
    ],
)
def test_a_misspelt_key_is_called_unknown_not_missing(
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
    ("where", "value", "told"),
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
        ("train.loss", "focal", r"train\.loss is 'focal'\..*'bce' or 'asymmetric'"),
        ("train.warmup", 1.0, r"train\.warmup is 1\.0\..*less than 1"),
        ("train.min_crop", 0, r"train\.min_crop is 0\..*greater than 0"),
        ("train.clip", float("nan"), r"train\.clip is nan\..*finite"),
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
def test_a_mistake_is_one_line_that_says_where_and_what(
    edit: Edit, where: str, value: object, told: str
) -> None:
    path = edit(where, value)
    with pytest.raises(TaggerError, match=rf"\A{re.escape(str(path))}: {told}[^\n]*\Z"):
        params.load(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"train: [1, 2", "is not YAML"),
        (b"\xff\xfe\x00train", "is not YAML"),
        (b"", "holds no parameters"),
        (b"- 1\n- 2\n", "holds no parameters"),
        (b"42", "holds no parameters"),
    ],
)
def test_a_file_that_holds_no_parameters_is_told_in_one_line(
    write: Callable[[str, bytes], Path], content: bytes, told: str
) -> None:
    path = write("params.yaml", content)
    with pytest.raises(TaggerError, match=rf"\A{re.escape(str(path))} {told}[^\n]*\Z"):
        params.load(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"params\.yaml is missing\. Run from the root"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["3e-05", "1e-4", "3E-5", "0.00003"])
def test_numbers_that_yaml_reads_as_text_are_numbers(edit: Edit, text: str) -> None:
    path = edit("models.vit.learning_rate", 777)
    path.write_text(path.read_text().replace("777", text))
    assert params.load(path).models["vit"].learning_rate == float(text)


def test_whole_numbers_given_as_text_are_numbers(edit: Edit) -> None:
    assert params.load(edit("train.epochs", "20")).train.epochs == 20


@pytest.mark.parametrize("given", [True, False, "weights/base.safetensors"])
def test_pretrained_is_a_choice_or_a_file(edit: Edit, given: bool | str) -> None:
    read = params.load(edit("models.vit.pretrained", given)).models["vit"].pretrained
    assert (type(read), read) == (type(given), given)
