"""Which tags infer.py gives: by threshold, number, category, implication and name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from tagger.core import calibration, files, thresholds
from tagger.core.vocabulary import CATEGORIES
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import load_tagger
from tagger.models.runtimes import Device
from tagger.models.tagger import Tagger

Said = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def tagger(export_folder: Path) -> Tagger:
    return load_tagger(export_folder, Device("cpu"))


@pytest.fixture
def scores(tagger: Tagger, split: Split) -> dict[str, float]:
    """What the model says of picture a.png, by tag."""
    row = tagger.probabilities([decode.open_rgb(split.locations[0])])[0]
    return {tag.name: float(score) for tag, score in zip(tagger.tags, row, strict=True)}


@pytest.fixture
def said(run_infer: Callable[..., int], image_folder: Path) -> Said:
    """Return what tags.json says of picture a.png, by category, without the rating."""

    def said(*arguments: object) -> dict[str, dict[str, float]]:
        assert run_infer(image_folder / "a.png", "--output", "json", *arguments) == 0
        (content,) = json.loads(Path("tags.json").read_text(encoding="utf-8"))
        tags: dict[str, Any] = content["tags"]
        tags.pop("rating", None)
        return tags

    return said


def names(tags: dict[str, dict[str, float]]) -> set[str]:
    return {tag for inside in tags.values() for tag in inside}


def wanted(tagger: Tagger, scores: dict[str, float], limits: Any) -> set[str]:
    pairs = zip(tagger.tags, limits, strict=True)
    return {t.name for t, limit in pairs if t.category != 9 and scores[t.name] >= limit}


def test_best_is_the_default_and_each_tags_own(
    said: Said, tagger: Tagger, scores: dict[str, float]
) -> None:
    assert names(said()) == names(said("--threshold", "best"))
    assert names(said()) == wanted(tagger, scores, tagger.thresholds)


def test_category_takes_the_table_of_the_model(
    said: Said, tagger: Tagger, scores: dict[str, float], export_folder: Path
) -> None:
    of = thresholds.read_category_thresholds(export_folder / "thresholds.csv")
    limits = np.array([of[CATEGORIES[tag.category]] for tag in tagger.tags])
    assert names(said("--threshold", "category")) == wanted(tagger, scores, limits)


def test_categories_may_have_thresholds_of_their_own_and_the_others_keep_theirs(
    said: Said, tagger: Tagger, scores: dict[str, float]
) -> None:
    limits = tagger.thresholds.copy()
    for column, tag in enumerate(tagger.tags):
        limits[column] = {0: 0.3, 4: 0.8}.get(tag.category, limits[column])
    found = said("--threshold", "general=0.3,character=0.8")
    assert names(found) == wanted(tagger, scores, limits)


@pytest.mark.parametrize("limit", ["best", "category"])
def test_calibrated_confidences_are_other_and_the_tags_the_same(said: Said, limit: str) -> None:
    plain, calibrated = (said("--threshold", limit, *more) for more in ((), ("--calibrated",)))
    assert names(plain) == names(calibrated)
    assert plain != calibrated


def test_calibrated_confidences_are_divided_by_the_temperature_of_the_category(
    said: Said, scores: dict[str, float], tagger: Tagger, export_folder: Path
) -> None:
    temperatures = calibration.read(export_folder / "calibration.json")
    category = {tag.name: CATEGORIES[tag.category] for tag in tagger.tags}
    found = said("--threshold", 0, "--calibrated")
    for tag, confidence in found["general"].items():
        expected = expit(logit(scores[tag]) / temperatures[category[tag]])
        assert confidence == pytest.approx(expected, abs=1e-4)


def test_calibrated_needs_the_temperatures(
    run_infer: Callable[..., int],
    export_folder: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(export_folder, tmp_path / "export"))
    (copy / "calibration.json").unlink()
    assert run_infer(image_folder / "a.png", "--model", copy, "--calibrated") == 2
    assert "--calibrated needs" in capsys.readouterr().err


def test_top_keeps_the_surest(said: Said, scores: dict[str, float], tagger: Tagger) -> None:
    best = sorted(scores.items(), key=lambda item: -item[1])[:4]
    ratings = {tag.name for tag in tagger.tags if tag.category == 9}
    assert names(said("--threshold", 0, "--top", 4)) == {tag for tag, _ in best} - ratings


def test_excluded_tags_are_not_written(said: Said) -> None:
    everything = names(said("--threshold", 0.2))
    dropped = next(iter(everything))
    left = names(said("--threshold", 0.2, "--exclude", dropped, "--exclude", "*_hair"))
    assert left == {tag for tag in everything - {dropped} if not tag.endswith("_hair")}
    assert left < everything


def test_only_the_categories_asked_for_are_written(said: Said) -> None:
    everything = said("--threshold", 0.2)
    some = said("--threshold", 0.2, "--categories", "copyright,general")
    assert list(some) == ["general", "copyright"]
    assert some == {name: everything[name] for name in some}


def test_the_rating_is_the_likeliest_whatever_the_threshold(
    run_infer: Callable[..., int], image_folder: Path, scores: dict[str, float], tagger: Tagger
) -> None:
    ratings = {t.name: scores[t.name] for t in tagger.tags if t.category == 9}
    likeliest = max(ratings, key=lambda tag: ratings[tag])
    for output in ("json", "jsonl"):
        assert run_infer(image_folder / "a.png", "--threshold", 1, "--output", output) == 0
        text = Path(f"tags.{output}").read_text(encoding="utf-8")
        content = json.loads(text)[0] if output == "json" else json.loads(text)
        assert content["rating"] == likeliest
        assert content["tags"]["rating"] == {likeliest: round(ratings[likeliest], 6)}
    assert run_infer(image_folder / "a.png", "--threshold", 1, "--output", "csv") == 0
    (row,) = files.read_csv(Path("tags.csv"))
    assert (row["tag"], row["category"]) == (likeliest, "rating")


def test_implications_remove_what_is_implied_or_add_it(
    said: Said, scores: dict[str, float], write_file: Callable[[str, str], Path]
) -> None:
    everything = said("--threshold", 0.3)
    general = sorted(everything["general"], key=lambda tag: -scores[tag])
    table = write_file(
        "rules/tag_implications.csv",
        f"antecedent_name,consequent_name\n{general[1]},{general[0]}\n{general[1]},hair\n",
    )
    rules = ("--threshold", 0.3, "--rules", table.parent)
    removed = said(*rules, "--implications", "remove")
    assert names(removed) == names(everything) - {general[0]}
    added = said(*rules, "--implications", "add")
    assert names(added) == names(everything) | {"hair"}
    assert added["general"]["hair"] == added["general"][general[1]]


def test_another_name_is_written_everywhere_and_no_name_leaves_a_tag_out(
    said: Said, scores: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    before = said("--threshold", 0.3)
    first, second = list(before["general"])[:2]
    after = said("--threshold", 0.3, "--replace", f"{first}=x=_y", "--replace", f"{second}=")
    assert first in after["general"]  # the last = parts the two: `first=x` is no tag
    assert f"The model has no tag '{first}=x'" in caplog.text
    assert names(after) == names(before) - {second}
    renamed = said("--threshold", 0.3, "--replace", f"{first}=mine")
    assert renamed["general"]["mine"] == before["general"][first]


def test_a_batch_gives_what_single_pictures_give(
    run_infer: Callable[..., int], split: Split, tmp_path: Path
) -> None:
    """Whatever the batch size, the order and the number of processes: the same to 1e-5."""
    paths = [place.path for place in split.locations]
    tables = []
    for number, (size, workers, order) in enumerate(((1, 0, 1), (7, 2, 1), (24, 1, -1))):
        out = tmp_path / f"out{number}"
        arguments = ("--batch-size", size, "--workers", workers, "--threshold", 0)
        assert run_infer(*paths[::order], *arguments, "--output", "csv", "--output-dir", out) == 0
        rows = files.read_csv(out / "tags.csv")
        tables.append({(row["file"], row["tag"]): float(row["confidence"]) for row in rows})
    assert len(tables[0]) == len(paths) * len({tag for _, tag in tables[0]})
    for other in tables[1:]:
        assert other.keys() == tables[0].keys()
        keys = sorted(other)
        difference = np.array([other[k] for k in keys]) - [tables[0][k] for k in keys]
        assert np.abs(difference).max() < 1e-5
