"""Folders as people have them: odd sidecars are read, unusable images rejected with a reason."""

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
from tagger.data import rejected
from tagger.data.sources import folder
from tagger.data.sources.folder import FolderSource
from tagger.params import Params
from tagger.system import scratch

Write = Callable[[str, str | bytes], Path]
Paint = Callable[[str], Path]
Tags = dict[int | None, list[str]]


class FolderContent(NamedTuple):
    tags: dict[str, Tags]  # by image and category
    rejected: dict[str, tuple[str, str]]  # reason and detail by image


def read(*folders: Path, separator: str = ",", **settings: int) -> FolderContent:
    content = FolderContent({}, {})
    for batch in FolderSource(list(folders), separator, **settings).read():
        for row, name in enumerate(batch.posts["id"].to_pylist()):
            assert name not in content.tags
            lists = {code: lists[row].as_py() for code, lists in batch.tags.items()}
            content.tags[name] = {code: tags for code, tags in lists.items() if tags}
        for name, reason, detail in zip(*batch.rejected.to_pydict().values(), strict=True):
            assert name not in content.rejected
            content.rejected[name] = reason, detail
    return content


@pytest.fixture
def read_sidecar(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> Callable[[str, str | bytes], Any]:
    """Return the tags of an image with one sidecar, or the reason and detail of its rejection."""

    def read_sidecar(name: str, content: str | bytes, separator: str = ",") -> Any:
        write_image("a.png")
        write_file(name, content)
        images = read(tmp_path, separator=separator)
        return images.tags.get("a.png") or images.rejected["a.png"]

    return read_sidecar


SIDECARS_AS_WRITTEN = [
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
]


def test_sidecars_are_read_as_people_write_them(
    project: Path, write_image: Paint, write_file: Write, default_params: Params
) -> None:
    image = write_image("images/00.png").read_bytes()
    for number, (content, _) in enumerate(SIDECARS_AS_WRITTEN):
        write_file(f"images/{number:02}.png", image)
        write_file(f"images/{number:02}.txt", content)
    run_prepare(default_params, path="images")
    assert list(map(sorted, labels())) == [sorted(tags) for _, tags in SIDECARS_AS_WRITTEN]


@pytest.mark.parametrize("separator", [",", ", ", " ", ";", "|", "\t", "||"])
def test_separator_is_a_parameter(read_sidecar: Callable[..., Any], separator: str) -> None:
    text = separator.join(["1girl", "long_hair", "smile"])
    assert read_sidecar("a.txt", text, separator) == {None: ["1girl", "long_hair", "smile"]}


@given(st.text(), st.sampled_from([",", " ", ";", "|"]))
def test_split_tags_are_not_empty_and_hold_no_separator(text: str, separator: str) -> None:
    tags = folder.split_tags(text, separator)
    for tag in tags:
        assert tag.strip()
        assert separator not in tag
        assert folder.split_tags(tag, separator) == [tag]
    assert "".join("".join(tags).split()) == "".join(text.replace(separator, " ").split())


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
    read_sidecar: Callable[..., Any], content: Any, tags: Tags
) -> None:
    assert read_sidecar("a.json", json.dumps(content)) == tags
    assert read_sidecar("a.json", b"\xef\xbb\xbf" + json.dumps(content).encode()) == tags


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
def test_json_without_lists_of_tags_is_an_unreadable_sidecar(
    read_sidecar: Callable[..., Any], content: str | bytes
) -> None:
    reason, detail = read_sidecar("a.json", content)
    assert reason == "unreadable sidecar"
    assert detail and detail.isprintable()


@pytest.mark.parametrize("content", ["[]", '{"general": []}', '{"tags": {}}', '""'])
def test_json_without_a_tag_has_no_tags(read_sidecar: Callable[..., Any], content: str) -> None:
    assert read_sidecar("a.json", content)[0] == "no tags"


