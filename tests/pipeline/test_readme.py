"""What the two READMEs say can be typed, seen and followed, and is the same in both."""

import argparse
import contextlib
import io
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
import evaluate
import export
import infer
from tagger import params

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(name: str) -> list[list[str]]:
    """Return the commands in the console blocks of a README, as words."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text(name), flags=re.DOTALL):
        shown = "$ " in block  # with what they print
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ") or not shown]
        found += [shlex.split(line, comments=True) for line in typed]
    return [words for words in found if words]


def sections(name: str) -> list[str]:
    """Return the anchors of a README's headings, as the page that shows it makes them."""
    headings = re.findall(r"^##+ (.+)$", text(name), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_both_say_the_same_can_be_typed() -> None:
    english, chinese = map(commands, READMES)
    assert len(english) > 30
    bilingual = [[word for word in words if word not in ("--lang", "zh")] for words in chinese]
    assert bilingual == english
    assert len(sections(READMES[0])) == len(sections(READMES[1]))


@pytest.mark.parametrize("name", READMES)
def test_what_is_linked_is_there(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(name)):
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).exists(), target
            known = sections(path or name) if anchor else []
            assert not anchor or anchor in known, target


@pytest.mark.parametrize("name", READMES)
def test_parameters_that_are_set_are_there_and_may_have_that_value(
    name: str, tmp_path: Path
) -> None:
    given = [words for words in commands(name) if words[:3] == ["dvc", "exp", "run"]]
    assert len(given) > 10
    for words in given:
        content: Any = yaml.safe_load(text("params.yaml"))
        for flag, setting in pairwise(words):
            if flag == "-S":
                key, _, value = setting.partition("=")
                group = content
                for part in key.split(".")[:-1]:
                    group = group[part]
                assert key.split(".")[-1] in group, key
                group[key.split(".")[-1]] = yaml.safe_load(value)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", READMES)
def test_parameters_that_are_named_are_there(name: str) -> None:
    content = yaml.safe_load(text("params.yaml"))
    content["models"]["NAME"] = content["models"]["名称"] = content["models"]["vit"]
    content["models"]["vit"]["train"] = content["train"]
    named = re.findall(rf"`((?:{'|'.join(content)})\.[\w.]+)", text(name))
    groups = {name for name, value in content.items() if isinstance(value, dict)}
    files = (".csv", ".json", ".log", ".png", ".py", ".yaml")
    for key in {key for key in named if key.split(".")[0] in groups and not key.endswith(files)}:
        group = content
        for part in key.split("."):
            assert part in group, key
            group = group[part]


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize(("script", "heading"), [(infer, 1), (app, 2)])
def test_every_option_is_in_its_table(name: str, script: Any, heading: int) -> None:
    section = re.split(r"^## ", text(name), flags=re.MULTILINE)[heading + 1]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    table = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        script.main(["--help"]) if script is infer else parser_of_app()
    known = set(re.findall(r"(?<![\w-])--[a-z-]+", told.getvalue()))
    assert table == known - {"--help", "--no-calibrated"}


def parser_of_app() -> None:
    app.parse(["--help"], params.load(ROOT / params.PATH).infer)


def test_options_of_stages_are_there() -> None:
    readers = {"stages/evaluate.py": evaluate.parse_args, "stages/export.py": export.asked_for}
    tried = [words for words in commands(READMES[0]) if words[0] == "python"]
    for words in tried:
        if words[1] in readers:
            assert isinstance(readers[words[1]](words[2:]), argparse.Namespace)
        assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("name", READMES)
def test_the_map_shows_every_module(name: str) -> None:
    (drawn,) = re.findall(r"```\n(stages/prepare.py .*?)```", text(name), flags=re.DOTALL)
    words = set(re.findall(r"[\w.]+", drawn.replace("/", " ")))
    inside = ROOT / "stages/tagger"
    packages = {path.parent.name for path in inside.glob("*/__init__.py")}
    modules = {path.stem for path in inside.glob("*.py")} - {"__init__"}
    assert packages | modules <= words
    assert {path.name for path in (ROOT / "stages").glob("*.py")} <= words
