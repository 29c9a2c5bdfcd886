"""Outputs of a run of infer: tables, sidecars, and what an error leaves."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.inference import cli, outputs, tables
from tagger.inference.captions import Caption, Captioner, PredictedTag
from tagger.inference.cli import Options
from tagger.inference.inputs import InputImage
from tagger.inference.pipeline import ImagePrediction
from tagger.params import Params
from tagger.system.world import World

ALONE = World(0, 1, 0, 1)
TAGS = [Tag(1, "safe", 9, 1), Tag(2, "cat", 0, 1)]
IMAGES = [InputImage(Path(f"{name}.png"), Path()) for name in "abc"]


@pytest.fixture
def parse(default_params: Params, root: Path, tmp_path: Path) -> Callable[..., Options]:
    def parse(*options: str) -> Options:
        arguments = ["x", "--output-dir", str(tmp_path / "out"), *options]
        return cli.parse_args(arguments, default_params.infer, root, 2)

    return parse


def predict(image: InputImage, cat: float) -> ImagePrediction:
    return ImagePrediction(image, np.array([0.7, cat], np.float32), None)


@pytest.mark.parametrize("output", ["csv", "json", "jsonl", "parquet"])
def test_an_error_half_way_keeps_the_rows_before_it(
    parse: Callable[..., Options], output: str
) -> None:
    def breaking() -> Iterator[list[ImagePrediction]]:
        yield [predict(image, 0.9) for image in IMAGES[:2]]
        raise TaggerError("no room")

    options = parse("--output", output)
    plan = outputs.plan_outputs(options, IMAGES, ALONE)
    assert plan.table is not None
    captioner = Captioner(TAGS, np.array([0.5, 0.5]))
    with pytest.raises(TaggerError, match="no room"):
        outputs.write_outputs(breaking(), captioner, options, plan, outputs.RunStatus())
    assert tables.read_file_names(plan.table) == {"a.png", "b.png"}


def test_an_error_at_once_keeps_the_earlier_table(
    parse: Callable[..., Options],
) -> None:
    def breaking() -> Iterator[list[ImagePrediction]]:
        raise TaggerError("no room")
        yield []

    options = parse("--output", "csv")
    plan = outputs.plan_outputs(options, IMAGES, ALONE)
    assert plan.table is not None
    files.write_text(plan.table, "earlier\n")
    with pytest.raises(TaggerError, match="no room"):
        outputs.write_outputs(
            breaking(), Captioner(TAGS, np.zeros(2)), options, plan, outputs.RunStatus()
        )
    assert plan.table.read_text() == "earlier\n"
    assert list(plan.table.parent.iterdir()) == [plan.table]


def test_an_output_folder_that_is_a_file_is_refused(
    parse: Callable[..., Options], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(TaggerError, match=r"out is no folder\. Name another to write to\."):
        outputs.plan_outputs(parse("--output", "csv"), IMAGES, ALONE)


def test_a_pipe_is_listed_as_failed_and_has_no_sidecar(
    run_infer: Callable[..., int], image_folder: Path
) -> None:
    os.mkfifo(image_folder / "pipe.png")
    for mode in ("--overwrite", "--skip-existing"):
        assert run_infer(image_folder, "--output", "txt", mode) == 1
        (failure,) = files.read_csv(Path("infer_failures.csv"))
        assert failure["file"] == str(image_folder / "pipe.png")
        assert failure["detail"] == "neither a file nor a folder"
    assert not (image_folder / "pipe.txt").exists()


def caption(name: str, *tags: PredictedTag) -> Caption:
    return Caption(InputImage(Path(name), Path()), PredictedTag("safe", "rating", 0.75), tags)


CAPTIONS = [
    caption(
        'quo"te,\r.png', PredictedTag("cat", "general", 0.9), PredictedTag("safe", "rating", 0.75)
    ),
    caption("ü.png", PredictedTag("dog", "general", 0.25)),
    caption("none.png"),
]
ROWS = [
    ('quo"te,\r.png', "cat", "general", 0.9),
    ('quo"te,\r.png', "safe", "rating", 0.75),
    ("ü.png", "safe", "rating", 0.75),
    ("ü.png", "dog", "general", 0.25),
    ("none.png", "safe", "rating", 0.75),
]


def test_csv_and_parquet_have_each_tag_and_always_the_rating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 2)
    for suffix in ("csv", "parquet"):
        tables.write(CAPTIONS, tmp_path / f"t.{suffix}", ["rating", "general"], frozenset())
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    assert [(*row[:3], float(row[3])) for row in rows] == ROWS
    table = pq.ParquetFile(tmp_path / "t.parquet")
    assert table.num_row_groups == 3
    assert table.schema_arrow.names == ["file", "tag", "category", "confidence"]
    table_rows = [tuple(row.values()) for row in table.read().to_pylist()]
    assert [(*row[:3], round(row[3], 6)) for row in table_rows] == ROWS


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_has_one_image_a_line(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"t.{suffix}"
    tables.write(CAPTIONS[:count], path, ["rating", "general"], frozenset())
    lines = path.read_text(encoding="utf-8").splitlines()
    objects = json.loads(path.read_text()) if suffix == "json" else list(map(json.loads, lines))
    expected = [
        {"safe": 0.75, "cat": 0.9},
        {"safe": 0.75, "dog": 0.25},
        {"safe": 0.75},
    ]
    assert [image["rating"] for image in objects] == ["safe"] * count
    assert [list(image["tags"]) for image in objects] == [["rating", "general"]] * count
    tags = [image["tags"]["rating"] | image["tags"]["general"] for image in objects]
    assert tags == expected[:count]
    assert len(lines) == count + (2 if suffix == "json" else 0)
    assert tables.read_file_names(path) == {str(each.image.file) for each in CAPTIONS[:count]}