def test_first_of_four_possible_sidecars_counts(
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


def test_images_with_the_same_stem_can_have_their_own_sidecars(
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
def test_images_without_readable_tags_are_rejected(
    tmp_path: Path, write_image: Paint, write_file: Write, sidecar: bytes | None, reason: str
) -> None:
    for name in ("bad.png", "good.png"):
        write_image(name)
    write_file("good.txt", "smile")
    if sidecar is not None:
        write_file("bad.txt", sidecar)
    content = read(tmp_path)
    assert list(content.tags) == ["good.png"]
    assert list(content.rejected) == ["bad.png"]
    assert content.rejected["bad.png"][0] == reason
    assert content.rejected["bad.png"][1].isprintable()


def test_sidecars_that_are_not_files_do_not_count(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_image(name)
    write_file("a.txt", "smile")
    (tmp_path / "b.txt").mkdir()
    os.mkfifo(tmp_path / "c.txt")
    unusable = read(tmp_path).rejected
    assert {name: reason for name, (reason, _) in unusable.items() if name in "b.png c.png"} == {
        "b.png": "no sidecar",
        "c.png": "no sidecar",
    }


def test_folders_without_usable_images_are_errors(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    with pytest.raises(TaggerError, match="there is no folder"):
        read(tmp_path / "none")
    with pytest.raises(TaggerError, match="holds no images"):
        read(tmp_path)
    write_image("a.png")
    with pytest.raises(TaggerError, match=r"None of the 1 images.*a\.png needs its tags in a"):
        read(tmp_path)


def test_folders_that_share_images_are_errors(tmp_path: Path, write_image: Paint) -> None:
    write_image("one/two/a.png")
    (tmp_path / "link").symlink_to("one")
    for folders in (("one", "one/two"), ("one/two", "one"), ("one", "one"), ("one", "link")):
        with pytest.raises(TaggerError, match=r"prepare\.more_folders: .* share images"):
            read(*(tmp_path / name for name in folders))
    with pytest.raises(TaggerError, match=r"prepare\.more_folders: there is no folder"):
        read(tmp_path / "one", tmp_path / "three")


def test_ids_of_several_folders_are_unique(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    for name in ("one", "two", "three/four"):
        write_image(f"{name}/x/a.png")
        write_file(f"{name}/x/a.txt", name)
    content = read(tmp_path / "one", tmp_path / "two", tmp_path / "three")
    assert content.tags == {
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
def test_ids_may_be_names_of_all_kinds(
    tmp_path: Path, write_image: Paint, write_file: Write, name: str
) -> None:
    write_image(f"{name}.png")
    write_file(f"{name}.txt", "smile")
    assert read(tmp_path) == ({f"{name}.png": {None: ["smile"]}}, {})


def test_unprintable_names_are_rejected(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    write_image("good.png")
    write_file("good.txt", "smile")
    (tmp_path / os.fsdecode(b"folder\xff")).mkdir()
    for odd in (b"\xc4\xe3.png", b"new\nline.png", b"tab\t.png", b"folder\xff/a.png"):
        (tmp_path / os.fsdecode(odd)).write_bytes((tmp_path / "good.png").read_bytes())
    content = read(tmp_path)
    assert list(content.tags) == ["good.png"]
    assert len(content.rejected) == 4
    assert {reason for reason, _ in content.rejected.values()} == {"name"}
    assert all(name.isascii() and name.isprintable() for name in content.rejected)


def test_links_that_are_not_followed_are_rejected(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    write_image("a.png")
    write_file("a.txt", "smile")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "linked.png").symlink_to("a.png")
    write_file("linked.txt", "smile")
    content = read(tmp_path)
    assert list(content.tags) == ["a.png", "linked.png"]
    assert {name: reason for name, (reason, _) in content.rejected.items()} == {
        "dangling.png": "unreadable image",
        "itself.png": "unreadable image",
        "loop": "unreadable folder",
    }


def test_images_of_many_chunks_are_in_order(
    tmp_path: Path, write_image: Paint, write_file: Write
) -> None:
    content = write_image("00.png").read_bytes()
    for number in range(20):
        write_file(f"{number:02d}.png", content)
        write_file(f"{number:02d}.txt", f"tag_{number}")
    expected = {f"{n:02d}.png": {None: [f"tag_{n}"]} for n in range(20)}
    assert read(tmp_path, chunk_images=3).tags == expected


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def run_prepare(default_params: Params, **values: Any) -> None:
    p = default_params.prepare.model_copy(
        update={
            key: Path(value) if key in ("path", "image_root") else value
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
        rejected_ids = [row["id"] for row in csv.DictReader(file)]
    return pq.read_table(prepare.POSTS)["id"].to_pylist(), rejected_ids


def test_prepare_keeps_the_categories_of_json_sidecars(
    project: Path, write_image: Paint, write_file: Write, default_params: Params
) -> None:
    write_image("images/a.png")
    write_file("images/a.json", '{"character": ["Hatsune Miku"], "general": ["smile"]}')
    run_prepare(default_params, path="images")
    tags = pq.read_table(prepare.TAGS).to_pydict()
    assert dict(zip(tags["name"], tags["category"], strict=True)) == {
        "smile": 0,
        "hatsune_miku": 4,
    }


def test_prepare_writes_the_upright_size(
    project: Path, write_file: Write, default_params: Params
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    write_file("images/a.txt", "smile")
    Image.new("RGB", (20, 10)).save("images/a.jpg", exif=exif)
    run_prepare(default_params, path="images")
    post = pq.read_table(prepare.POSTS).to_pylist()[0]
    assert (post["width"], post["height"], post["offset"]) == (10, 20, 0)
    assert post["size"] == Path(post["file"]).stat().st_size


SIDECARS = [None, b"", b"smile", b"smile, 1girl", b"\xff", b"a\0b", b'["smile"]', b"{"]
IMAGE_KINDS = ["png", "broken", "empty", "dangling"]
SOME_NAMES = ["a", "b", "inner/a", 'q"u,o', "new\nline", "初音", "wide\u3000", os.fsdecode(b"\xff")]


@pytest.mark.parametrize("verify", ["header", "decode"])
@given(
    images=st.dictionaries(
        st.sampled_from(SOME_NAMES),
        st.tuples(st.sampled_from(IMAGE_KINDS), st.sampled_from(SIDECARS), st.booleans()),
    )
)
@settings(max_examples=12, derandomize=True)
def test_prepare_uses_or_rejects_every_image_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    default_params: Params,
    verify: str,
    images: dict[str, tuple[str, bytes | None, bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        patch.setenv("DVC_ROOT", ".")
        patch.setattr(prepare, "write_reports", write_rejected)
        Path("images/inner").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save("images/always.png")
        Path("images/always.txt").write_text("smile")
        for name, (kind, sidecar, as_json) in images.items():
            draw(Path("images", f"{name}.png"), kind)
            if sidecar is not None:
                Path("images", name + (".json" if as_json else ".txt")).write_bytes(sidecar)
        run_prepare(default_params, path="images", verify=verify)
        posts, rejected_ids = outcome()
        assert len(set(posts)) == len(posts)
        assert sorted([*posts, *rejected_ids]) == sorted(
            name if name.replace("\u3000", "").isprintable() else ascii(name)
            for name in ("always.png", *(f"{name}.png" for name in images))
        )
        assert all(path.suffix == ".lock" for path in scratch.stage_folder("prepare").iterdir())


def write_rejected(*arguments: Any) -> None:
    """Replace the reports, whose plots take a second each."""
    rejected.write(arguments[3], prepare.REJECTED)


def draw(path: Path, kind: str) -> None:
    if kind == "png":
        Image.new("RGB", (4, 4)).save(path)
    elif kind == "dangling":
        path.symlink_to("nowhere.png")
    else:
        path.write_bytes(b"no image" if kind == "broken" else b"")


def test_prepare_rejects_an_image_with_the_id_of_another(
    project: Path, write_image: Paint, write_file: Write, default_params: Params
) -> None:
    for name in ("images/more/a", "more/a"):
        write_image(f"{name}.png")
        write_file(f"{name}.txt", "smile")
    run_prepare(default_params, path="images", more_folders=[Path("more")])
    posts, rejected_ids = outcome()
    assert sorted([*posts, *rejected_ids]) == ["more/a.png", "more/a.png"]


def test_prepare_without_usable_images_is_an_error_and_writes_nothing(
    project: Path, write_image: Paint, default_params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image("images/a.png")
    with pytest.raises(SystemExit) as ended, errors.exit_on_error():
        run_prepare(default_params, path="images")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: None of the 1 images in images has a sidecar")
    assert not (project / "data").exists()
