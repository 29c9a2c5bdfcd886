"""The vocabulary stage on four posts: what it writes and prints, and its errors."""

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from PIL import Image

import vocabulary as stage
from tagger.core import errors, manifest, vocabulary
from tagger.core.vocabulary import Tag
from tagger.params import Params

Write = Callable[[str, str | bytes], Path]
Run = Callable[..., str]
Rows = list[dict[str, str]]

ROOT = Path(__file__).parents[2]
POSTS = [
    ["general", "1girl", "long_hair", "hatsune_miku"],
    ["general", "1girl", 'don\'t_say_"lazy"'],
    ["sensitive", "1girl", "long_hair", "a,b"],
    ["null"],
]
CATEGORY_OF = {"general": 9, "sensitive": 9, "hatsune_miku": 4, 'don\'t_say_"lazy"': 3, "gone": 4}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the manifest of POSTS, and a tag on none of them."""
    monkeypatch.chdir(tmp_path)
    counts = Counter(tag for post in POSTS for tag in post)
    names = [*counts, "gone"]
    codes = [CATEGORY_OF.get(name, 0) for name in names]
    tags = [Tag(10 + row, name, codes[row], counts[name]) for row, name in enumerate(names)]
    manifest.write_tags(tags, stage.TAGS)
    rows = [
        {"id": str(row), "file": f"{row}.png", "tags": [names.index(tag) for tag in post]}
        for row, post in enumerate(POSTS)
    ]
    manifest.write_posts(pa.Table.from_pylist(rows, schema=manifest.POSTS_SCHEMA), stage.POSTS)
    return tmp_path


@pytest.fixture
def run(default_params: Params, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the stage with changed parameters; return what it prints."""

    def run(**changes: Any) -> str:
        values = default_params.vocabulary.model_dump() | {"min_count": 1} | changes
        stage.main(type(default_params.vocabulary).model_validate(values))
        return capsys.readouterr().out

    return run


def rows_of(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names() -> list[str]:
    return [tag.name for tag in vocabulary.read(stage.VOCABULARY)]


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file by its path below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_vocabulary_is_written_in_order_and_quoted(run: Run) -> None:
    printed = run()
    assert stage.VOCABULARY.read_bytes().decode() == (
        "tag_id,name,category,count\n"
        "10,general,9,2\n"
        "15,sensitive,9,1\n"
        "11,1girl,0,3\n"
        "12,long_hair,0,2\n"
        '16,"a,b",0,1\n'
        "17,null,0,1\n"
        "13,hatsune_miku,4,1\n"
        '14,"don\'t_say_""lazy""",3,1\n'
    )
    assert printed == "kept 8 of 8 tags, 100.0% of all labels -> data/vocabulary.csv\n"


def test_summary_is_printed_and_dropped_tags_are_listed(run: Run) -> None:
    assert run(min_count=2) == (
        "kept 3 of 8 tags, 58.3% of all labels -> data/vocabulary.csv\nposts without a tag: 1\n"
    )
    assert rows_of(stage.DROPPED)[1] == {
        **{"tag_id": "16", "name": "a,b", "category": "0", "count": "1"},
        "reason": "too rare",
    }
    assert '14,"don\'t_say_""lazy""",3,1,too rare\n' in stage.DROPPED.read_text(encoding="utf-8")
    left = {(row["tags"], row["posts"]) for row in rows_of(stage.PER_POST)}
    assert left == {("0", "1"), ("1", "0"), ("2", "2"), ("3", "1")}
    outcome = [tuple(row.values()) for row in rows_of(stage.OUTCOMES) if row["outcome"] == "kept"]
    assert outcome == [("rating", "kept", "1", "2"), ("general", "kept", "2", "5")]
    report = json.loads(stage.REPORT.read_text(encoding="utf-8"))
    assert report["posts_without_tag"] == 1
    assert report["categories"]["rating"] == {"seen": 2, "kept": 1, "post_coverage": 0.5}


def test_written_files_are_the_outputs_in_dvc_yaml(run: Run, project: Path) -> None:
    before = files_in(project)
    run()
    described = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for key in ("outs", "metrics", "plots") for out in described["vocabulary"][key]]
    expected = {out if isinstance(out, str) else next(iter(out)) for out in outs}
    assert files_in(project).keys() - before.keys() == expected
    with Image.open(stage.PLOT) as image:
        assert image.size == (1300, 400)


def test_the_same_input_gives_the_same_bytes(run: Run, project: Path) -> None:
    run(max_tags=4)
    first = files_in(project)
    run(max_tags=4)
    assert files_in(project) == first


