"""dvc.yaml says what the code does."""

import re
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagger import params

ROOT = Path(__file__).parents[2]
STAGES = {
    name: stage
    for file in ("dvc.yaml", "data/dvc.yaml")
    for name, stage in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"].items()
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_imports(name: str) -> None:
    finder = ModuleFinder(path=[str(ROOT / "stages")])
    finder.run_script(str(ROOT / "stages" / f"{name}.py"))
    modules: dict[str, Any] = finder.modules
    files = {Path(module.__file__) for module in modules.values() if module.__file__}
    imported = {file.relative_to(ROOT).as_posix() for file in files}
    declared = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert declared == imported


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_files_it_names_and_writes_the_others(name: str) -> None:
    source = (ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8")
    named = set(re.findall(r'Path\("([^"]+)"\)', source)) - {"metrics/against.json"}  # of --against
    stage = STAGES[name]
    assert named <= {*map(path_of, stage["deps"]), *written_by(stage)}


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


def written_by(stage: dict[str, Any]) -> list[str]:
    return [path_of(out) for key in ("outs", "metrics", "plots") for out in stage.get(key, [])]


def path_of(entry: str | dict[str, Any]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))
