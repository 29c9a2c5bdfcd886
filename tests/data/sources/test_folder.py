"""A folder as people bring it: odd sidecars are read, the hopeless listed with a reason."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import prepare
from tagger.core import errors
from tagger.core.errors import TaggerError
from tagger.data.sources import folder
from tagger.data.sources.folder import FolderSource
from tagger.params import Params
from tagger.system import scratch

Write = Callable[[str, str | bytes], Path]
Paint = Callable[[str], Path]
Tags = dict[int | None, list[str]]


class Found(NamedTuple):
    tags: dict[str, Tags]  # of each picture that can be used, by category
    rejected: dict[str, tuple[str, str]]  # reason and detail of each other one


def read(*folders: Path, separator: str = ",") -> Found:
    found = Found({}, {})
    for batch in FolderSource(list(folders), separator).read():
        for row, name in enumerate(batch.posts["id"].to_pylist()):
            assert name not in found.tags
            lists = {code: lists[row].as_py() for code, lists in batch.tags.items()}
            found.tags[name] = {code: tags for code, tags in lists.items() if tags}
        for name, *reason in zip(*batch.rejected.to_pydict().values(), strict=True):
            assert name not in found.rejected
            found.rejected[name] = (reason[0], reason[1])
    return found


@pytest.fixture
def sole(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> Callable[[str, str | bytes], Any]:
    """Return the tags that one sidecar gives a picture, or else why it gives none."""

    def sole(name: str, content: str | bytes, separator: str = ",") -> Any:
        write_image("a.png")
        write_file(name, content)
        found = read(tmp_path, separator=separator)
        return found.tags.get("a.png") or found.rejected["a.png"]

    return sole


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        (b"1girl, long_hair\n", ["1girl", "long_hair"]),
        (b"\xef\xbb\xbf1girl, long_hair", ["1girl", "long_hair"]),
        ("1girl, 初音ミク".encode("utf-16"), ["1girl", "初音ミク"]),
        (b"\xfe\xff" + "1girl, é".encode("utf-16-be"), ["1girl", "é"]),
        (b"1girl,\r\nlong_hair\r\n", ["1girl", "long_hair"]),
        (b"1girl\nlong_hair\n\n", ["1girl", "long_hair"]),
        (b"1girl\rlong_hair", ["1girl", "long_hair"]),
        (b",, 1girl ,,  Long   Hair ,", ["1girl", "long_hair"]),
        (b"1girl, 1girl, long hair, long_hair", ["1girl", "long_hair"]),
        (rb"saber \(fate\), 1girl", ["1girl", "saber_(fate)"]),
        (b'null, nan, ^_^, "quoted", don\'t', ['"quoted"', "^_^", "don't", "nan", "null"]),
    ],
)
def test_sidecars_are_read_as_people_write_them(
    project: Path,
    write_image: Paint,
    write_file: Write,
    default_params: Params,
    content: bytes,
    tags: list[str],
) -> None:
    write_image("pictures/a.png")
    write_file("pictures/a.txt", content)
    prepared(default_params, path="pictures")
    (names,) = labels()
    assert sorted(names) == sorted(tags)


@pytest.mark.parametrize("separator", [",", ", ", " ", ";", "|", "\t", "||"])
def test_the_separator_is_chosen(sole: Callable[..., Any], separator: str) -> None:
    text = separator.join(["1girl", "long_hair", "smile"])
    assert sole("a.txt", text, separator) == {None: ["1girl", "long_hair", "smile"]}


@given(st.text(), st.sampled_from([",", " ", ";", "|"]))
def test_tags_of_a_text_never_hold_separators_or_nothing(text: str, separator: str) -> None:
    tags = folder.split_tags(text, separator)
    for tag in tags:
        assert tag.strip()
        assert separator not in tag
        assert folder.split_tags(tag, separator) == [tag]
    kept, given = "".join(tags), text.replace(separator, " ")
    assert "".join(kept.split()) == "".join(given.split())


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        (["1girl", "long hair"], {None: ["1girl", "long hair"]}),
        ("1girl,smile", {None: ["1girl", "smile"]}),
        ({"tags": ["1girl"]}, {None: ["1girl"]}),
        ({"tags": "1girl,smile"}, {None: ["1girl", "smile"]}),
        (
            {"general": ["1girl"], "character": ["saber"], "rating": "general"},
            {0: ["1girl"], 4: ["saber"], 9: ["general"]},
        ),
        (
            {"general": {"1girl": 0.99, "smile": 1}, "copyright": {"fate": 0.5}},
            {0: ["1girl", "smile"], 3: ["fate"]},
        ),
        ({"artist": ["a"], "meta": ["b"], "width": 3, "x": None}, {1: ["a"], 5: ["b"]}),
        ({"general": [], "tags": ["smile"]}, {None: ["smile"]}),
    ],
)
def test_json_gives_tags_and_their_categories(
    sole: Callable[..., Any], content: Any, tags: Tags
) -> None:
    assert sole("a.json", json.dumps(content)) == tags
    assert sole("a.json", b"\xef\xbb\xbf" + json.dumps(content).encode()) == tags


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "1girl, smile",
        "3",
        "null",
        "{}",
        '{"width": 3}',
        '{"general": 3}',
        '{"general": null}',
        '{"general": [1, 2]}',
        '{"tags": {"general": ["1girl"], "character": []}}',
        '[["1girl"]]',
        '["\\ud800"]',
        '["a\\u0000b"]',
        '{"general": {"1girl": "high"}}',
        "[" * 100_000,
        '{"tags":' * 50_000,
        b'["caf\xe9"]',
    ],
)
def test_json_that_holds_no_tags_is_told(sole: Callable[..., Any], content: str | bytes) -> None:
    reason, detail = sole("a.json", content)
    assert reason == "unreadable sidecar"
    assert detail and detail.isprintable()


@pytest.mark.parametrize("content", ["[]", '{"general": []}', '{"tags": {}}', '""'])
def test_json_without_a_tag_has_no_tags(sole: Callable[..., Any], content: str) -> None:
    assert sole("a.json", content)[0] == "no tags"


def test_the_first_of_four_sidecars_counts(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    write_image("a.png")
    contents = {
        "a.png.json": '["fourth"]',
        "a.json": '["third"]',
        "a.png.txt": "second",
        "a.txt": "first",
    }
    for name, content in contents.items():
        write_file(name, content)
        (tags,) = read(tmp_path).tags["a.png"].values()
        assert tags[0] in content


def test_each_of_two_pictures_of_one_stem_can_have_its_own(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    for name in ("a.png", "a.jpg"):
        write_image(name)
        write_file(f"{name}.txt", f"tag_of_{name[2:]}")
    assert read(tmp_path).tags == {
        "a.jpg": {None: ["tag_of_jpg"]},
        "a.png": {None: ["tag_of_png"]},
    }


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        (b"", "no tags"),
        (b" ,\n, ", "no tags"),
        (b"1girl\0, smile", "unreadable sidecar"),
        ("1girl, café".encode("latin-1"), "unreadable sidecar"),
        (b"\xff\xfe1\0g", "unreadable sidecar"),
        ("1girl".encode("utf-32"), "unreadable sidecar"),
        (None, "no sidecar"),
    ],
)
def test_a_picture_without_readable_tags_is_left_out_and_the_rest_kept(
    tmp_path: Path, write_image: Paint, write_file: Write, sidecar: bytes | None, reason: str
) -> None:
    for name in ("bad.png", "good.png"):
        write_image(name)
    write_file("good.txt", "smile")
    if sidecar is not None:
        write_file("bad.txt", sidecar)
    found = read(tmp_path)
    assert list(found.tags) == ["good.png"]
    assert list(found.rejected) == ["bad.png"]
    assert found.rejected["bad.png"][0] == reason
    assert found.rejected["bad.png"][1].isprintable()


def test_a_sidecar_that_is_no_file_is_none(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_image(name)
    write_file("a.txt", "smile")
    (tmp_path / "b.txt").mkdir()
    os.mkfifo(tmp_path / "c.txt")
    rejected = read(tmp_path).rejected
    assert {name: reason for name, (reason, _) in rejected.items() if name in "b.png c.png"} == {
        "b.png": "no sidecar",
        "c.png": "no sidecar",
    }


def test_a_folder_without_anything_to_use_is_refused(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    with pytest.raises(TaggerError, match="there is no folder"):
        read(tmp_path / "none")
    with pytest.raises(TaggerError, match="holds no pictures"):
        read(tmp_path)
    write_image("a.png")
    with pytest.raises(TaggerError, match=r"None of the 1 pictures.*a\.png needs its tags in a"):
        read(tmp_path)


def test_folders_that_share_pictures_are_refused(tmp_path: Path, write_image: Paint) -> None:
    write_image("one/two/a.png")
    (tmp_path / "link").symlink_to("one")
    for folders in (("one", "one/two"), ("one/two", "one"), ("one", "one"), ("one", "link")):
        with pytest.raises(TaggerError, match=r"prepare\.more_folders: .* share pictures"):
            read(*(tmp_path / name for name in folders))
    with pytest.raises(TaggerError, match=r"prepare\.more_folders: there is no folder"):
        read(tmp_path / "one", tmp_path / "three")


def test_ids_of_several_folders_are_unique(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    for name in ("one", "two", "three/four"):
        write_image(f"{name}/x/a.png")
        write_file(f"{name}/x/a.txt", name)
    found = read(tmp_path / "one", tmp_path / "two", tmp_path / "three")
    assert found.tags == {
        "x/a.png": {None: ["one"]},
        f"{tmp_path}/two/x/a.png": {None: ["two"]},
        f"{tmp_path}/three/four/x/a.png": {None: ["three/four"]},
    }


@pytest.mark.parametrize(
    "name",
    [
        'quo"te',
        "com,ma",
        "'",
        "初音ミク",
        "wide\u3000space",
        "👩\u200d🎨",
        "-",
        "a b",
        "%s\\n",
        "x" * 251,
    ],
)
def test_names_of_all_kinds_are_ids(
    tmp_path: Path, write_image: Paint, write_file: Write, name: str
) -> None:
    write_image(f"{name}.png")
    write_file(f"{name}.txt", "smile")
    assert read(tmp_path) == ({f"{name}.png": {None: ["smile"]}}, {})


def test_a_name_that_cannot_be_printed_is_left_out(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    write_image("good.png")
    write_file("good.txt", "smile")
    (tmp_path / os.fsdecode(b"folder\xff")).mkdir()
    for odd in (b"\xc4\xe3.png", b"new\nline.png", b"tab\t.png", b"folder\xff/a.png"):
        (tmp_path / os.fsdecode(odd)).write_bytes((tmp_path / "good.png").read_bytes())
    found = read(tmp_path)
    assert list(found.tags) == ["good.png"]
    assert len(found.rejected) == 4
    assert {reason for reason, _ in found.rejected.values()} == {"name"}
    assert all(name.isascii() and name.isprintable() for name in found.rejected)


def test_what_is_not_followed_is_told(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    write_image("a.png")
    write_file("a.txt", "smile")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "linked.png").symlink_to("a.png")
    write_file("linked.txt", "smile")
    found = read(tmp_path)
    assert list(found.tags) == ["a.png", "linked.png"]
    assert {name: reason for name, (reason, _) in found.rejected.items()} == {
        "dangling.png": "unreadable picture",
        "itself.png": "unreadable picture",
        "loop": "unreadable folder",
    }


def test_folders_of_many_chunks_come_in_order(
    tmp_path: Path, write_image: Paint, write_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_CHUNK", 3)
    content = write_image("00.png").read_bytes()
    for number in range(20):
        write_file(f"{number:02d}.png", content)
        write_file(f"{number:02d}.txt", f"tag_{number}")
    assert read(tmp_path).tags == {f"{n:02d}.png": {None: [f"tag_{n}"]} for n in range(20)}


# ---- whole runs -----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def prepared(shipped: Params, **values: Any) -> None:
    """Run the stage with some parameters of its own."""
    p = shipped.prepare.model_copy(
        update={
            key: Path(value) if key in ("path", "pictures") else value
            for key, value in values.items()
        }
    )
    prepare.main(p)


def labels() -> list[list[str]]:
    """Return the names of the tags of each post."""
    names = pq.read_table(prepare.TAGS)["name"].to_pylist()
    return [
        [names[tag] for tag in tags] for tags in pq.read_table(prepare.POSTS)["tags"].to_pylist()
    ]


def outcome() -> tuple[list[str], list[str]]:
    """Return the ids of posts.parquet and of rejected.csv."""
    with prepare.REJECTED.open(encoding="utf-8", newline="") as file:
        rejected = [row["id"] for row in csv.DictReader(file)]
    return pq.read_table(prepare.POSTS)["id"].to_pylist(), rejected


def test_categories_of_json_reach_the_tags(
    project: Path, write_image: Paint, write_file: Write, default_params: Params
) -> None:
    write_image("pictures/a.png")
    write_file("pictures/a.json", '{"character": ["Hatsune Miku"], "general": ["smile"]}')
    prepared(default_params, path="pictures")
    tags = pq.read_table(prepare.TAGS).to_pydict()
    assert dict(zip(tags["name"], tags["category"], strict=True)) == {
        "smile": 0,
        "hatsune_miku": 4,
    }


def test_the_size_is_that_of_the_upright_picture(
    project: Path, write_file: Write, default_params: Params
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    write_file("pictures/a.txt", "smile")
    Image.new("RGB", (20, 10)).save("pictures/a.jpg", exif=exif)
    prepared(default_params, path="pictures")
    post = pq.read_table(prepare.POSTS).to_pylist()[0]
    assert (post["width"], post["height"], post["offset"]) == (10, 20, 0)
    assert post["size"] == Path(post["file"]).stat().st_size


SIDECARS = [None, b"", b"smile", b"smile, 1girl", b"\xff", b"a\0b", b'["smile"]', b"{"]
PICTURES = ["png", "broken", "empty", "dangling"]
SOME_NAMES = ["a", "b", "inner/a", 'q"u,o', "new\nline", "初音", "wide\u3000", os.fsdecode(b"\xff")]


@pytest.mark.parametrize("verify", ["header", "decode"])
@given(
    pictures=st.dictionaries(
        st.sampled_from(SOME_NAMES),
        st.tuples(st.sampled_from(PICTURES), st.sampled_from(SIDECARS), st.booleans()),
    )
)
@settings(max_examples=12, derandomize=True)
def test_every_picture_is_a_post_or_rejected_and_never_both(
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
    verify: str,
    pictures: dict[str, tuple[str, bytes | None, bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        patch.setenv("DVC_ROOT", ".")
        patch.setattr(prepare, "report", only_rejected)
        Path("pictures/inner").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save("pictures/always.png")
        Path("pictures/always.txt").write_text("smile")
        for name, (kind, sidecar, as_json) in pictures.items():
            draw(Path("pictures", f"{name}.png"), kind)
            if sidecar is not None:
                Path("pictures", name + (".json" if as_json else ".txt")).write_bytes(sidecar)
        prepared(default_params, path="pictures", verify=verify)
        posts, rejected = outcome()
        assert len(set(posts)) == len(posts)
        assert sorted([*posts, *rejected]) == sorted(
            name if name.replace("\u3000", "").isprintable() else ascii(name)
            for name in ("always.png", *(f"{name}.png" for name in pictures))
        )
        assert all(path.suffix == ".lock" for path in scratch.stage_folder("prepare").iterdir())


def only_rejected(*arguments: Any) -> None:
    """Stand in for the report, whose drawings take a second each."""
    arguments[3].write(prepare.REJECTED)


def draw(path: Path, kind: str) -> None:
    if kind == "png":
        Image.new("RGB", (4, 4)).save(path)
    elif kind == "dangling":
        path.symlink_to("nowhere.png")
    else:
        path.write_bytes(b"no picture" if kind == "broken" else b"")


def test_a_picture_of_two_folders_by_the_same_path_is_listed(
    project: Path, write_image: Paint, write_file: Write, default_params: Params
) -> None:
    for name in ("pictures/more/a", "more/a"):
        write_image(f"{name}.png")
        write_file(f"{name}.txt", "smile")
    prepared(default_params, path="pictures", more_folders=[Path("more")])
    posts, rejected = outcome()
    assert sorted([*posts, *rejected]) == ["more/a.png", "more/a.png"]


def test_nothing_to_use_is_one_line_and_writes_nothing(
    project: Path, write_image: Paint, default_params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image("pictures/a.png")
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        prepared(default_params, path="pictures")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: None of the 1 pictures in pictures has a sidecar")
    assert not (project / "data").exists()
