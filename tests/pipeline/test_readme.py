"""The READMEs agree with the code: commands, options, parameters, links and the map of modules.

The English and the Chinese READMEs show the same commands.
"""

import contextlib
import importlib
import io
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
import check_export
import compare
import infer
import publish
import register
from tagger import params
from tagger.inference import cli

ROOT = Path(__file__).parents[2]
FOLDERS = ("data", "models", "metrics", "stages")
ENGLISH = ("README.md", *(f"{folder}/README.md" for folder in FOLDERS))
CHINESE = ("README.zh.md", "stages/README.zh.md")
ALL = (*ENGLISH, *CHINESE, "tests/benchmarks/README.md")
MOST_LINES = 250  # of the first README that a user reads


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(*names: str) -> list[list[str]]:
    """Return the words of each command in the console blocks of READMEs."""
    lines: list[str] = []
    for block in re.findall(r"```console\n(.*?)```", "".join(map(read, names)), flags=re.DOTALL):
        with_output = "$ " in block
        block_lines = block.replace("\\\n", " ").splitlines()
        lines += [
            line.removeprefix("$ ")
            for line in block_lines
            if line.startswith("$ ") or not with_output
        ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^##+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def without_language(words: list[str]) -> list[str]:
    return [word for word in words if word not in ("--lang", "zh")]


def test_first_readmes_are_short_and_show_the_same_commands() -> None:
    english, chinese = commands("README.md"), commands("README.zh.md")
    assert len(english) > 15
    assert list(map(without_language, chinese)) == english
    for name in ("README.md", "README.zh.md"):
        assert len(read(name).splitlines()) <= MOST_LINES, name


def test_chinese_and_english_readmes_show_the_same_commands() -> None:
    english = {shlex.join(without_language(words)) for words in commands(*ENGLISH)}
    chinese = {shlex.join(without_language(words)) for words in commands(*CHINESE)}
    assert chinese == english


@pytest.mark.parametrize("name", ALL)
def test_links_lead_to_files_and_headings(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = folder / path if path else ROOT / name
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("names", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_parameters_in_commands_exist_and_may_have_that_value(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    experiments = [words for words in commands(*names) if words[:3] == ["dvc", "exp", "run"]]
    assert len(experiments) > 10
    for words in experiments:
        content: Any = yaml.safe_load(read("params.yaml"))
        for flag, setting in pairwise(words):
            if flag == "-S":
                key, _, value = setting.partition("=")
                section = content
                for name in key.split(".")[:-1]:
                    section = section[name]
                assert key.split(".")[-1] in section, key
                section[key.split(".")[-1]] = yaml.safe_load(value)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ALL)
def test_parameters_in_text_exist(name: str) -> None:
    content = yaml.safe_load(read("params.yaml"))
    content["models"]["NAME"] = content["models"]["名称"] = content["models"]["vit"]
    content["models"]["vit"]["train"] = content["train"]
    keys = re.findall(rf"`((?:{'|'.join(content)})\.[\w.]+)", read(name))
    sections = {name for name, value in content.items() if isinstance(value, dict)}
    files = (".csv", ".json", ".log", ".parquet", ".png", ".py", ".yaml")
    for key in {key for key in keys if key.split(".")[0] in sections and not key.endswith(files)}:
        section = content
        for word in key.split("."):
            assert word in section, key
            section = section[word]


@pytest.mark.parametrize("name", ["stages/README.md", "stages/README.zh.md"])
@pytest.mark.parametrize("script", [infer, app], ids=["infer", "app"])
def test_options_table_lists_every_option(name: str, script: Any) -> None:
    heading = f"{script.__name__}.py\n"
    (section,) = (s for s in re.split(r"^## ", read(name), flags=re.M) if s.startswith(heading))
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    table = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    assert table == options_of(script) - {"--no-calibrated"}


@pytest.mark.parametrize("name", ["stages/README.md", "stages/README.zh.md"])
@pytest.mark.parametrize("script", [compare, register, check_export, publish])
def test_row_of_a_tool_lists_every_option(name: str, script: Any) -> None:
    row = re.search(rf"^\| `{script.__name__}\.py .*", read(name), flags=re.M)
    assert row, name
    assert set(re.findall(r"--[a-z-]+", row[0])) == options_of(script)


def options_of(script: Any) -> set[str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        if script is infer:
            infer.main(["--help"])
        elif script is app:
            app.parse_args(["--help"], params.load(ROOT / params.PATH).infer)
        else:
            script.parse_args(["--help"])
    return set(re.findall(r"(?<![\w-])--[a-z-]+", output.getvalue())) - {"--help"}


def test_commands_of_tools_can_be_parsed() -> None:
    p = params.load(ROOT / params.PATH).infer
    for words in commands(*ENGLISH):
        if words[0] != "python":
            continue
        assert (ROOT / words[1]).is_file(), words[1]
        tool = importlib.import_module(Path(words[1]).stem)
        if tool is infer:
            cli.parse_args(words[2:], p, ROOT, cores=1)
        elif tool is app:
            app.parse_args(words[2:], p)
        else:
            tool.parse_args(words[2:])


def test_map_of_the_code_shows_every_package_and_script() -> None:
    (code_map,) = re.findall(r"```\n(stages/prepare.py .*?)```", read("stages/README.md"), re.S)
    words = set(re.findall(r"[\w.]+", code_map.replace("/", " ")))
    packages = {path.parent.name for path in (ROOT / "stages/tagger").rglob("*/__init__.py")}
    scripts = {path.name for path in (ROOT / "stages").glob("*.py")}
    assert packages | scripts <= words


def test_benchmarks_readme_names_every_benchmark_and_options_that_exist() -> None:
    text = read("tests/benchmarks/README.md")
    scripts = {path.name: path.read_text() for path in (ROOT / "tests/benchmarks").glob("*.py")}
    assert scripts.keys() <= set(re.findall(r"`(\w+\.py)", text))
    for option in re.findall(r"--[a-z][a-z-]*", text):
        assert f'"{option}"' in "".join(scripts.values()), option
