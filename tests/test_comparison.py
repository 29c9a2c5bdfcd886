"""`evaluate.py --against` says which of two taggers is better, over the tags that both know."""

import json
from pathlib import Path
from typing import Any

import foreign
import pytest
from evaluations import evaluated, inside, read, told, with_model
from trainings import Project

import evaluate
from tagger import params
from tagger.params import Params, Preset


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    shipped: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
) -> Project:
    folder = tmp_path_factory.mktemp("projects") / "compared"
    return with_model(folder, shipped, demo, preset, model_folder)


def compared(made: Project, other: Path) -> tuple[str, dict[str, Any]]:
    printed = evaluated(made, other)
    text = (made.folder / evaluate.AGAINST).read_text(encoding="utf-8")
    return printed, json.loads(text)


@pytest.mark.parametrize("layout", ["export", "wd14", "timm", "timm, BGR"])
def test_a_model_is_as_good_as_itself_in_any_layout(
    made: Project, model_folder: Path, export_folder: Path, tmp_path: Path, layout: str
) -> None:
    tags, folder = read(made)[0], tmp_path / "other"
    other = {
        "export": lambda: export_folder,
        "wd14": lambda: foreign.wd14(model_folder, tags, folder),
        "timm": lambda: foreign.timms(model_folder, tags, folder),
        "timm, BGR": lambda: foreign.timms(model_folder, tags, folder, bgr=True),
    }[layout]()
    printed, found = compared(made, other)
    assert found["tags"] == len(tags)
    for inside_ in found["differences"].values():
        for difference, low, high in inside_.values():
            assert difference == pytest.approx(0, abs=0.03)
            assert low <= 0.03
            assert high >= -0.03
    assert "is better" not in printed
    assert "undecided" in printed


def test_a_tagger_with_no_tag_in_common_is_told(
    made: Project, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = [tag._replace(name=f"x_{tag.name}") for tag in read(made)[0]]
    other = foreign.wd14(model_folder, tags, tmp_path / "other")
    with inside(made):
        line = told(lambda: evaluate.main(params.load(), other), capsys)
    assert "There is nothing to compare." in line


def test_tags_are_found_by_name_in_any_order(
    made: Project, model_folder: Path, tmp_path: Path
) -> None:
    tags = read(made)[0]
    swapped = [tags[1], tags[0]._replace(name="unheard_of"), *tags[2:]]
    other = foreign.wd14(model_folder, swapped, tmp_path / "other")
    _, found = compared(made, other)
    assert found["tags"] == len(tags) - 1
    assert found["theirs"]["tags"] <= found["tags"]
