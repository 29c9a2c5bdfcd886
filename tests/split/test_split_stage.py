"""The stage splits a manifest by any method, reports on it, and prints an error in one line."""

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import split
from tagger.core import errors, manifest, vocabulary
from tagger.core.manifest import SPLITS, Posts
from tagger.core.vocabulary import Tag
from tagger.params import Params, SplitParams
from tagger.split import deterministic
from tagger.split import methods as library
from tagger.split.methods import Labels

POSTS = 120
SEEN = [Tag(n, f"tag_{n}", 0, 9) for n in range(6)]
TAGS = [SEEN[n] for n in (4, 1, 5, 0, 2)]  # not tag_3, and in another order
METHODS = get_args(SplitParams.model_fields["method"].annotation)
OUTPUTS = (split.SPLIT, split.REPORT, split.PER_TAG, split.PER_BAND, split.PLOT)

Run = Callable[..., None]
Mistake = Callable[..., str]


def row(number: int, **values: Any) -> dict[str, Any]:
    """Return a post; every third is a copy of the one before it, with the same tags."""
    lead = number - (number % 3 == 2)
    tags = np.flatnonzero(np.random.default_rng(lead).random(6) < 0.4).tolist()
    day = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=number * 37 % POSTS)
    post = {"id": f"{number * 3571}", "file": "x.png", "offset": 0, "size": 8, "group": lead}
    return post | {"created_at": day, "tags": tags} | values


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose manifest and vocabulary are written."""
    monkeypatch.chdir(tmp_path)
    write([row(number) for number in range(POSTS)])
    manifest.write_tags(SEEN, split.TAGS)
    vocabulary.write(TAGS, split.VOCABULARY)
    named = [f"{row(n)['id']},{SPLITS[(n % 5 == 0) + (n % 10 == 0)]}\n" for n in range(POSTS)]
    Path("mine.csv").write_text("id,split\n" + "".join(named), encoding="utf-8")
    return tmp_path


def write(rows: list[dict[str, Any]]) -> None:
    manifest.write_posts(pa.Table.from_pylist(rows, schema=manifest.POSTS_SCHEMA), split.POSTS)


@pytest.fixture
def run(default_params: Params) -> Run:
    """Run the stage with the default parameters, but for some."""

    def run(seed: int = 0, **values: Any) -> None:
        content = default_params.split.model_dump() | {"table": "mine.csv"} | values
        split.main(SplitParams.model_validate(content), seed)

    return run


@pytest.fixture
def mistake(run: Run, capsys: pytest.CaptureFixture[str], project: Path) -> Mistake:
    """Return the error line of the stage, which leaves no file."""

    def mistake(**values: Any) -> str:
        before = contents(project)
        with pytest.raises(SystemExit) as ended, errors.exit_on_error():
            run(**values)
        assert ended.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("error: ")
        assert contents(project) == before
        return line

    return mistake


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read() -> tuple[Posts, Labels]:
    posts = manifest.read_posts(split.POSTS, len(SEEN))
    return posts, manifest.select_columns(posts.labels, SEEN, TAGS)


def written() -> list[int]:
    """Return the splits in data/split.parquet, which names each post in its place."""
    return listed(manifest.read_split(split.SPLIT, read()[0].ids))


def listed(splits: library.SplitIndices) -> list[int]:
    return [int(name) for name in splits]


def expected(method: str, seed: int, fractions: tuple[float, ...]) -> list[int]:
    """Return what the library has for the manifest."""
    posts, labels = read()
    ids, groups = posts.ids, posts.groups
    ways: dict[str, Callable[[], library.SplitIndices]] = {
        "stratified": lambda: library.stratified(labels, fractions, groups=groups, seed=seed),
        "iterative": lambda: library.iterative(labels, fractions, groups=groups, seed=seed),
        "random": lambda: library.random(labels, fractions, groups=groups, seed=seed),
        "hash": lambda: deterministic.by_hash(ids, fractions, groups=groups, seed=seed),
        "modulo": lambda: deterministic.by_modulo(ids, fractions, groups=groups),
        "time": lambda: deterministic.by_time(
            posts.table["created_at"], ids, fractions, groups=groups
        ),
        "given": lambda: np.array([(n % 5 == 0) + (n % 10 == 0) for n in range(POSTS)], np.int8),
    }
    return listed(ways[method]())


@pytest.mark.parametrize("method", METHODS)
def test_each_method_splits_with_its_seed_fractions_and_groups(run: Run, method: str) -> None:
    run(method=method, seed=3, train=0.6, validation=0.25, test=0.15)
    splits = written()
    assert splits == expected(method, 3, (0.6, 0.25, 0.15))
    copies = range(2, POSTS, 3)
    assert all(splits[copy] == splits[copy - 1] for copy in copies) == (method != "given")


@pytest.mark.parametrize("method", ["stratified", "iterative"])
def test_order_two_is_passed_on(run: Run, method: str) -> None:
    run(method=method, order=2)
    posts, labels = read()
    way = getattr(library, method)
    first, second = (
        way(labels, (0.8, 0.1, 0.1), groups=posts.groups, order=order).tolist() for order in (1, 2)
    )
    assert written() == second != first


@pytest.mark.parametrize("method", METHODS)
def test_reports_and_output_agree_with_the_splits(
    run: Run, method: str, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    run(method=method)
    printed = capsys.readouterr()
    sizes = np.bincount(written()).tolist()
    report = json.loads(split.REPORT.read_text(encoding="utf-8"))
    assert list(report) == ["posts", *SPLITS, "groups"]
    assert report["posts"] == POSTS
    assert [report[name]["posts"] for name in SPLITS] == sizes
    assert [report[name]["target"] for name in SPLITS] == [0.8, 0.1, 0.1]
    assert report["groups"]["of_several_posts"] == POSTS // 3
    assert (report["groups"]["divided"] > 0) == (method == "given")

    with split.PER_TAG.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["tag"] for row in rows] == [tag.name for tag in TAGS]
    totals = read()[1].sum(axis=0).tolist()
    assert [int(row["posts"]) for row in rows] == totals
    assert [sum(int(row[name]) for name in SPLITS) for row in rows] == totals
    with split.PER_BAND.open(encoding="utf-8") as file:
        bands = list(csv.DictReader(file))
    for name in SPLITS:
        assert sum(int(band["tags"]) for band in bands if band["split"] == name) == len(TAGS)
    with Image.open(split.PLOT) as drawn:
        assert drawn.format == "PNG"
    files = {Path(path).relative_to(project) for path in contents(project)}
    assert files == {*OUTPUTS, split.POSTS, split.TAGS, split.VOCABULARY, Path("mine.csv")}

    lines = printed.out.splitlines()
    train, validation, test = sizes
    summary = f"{train} train, {validation} validation, {test} test -> data/split.parquet"
    assert lines[0] == summary
    missing = [name for name in SPLITS if report[name]["tags_without_post"]]
    starts = [f"tags without a post in {name}: " for name in missing]
    starts += ["groups divided between splits: "] * (method == "given")
    assert all(line.startswith(start) for line, start in zip(lines[1:], starts, strict=True))
    assert printed.err == ""


def test_missing_tags_and_divided_groups_are_reported(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write([row(n, tags=[4] if n == 0 else [1, 0, 2, 5]) for n in range(POSTS)])
    run(method="given")  # of the 40 copies 16 are not where their first is
    sizes, *lines = capsys.readouterr().out.splitlines()
    assert sizes == "96 train, 12 validation, 12 test -> data/split.parquet"
    assert lines == [
        "tags without a post in train: 1 of 5, see metrics/split_tags.csv",
        "tags without a post in validation: 1 of 5, see metrics/split_tags.csv",
        "groups divided between splits: 16. The model is evaluated on copies of its training "
        "images.",
    ]


def test_a_table_may_have_other_columns_and_more_posts(run: Run) -> None:
    table = {"post": range(0, 3571 * 200, 3571), "fold": [SPLITS[n % 3] for n in range(200)]}
    pq.write_table(pa.table({key: list(value) for key, value in table.items()}), "folds.parquet")
    run(method="given", table="folds.parquet", id_column="post", split_column="fold")
    assert written() == [n % 3 for n in range(POSTS)]
    report = json.loads(split.REPORT.read_text(encoding="utf-8"))
    assert report["test"]["target"] == pytest.approx(1 / 3, abs=1e-6)  # as the table has it


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "given", "table": "none.csv"}, "none.csv cannot be read"),
        ({"method": "given", "id_column": "ids"}, "no 'ids'. Did you mean 'id'?"),
        ({"method": "given", "table": "data/posts.parquet"}, "row 1 has no 'split'."),
        ({"method": "hash", "train": 0.998, "validation": 0.001, "test": 0.001}, "has no post"),
    ],
)
def test_unsuitable_parameters_are_reported(
    mistake: Mistake, values: dict[str, Any], reason: str
) -> None:
    assert reason in mistake(**values)


def test_an_error_leaves_an_earlier_split_unchanged(
    run: Run, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    run(method="random")
    capsys.readouterr()
    assert "none.csv cannot be read" in mistake(method="given", table="none.csv")
    assert "has no post" in mistake(train=0.998, validation=0.001, test=0.001, method="hash")


def test_a_manifest_unsuitable_for_the_method_is_refused(mistake: Mistake) -> None:
    write([row(n, created_at=None) if n % 4 == 0 else row(n) for n in range(POSTS)])
    assert "30 of 120 have none" in mistake(method="time")
    write([row(n, id=f"{n}.png") for n in range(POSTS)])
    assert "needs ids that are numbers" in mistake(method="modulo")
    assert "mine.csv lacks 120 of 120 posts, '0.png' first" in mistake(method="given")
    write([row(n, group=n % 2) for n in range(POSTS)])
    for method in ("stratified", "iterative", "random"):
        assert "2 groups of posts cannot fill 3 splits" in mistake(method=method)
    for method in ("hash", "time"):
        assert "has no post" in mistake(method=method)
    write([row(n, tags=[]) for n in range(POSTS)])
    assert "No post of the split train has a tag" in mistake(method="stratified")


@pytest.mark.parametrize("path", [split.POSTS, split.TAGS, split.VOCABULARY])
def test_a_missing_input_is_reported(mistake: Mistake, path: Path) -> None:
    path.unlink()
    assert f"{path} is missing" in mistake()
