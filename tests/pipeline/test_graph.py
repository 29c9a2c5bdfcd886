"""dvc.yaml agrees with the code: dependencies, outputs and parameters of each stage."""

import ast
import re
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import clones
from tagger import params

ROOT = Path(__file__).parents[2]
MOST_CODE = 10  # packages and modules, with the script itself
STAGES = {
    name: stage
    for file in ("dvc.yaml", "data/dvc.yaml")
    for name, stage in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"].items()
}


@pytest.mark.parametrize("name", STAGES)
def test_stage_depends_on_the_packages_it_imports_and_no_others(name: str) -> None:
    imported = imported_by(name)
    packages = code_of(STAGES[name])
    covered = {
        file: [package for package in packages if lies_in(file, package)] for file in imported
    }
    assert not [file for file, names in covered.items() if not names], "imported, not declared"
    assert {name for names in covered.values() for name in names} == {*packages}, "not imported"
    assert all(len(names) == 1 for names in covered.values()), "one package inside another"


@pytest.mark.parametrize("name", STAGES)
def test_stage_has_few_code_dependencies_and_a_description(name: str) -> None:
    assert len(code_of(STAGES[name])) <= MOST_CODE
    assert STAGES[name]["desc"]


def test_artifacts_are_outputs_of_the_type_model() -> None:
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"]
    outputs = [file for stage in STAGES.values() for file in written_by(stage)]
    assert "models/tagger" in [artifact["path"] for artifact in artifacts.values()]
    for artifact in artifacts.values():
        assert artifact["type"] == "model"
        assert artifact["path"] in outputs


@pytest.mark.parametrize("name", STAGES)
def test_stage_declares_every_file_that_its_script_names(name: str) -> None:
    source = (ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8")
    files = set(re.findall(r'Path\("([^"]+)"\)', source))
    stage = STAGES[name]
    assert files <= {*map(path_of, stage["deps"]), *written_by(stage)}


def test_each_file_is_written_by_one_stage_and_described() -> None:
    written = [file for stage in STAGES.values() for file in written_by(stage)]
    assert len(written) == len(set(written))
    for file in map(Path, written):
        readme = (ROOT / file.parts[0] / "README.md").read_text(encoding="utf-8")
        assert "/".join(file.parts[1:]) in readme, f"{file} is not in the README beside it"


def test_train_tracks_the_chosen_preset_alone() -> None:
    assert "models.${model}" in STAGES["train"]["params"]
    assert "models" not in STAGES["train"]["params"]


def test_every_section_of_params_drives_a_stage() -> None:
    tracked = {param for stage in STAGES.values() for param in stage["params"]}
    sections = set(params.Params.model_fields) - {"models", "infer"}  # infer is no stage
    assert sections <= tracked


def test_line_ends_do_not_depend_on_git_settings() -> None:
    """DVC hashes bytes: with core.autocrlf=true a clone would have other dependencies."""
    for line in clones.git(ROOT, "ls-files", "--eol").splitlines():
        in_index, _, attributes = line.partition("\t")[0].partition("attr/")
        assert "i/lf" not in in_index or attributes.strip() == "text=auto eol=lf", line


def imported_by(stage: str) -> set[str]:
    """Return the files of this project that a stage imports, and its script."""
    finder = ModuleFinder(path=[str(ROOT / "stages")])
    finder.run_script(str(ROOT / "stages" / f"{stage}.py"))
    modules: dict[str, Any] = finder.modules
    files = {Path(module.__file__) for module in modules.values() if module.__file__}
    return {file.relative_to(ROOT).as_posix() for file in files if not decides_nothing(file)}


def decides_nothing(file: Path) -> bool:
    """Return whether a change of a module cannot change what a stage writes.

    True for an __init__.py with a docstring alone, and for that of `tagger`, which every stage
    imports: it only sets how OpenMP's threads wait and that ONNX Runtime sends no telemetry.
    """
    if file.name != "__init__.py":
        return False
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    return file.parent.name == "tagger" or all(isinstance(s, ast.Expr) for s in statements)


def code_of(stage: dict[str, Any]) -> list[str]:
    return [dep for dep in map(path_of, stage["deps"]) if dep.startswith("stages/")]


def lies_in(file: str, package: str) -> bool:
    return file == package or file.startswith(f"{package}/")


def written_by(stage: dict[str, Any]) -> list[str]:
    return [path_of(out) for key in ("outs", "metrics", "plots") for out in stage.get(key, [])]


def path_of(entry: str | dict[str, Any]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))
