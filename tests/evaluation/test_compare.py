"""A comparison finds differences, whatever names of tags and order of channels the other has."""

import io
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import compare
from support import third_party_layouts
from support.evaluations import (
    error_line,
    inside_project,
    project_with_model,
    read_splits,
)
from support.projects import TWO_PROCESSES, Project
from tagger import params
from tagger.core import files
from tagger.core.vocabulary import Tag
from tagger.evaluation.metrics import dense
from tagger.export import formats, onnx_graph
from tagger.images import decode, loader, preprocess
from tagger.images.dataset import Split
from tagger.models import backbone, load_tagger
from tagger.models.runtimes import Device
from tagger.params import Params, Preset

pytestmark = pytest.mark.timeout(300)

ComparisonJson = Mapping[str, Any]  # the content of compare.json


@pytest.fixture(scope="module")
def trained_model(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, split: Split
) -> Path:
    """A model that was trained on the images."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("trained") / "tagger"))
    model, prepared = (
        backbone.load_model(folder).train(),
        preprocess.read(folder / "preprocess.json"),
    )
    squares = np.stack([prepared.to_square(decode.open_rgb(place)) for place in split.locations])
    pixels = loader.normalise_squares(torch.from_numpy(squares), torch.device("cpu"), prepared)
    targets = torch.from_numpy(split.labels.toarray()).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(pixels), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    backbone.save_weights(model.state_dict(), folder / backbone.WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
    demo: Path,
    preset: Preset,
    trained_model: Path,
) -> Project:
    """A project with that model; `gasp` is an alias of `open_mouth` there."""
    folder = tmp_path_factory.mktemp("projects") / "against"
    project = project_with_model(folder, default_params, demo, preset, trained_model)
    header = ("antecedent_name", "consequent_name")
    files.write_csv(folder / "data/rules/tag_aliases.csv", header, [("gasp", "open_mouth")])
    return project


def compared(project: Project, other: Path) -> tuple[str, ComparisonJson]:
    """Return what the comparison prints, and what it writes."""
    with inside_project(project), redirect_stdout(io.StringIO()) as printed:
        compare.main(params.load(), other)
    metrics: ComparisonJson = files.read_json(project.folder / compare.METRICS)
    return printed.getvalue(), metrics


def close(value: object, other: object) -> bool:
    """Return whether metrics are equal, but for rounding."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(close(value[key], other[key]) for key in value)
    return bool(value == pytest.approx(other, abs=1e-5))


def rearranged(folder: Path, rows: Sequence[int], negated: Sequence[int] = ()) -> None:
    """Permute the outputs of a model, and negate some."""
    weights = load_file(folder / backbone.WEIGHTS)
    head = files.read_json(folder / backbone.CONFIG)["pretrained_cfg"]["classifier"]
    for name in (f"{head}.weight", f"{head}.bias"):
        weights[name][list(negated)] *= -1
        weights[name] = weights[name][list(rows)].contiguous()
    save_file(weights, folder / backbone.WEIGHTS)


def test_a_model_does_not_differ_from_itself(
    project: Project, trained_model: Path, tags: list[Tag], tmp_path: Path
) -> None:
    printed, metrics = compared(
        project, third_party_layouts.write_timm_layout(trained_model, tags, tmp_path / "same")
    )
    assert close(metrics["ours"], metrics["theirs"])
    assert metrics["ours"]["macro_ap"] > 0.8
    lines = [line for line in printed.splitlines() if "undecided" in line]
    assert len(lines) == 4 * len(metrics["differences"]) >= 12
    for differences in metrics["differences"].values():
        assert list(differences.values()) == [[0, 0, 0]] * 4


@pytest.mark.parametrize("layout", ["wd14", "ours"])
def test_a_model_does_not_differ_from_its_onnx_graph(
    project: Project, trained_model: Path, tags: list[Tag], tmp_path: Path, layout: str
) -> None:
    other = tmp_path / layout
    if layout == "wd14":
        third_party_layouts.write_wd14_layout(trained_model, tags, other)
    else:
        onnx_graph.write_model(
            backbone.load_model(trained_model), other / "model.onnx", size=32, opset=17
        )
        shutil.copyfile(trained_model / "preprocess.json", other / "preprocess.json")
        formats.write_selected_tags(tags, np.full(len(tags), 0.5), other / "selected_tags.csv")
    printed, metrics = compared(project, other)
    assert metrics["tags"] == len(tags)
    assert "is better" not in printed
    for differences in metrics["differences"].values():
        assert np.ravel(list(differences.values())) == pytest.approx(0, abs=1e-3)