def test_unseen_names_and_unmatched_globs_are_printed(run: Run, write_file: Write) -> None:
    listed = ["1girl", "miku", "gone", "teto", "luka", "null"]
    write_file("mine.csv", "\n".join(["name", *listed]))
    exclude = ["*_(cosplay)", "null"]
    assert run(source="mine.csv", include=["hatsune*", "rin*"], exclude=exclude) == (
        "kept 2 of 8 tags, 33.3% of all labels -> data/vocabulary.csv\n"
        "tags of mine.csv on no post: 4 (miku, gone, teto), see metrics/vocabulary.json\n"
        "globs that match no tag: rin*, *_(cosplay)\n"
        "posts without a tag: 1\n"
    )
    report = json.loads(stage.REPORT.read_text(encoding="utf-8"))
    assert report["without_post"] == ["miku", "gone", "teto", "luka"]
    assert report["globs_without_tag"] == ["rin*", "*_(cosplay)"]
    assert names() == ["1girl", "hatsune_miku"]


LISTS = [
    ("name\nLong Hair\n1girl\nnull\n", {}, ["1girl", "long_hair", "null"]),
    ('name\nnull\n"a,b"\n"don\'t_say_""lazy"""\n', {}, ["a,b", "null", 'don\'t_say_"lazy"']),
    ("name\n1girl\nnull\n", {"min_count": 9}, ["1girl", "null"]),
    ("name,count\n1girl,8\nnull,9\nlong_hair,\n", {"min_count": 9}, ["long_hair", "null"]),
    (
        "name,count\n1girl,8\nnull,9\n",
        {"min_count": 99, "min_counts": {"general": 8}},
        ["1girl", "null"],
    ),
    ("name,category\n1girl,4\nnull,\n", {"categories": ["character"]}, ["1girl"]),
    ("name\n1girl\nnull\nlong_hair\n", {"max_tags": 2}, ["1girl", "long_hair"]),
]


@pytest.mark.parametrize(("text", "changes", "kept"), LISTS)
def test_only_listed_tags_are_learnt(
    run: Run, write_file: Write, text: str, changes: dict[str, Any], kept: list[str]
) -> None:
    run(source=write_file("mine.csv", text), **changes)
    assert names() == kept


def test_ids_and_categories_of_a_list_replace_seen_ones_but_not_counts(
    run: Run, write_file: Write
) -> None:
    rows = "tag_id,name,category,count\n77,1girl,4,900\n,null,,\n78,long_hair,,5\n"
    run(source=write_file("mine.csv", rows), min_count=5)
    assert vocabulary.read(stage.VOCABULARY) == [
        Tag(78, "long_hair", 0, 2),
        Tag(17, "null", 0, 1),
        Tag(77, "1girl", 4, 3),
    ]


def test_list_can_be_an_earlier_vocabulary(run: Run) -> None:
    run(min_count=2)
    before = stage.VOCABULARY.read_bytes()
    Path("mine.csv").write_bytes(before)
    run(source="mine.csv")
    assert stage.VOCABULARY.read_bytes() == before


def mistake(run: Run, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Return the one line of an error that changes no file."""
    before = files_in(Path())
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        run(**changes)
    output = capsys.readouterr()
    assert (ended.value.code, output.out) == (2, "")
    assert files_in(Path()) == before
    (line,) = output.err.splitlines()
    return line


WRONG: list[tuple[str | bytes, str]] = [
    ("name\nLong Hair\n1girl\nlong_hair\n", "mine.csv: line 4 repeats the tag 'long_hair'"),
    ("name,count\n1girl,many\n", "mine.csv: line 2: "),
    ("tag,count\n1girl,5\n", "mine.csv: line 2 has no 'name'"),
    ("name,category\n1girl,7\n", "mine.csv: line 2 has the unknown category '7'"),
    (b"name\n\xff\n", "mine.csv cannot be read: "),
    ("name\nmiku\n", "No tag remains of 8 (8 not in the list)"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_invalid_lists_are_errors_of_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], text: str | bytes, message: str
) -> None:
    run()
    Path("mine.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    assert mistake(run, capsys, source="mine.csv").startswith(f"error: {message}")


def test_invalid_posts_leave_the_last_vocabulary_unchanged(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    manifest.write_tags(manifest.read_tags(stage.TAGS)[:3], stage.TAGS)
    assert "has tags beyond the 3 of tags.parquet" in mistake(run, capsys)
    stage.POSTS.unlink()
    assert "posts.parquet is missing" in mistake(run, capsys)


ENDS: list[tuple[dict[str, Any], str]] = [
    ({"min_count": 99}, "No tag remains of 8 (8 too rare). The most frequent one is on 3 posts."),
    ({"max_tags": 0}, "params.yaml: vocabulary.max_tags is 0."),
]


@pytest.mark.parametrize(("changes", "message"), ENDS)
def test_program_ends_with_one_line_for_a_mistake(
    project: Path, changes: dict[str, Any], message: str
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["vocabulary"] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    before = files_in(project)
    command = [sys.executable, str(ROOT / "stages/vocabulary.py")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert files_in(project) == before
