"""The tags that infer.py selects: by threshold, number, category, implication and name."""

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
from tagger.images.dataset import Split
from tagger.models.tagger import Tagger

TagsOf = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def selected(tags_of: TagsOf) -> TagsOf:
    """Return the tags of image a.png in tags.json, by category, without the rating."""

    def selected(*options: object) -> dict[str, dict[str, float]]:
        tags = tags_of(*options)
        tags.pop("rating", None)
        return tags

    return selected


def names(tags: dict[str, dict[str, float]]) -> set[str]:
    return {tag for inside in tags.values() for tag in inside}


def expected_names(tagger: Tagger, scores: dict[str, float], expected_thresholds: Any) -> set[str]:
    pairs = zip(tagger.tags, expected_thresholds, strict=True)
    return {t.name for t, threshold in pairs if t.category != 9 and scores[t.name] >= threshold}


def test_the_best_threshold_of_each_tag_is_the_default(
    selected: TagsOf, tagger: Tagger, scores: dict[str, float]
) -> None:
    assert names(selected()) == names(selected("--threshold", "best"))
    assert names(selected()) == expected_names(tagger, scores, tagger.thresholds)


def test_category_thresholds_are_those_of_the_table(
    selected: TagsOf, tagger: Tagger, scores: dict[str, float], export_folder: Path
) -> None:
    by_category = thresholds.read_category_thresholds(export_folder / "thresholds.csv")
    expected_thresholds = np.array([by_category[CATEGORIES[tag.category]] for tag in tagger.tags])
    assert names(selected("--threshold", "category")) == expected_names(
        tagger, scores, expected_thresholds
    )


def test_thresholds_of_some_categories_leave_the_others(
    selected: TagsOf, tagger: Tagger, scores: dict[str, float]
) -> None:
    expected_thresholds = tagger.thresholds.copy()
    for column, tag in enumerate(tagger.tags):
        expected_thresholds[column] = {0: 0.3, 4: 0.8}.get(
            tag.category, expected_thresholds[column]
        )
    chosen_tags = selected("--threshold", "general=0.3,character=0.8")
    assert names(chosen_tags) == expected_names(tagger, scores, expected_thresholds)


@pytest.mark.parametrize("choice", ["best", "category"])
def test_calibration_changes_confidences_and_keeps_the_tags(selected: TagsOf, choice: str) -> None:
    plain, calibrated = (selected("--threshold", choice, *more) for more in ((), ("--calibrated",)))
    assert names(plain) == names(calibrated)
    assert plain != calibrated


def test_calibrated_logits_are_divided_by_the_temperature_of_the_category(
    selected: TagsOf, scores: dict[str, float], tagger: Tagger, export_folder: Path
) -> None:
    temperatures = calibration.read(export_folder / "calibration.json")
    category = {tag.name: CATEGORIES[tag.category] for tag in tagger.tags}
    confidences = selected("--threshold", 0, "--calibrated")
    for tag, confidence in confidences["general"].items():
        expected = expit(logit(scores[tag]) / temperatures[category[tag]])
        assert confidence == pytest.approx(expected, abs=1e-4)


def test_calibrated_needs_calibration_json(
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


def test_top_keeps_the_tags_of_highest_confidence(
    selected: TagsOf, scores: dict[str, float], tagger: Tagger
) -> None:
    best = sorted(scores.items(), key=lambda item: -item[1])[:4]
    ratings = {tag.name for tag in tagger.tags if tag.category == 9}
    assert names(selected("--threshold", 0, "--top", 4)) == {tag for tag, _ in best} - ratings


def test_excluded_tags_are_not_written(selected: TagsOf) -> None:
    everything = names(selected("--threshold", 0.2))
    dropped = next(iter(everything))
    left = names(selected("--threshold", 0.2, "--exclude", dropped, "--exclude", "*_hair"))
    assert left == {tag for tag in everything - {dropped} if not tag.endswith("_hair")}
    assert left < everything


def test_only_the_chosen_categories_are_written(selected: TagsOf) -> None:
    everything = selected("--threshold", 0.2)
    chosen_tags = selected("--threshold", 0.2, "--categories", "copyright,general")
    assert list(chosen_tags) == ["general", "copyright"]
    assert chosen_tags == {name: everything[name] for name in chosen_tags}


def test_the_likeliest_rating_is_written_whatever_the_threshold(
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


def test_implied_tags_are_removed_or_added(
    selected: TagsOf, scores: dict[str, float], write_file: Callable[[str, str], Path]
) -> None:
    everything = selected("--threshold", 0.3)
    general = sorted(everything["general"], key=lambda tag: -scores[tag])
    table = write_file(
        "rules/tag_implications.csv",
        f"antecedent_name,consequent_name\n{general[1]},{general[0]}\n{general[1]},hair\n",
    )
    rules = ("--threshold", 0.3, "--rules", table.parent)
    removed = selected(*rules, "--implications", "remove")
    assert names(removed) == names(everything) - {general[0]}
    added = selected(*rules, "--implications", "add")
    assert names(added) == names(everything) | {"hair"}
    assert added["general"]["hair"] == added["general"][general[1]]


def test_replaced_names_are_written_and_an_empty_name_drops_the_tag(
    selected: TagsOf, scores: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    before = selected("--threshold", 0.3)
    first, second = list(before["general"])[:2]
    after = selected("--threshold", 0.3, "--replace", f"{first}=x=_y", "--replace", f"{second}=")
    assert first in after["general"]  # the last = parts the two: `first=x` is no tag
    assert f"The model has no tag '{first}=x'" in caplog.text
    assert names(after) == names(before) - {second}
    renamed = selected("--threshold", 0.3, "--replace", f"{first}=mine")
    assert renamed["general"]["mine"] == before["general"][first]


def test_batch_size_order_and_workers_do_not_change_confidences(
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