def test_a_tagger_without_a_shared_tag_is_an_error(
    project: Project,
    trained_model: Path,
    tags: list[Tag],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [tag._replace(name=f"no_{tag.name}") for tag in tags]
    other = third_party_layouts.write_timm_layout(trained_model, names, tmp_path / "other")
    expected = f"{other}: none of its {len(tags)} tags, such as 'no_general', is among those of "
    assert error_line(lambda: compared(project, other), capsys).startswith(expected)


def test_a_model_with_wrong_tags_is_significantly_worse(
    project: Project, trained_model: Path, tags: list[Tag], tmp_path: Path
) -> None:
    other = third_party_layouts.write_timm_layout(trained_model, tags, tmp_path / "worse")
    general = [row for row, tag in enumerate(tags) if tag.category == 0]
    rearranged(other, range(len(tags)), negated=general)
    printed, metrics = compared(project, other)
    for place in ("all", "general"):
        for metric in ("macro_ap", "micro_ap"):
            difference, low, high = metrics["differences"][place][metric]
            ours, theirs = (
                (metrics[side] if place == "all" else metrics[side]["categories"][place])[metric]
                for side in ("ours", "theirs")
            )
            assert difference == pytest.approx(ours - theirs, abs=2e-6)
            assert 0 < low <= difference <= high
    assert list(metrics["differences"]["copyright"].values()) == [[0, 0, 0]] * 4
    (line,) = (line for line in printed.splitlines() if line.startswith("all macro AP"))
    assert line.endswith("ours is better")


def test_tags_are_matched_by_current_name(
    project: Project, trained_model: Path, tags: list[Tag], tmp_path: Path
) -> None:
    """Three tags of each are not among the other's, and one has an old name."""
    shared = [tag.name for tag in tags[3:]]
    assert "open_mouth" in shared
    plain = [tag._replace(name=f"no_{tag.name}") for tag in tags[:3]] + tags[3:]
    shuffled = np.random.default_rng(0).permutation(len(tags)).tolist()
    old = [tag._replace(name="gasp") if tag.name == "open_mouth" else tag for tag in plain]
    general = [row for row, tag in enumerate(tags) if tag.category == 0]
    comparisons = []
    for name, order, names in (("plain", range(len(tags)), plain), ("other", shuffled, old)):
        folder = third_party_layouts.write_timm_layout(
            trained_model, [names[row] for row in order], tmp_path / name
        )
        rearranged(folder, order, negated=general[::2])
        comparisons.append(compared(project, folder)[1])
    assert comparisons[0]["tags"] == len(shared)
    assert any(row != [0, 0, 0] for row in comparisons[0]["differences"]["general"].values())
    assert comparisons[1] == comparisons[0]


@pytest.mark.parametrize("bgr", [False, True])
def test_the_order_of_channels_is_detected_and_logged(
    project: Project,
    trained_model: Path,
    tags: list[Tag],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    bgr: bool,
) -> None:
    other = third_party_layouts.write_timm_layout(trained_model, tags, tmp_path / "other", bgr=bgr)
    with caplog.at_level(logging.WARNING):
        _, metrics = compared(project, other)
    (message,) = (message for message in caplog.messages if "channels" in message)
    assert "on 9 validation images" in message
    assert message.endswith("Using BGR." if bgr else "Using RGB.")
    for differences in metrics["differences"].values():
        assert np.ravel(list(differences.values())) == pytest.approx(0, abs=1e-3)


def test_each_tagger_is_evaluated_with_its_own_preprocessing(
    project: Project, export_folder: Path, tags: list[Tag], tmp_path: Path
) -> None:
    """Here imgutils' layout, with steps that are not ours, of an untrained model."""
    folder = third_party_layouts.write_imgutils_layout(export_folder, tags, tmp_path / "imgutils")
    test = read_splits(project)[1]["test"]
    images = [decode.open_rgb(location) for location in test.locations]
    tagger = load_tagger(folder, Device("cpu", threads=1))
    padded = replace(tagger, preprocess=preprocess.read(export_folder / "preprocess.json"))
    _, content = compared(project, folder)
    expected, other = (
        dense.macro_ap(candidate.probabilities(images), test.labels.toarray())
        for candidate in (tagger, padded)
    )
    assert content["theirs"]["macro_ap"] == pytest.approx(expected, abs=1e-4)
    assert other != pytest.approx(expected, abs=1e-4)


def test_two_processes_compare_like_one(
    project: Project, trained_model: Path, tags: list[Tag], tmp_path: Path
) -> None:
    """Also if a test image is unreadable; messages are printed once."""
    other = third_party_layouts.write_timm_layout(trained_model, tags, tmp_path / "other")
    rearranged(other, range(len(tags)), negated=range(5))
    test = read_splits(project)[1]["test"].locations[3].path
    whole = Path(test).read_bytes()
    Path(test).write_bytes(whole[:40])
    try:
        printed, single_metrics = compared(project, other)
        (project.folder / compare.METRICS).unlink()
        said = project.run_stage(other, stage="compare", by=TWO_PROCESSES).success_output
    finally:
        Path(test).write_bytes(whole)
    parallel_metrics = files.read_json(project.folder / compare.METRICS)
    assert single_metrics["ours"]["images"] == parallel_metrics["ours"]["images"] == 10
    assert parallel_metrics["differences"].keys() == single_metrics["differences"].keys()
    for place, differences in single_metrics["differences"].items():
        for metric, row in differences.items():
            assert parallel_metrics["differences"][place][metric] == pytest.approx(row, abs=1e-6)
    assert said.count("the order of channels") == said.count("shared tags") == 1
    assert printed.splitlines()[0] in said


def test_channels_are_rgb_without_validation_images(
    project: Project,
    default_params: Params,
    demo: Path,
    preset: Preset,
    trained_model: Path,
    tmp_path: Path,
) -> None:
    project = project_with_model(
        tmp_path / "project", default_params, demo, preset, trained_model, (15, 0, 9)
    )
    other = third_party_layouts.write_timm_layout(
        trained_model, read_splits(project)[0], tmp_path / "other"
    )
    with inside_project(project):
        compare.main(params.load(), other)
    metrics = files.read_json(project.folder / compare.METRICS)
    assert metrics["ours"]["images"] == 9
    assert close(metrics["ours"], metrics["theirs"])
