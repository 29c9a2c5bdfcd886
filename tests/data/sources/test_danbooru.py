"""Danbooru's metadata: its columns, and the location of images in tars or as files."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import prepare
from tagger.core import manifest
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.data.hub import shards
from tagger.data.posts import COLUMNS, LOCATION_COLUMNS
from tagger.data.sources.danbooru import DanbooruSource
from tagger.images import decode
from tagger.params import Params

Row = dict[str, Any]
Write = Callable[[str, str | bytes], Path]


def metadata(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


MakeSource = Callable[[list[Row]], DanbooruSource]


def post(number: int, **columns: Any) -> Row:
    return {"id": number, "tag_string": "1girl smile", **columns}


@pytest.fixture
def make_source(tmp_path: Path, default_params: Params) -> MakeSource:
    """Return a source with the given metadata, and the folder `images`."""
    (tmp_path / "images").mkdir()

    def make_source(rows: list[Row]) -> DanbooruSource:
        path = metadata(tmp_path / "metadata.parquet", rows)
        return DanbooruSource(path, tmp_path / "images", default_params.prepare.download)

    return make_source


def read(source: DanbooruSource) -> list[Row]:
    """Return the posts with their tags by category."""
    rows = []
    for batch in source.read():
        for number, row in enumerate(batch.posts.to_pylist()):
            tags = {code: lists[number].as_py() for code, lists in batch.tags.items()}
            rows.append({**row, "tags": tags})
    return rows


def locate(source: DanbooruSource) -> dict[str, Row]:
    """Return the location of the image of each post, by id."""
    (batch,) = source.read()
    posts = batch.posts
    for name in LOCATION_COLUMNS:
        posts = posts.append_column(name, pa.nulls(len(posts), COLUMNS[name]))
    return {row["id"]: row for row in source.locate(posts).to_pylist()}


def read_images(source: DanbooruSource) -> dict[str, bytes | None]:
    """Return the bytes of the image of each post, None if it has none."""
    images = {}
    for name, row in locate(source).items():
        location = Location(row["shard"] or row["file"] or "", row["offset"], row["size"])
        images[name] = decode.read_bytes(location) if row["file"] else None
    return images


def test_all_columns_of_the_metadata_are_read(make_source: MakeSource) -> None:
    row = post(
        8123456,
        created_at="2005-05-24T03:35:31.000-04:00",
        rating="q",
        score=-2,
        image_width=640,
        image_height=480,
        tag_string_general="1girl smile",
        tag_string_character="saber",
        tag_string_copyright="fate_(series)",
        tag_string_artist="",
        tag_string_meta="highres",
        parent_id=8000000.0,
        is_deleted=True,
        is_banned=False,
        md5="unused",
    )
    first, second = read(make_source([row, {**row, "id": 2, "rating": None, "parent_id": None}]))
    assert (first["id"], first["score"], first["parent"]) == ("8123456", -2, "8000000")
    assert (first["width"], first["height"]) == (640, 480)
    assert (first["deleted"], first["banned"]) == (True, False)
    assert first["created_at"].isoformat() == "2005-05-24T07:35:31+00:00"
    tags = {code: [tag for tag in tags if tag] for code, tags in first["tags"].items()}
    assert tags == {
        0: ["1girl", "smile"],
        4: ["saber"],
        3: ["fate_(series)"],
        1: [],
        5: ["highres"],
        9: ["questionable"],
    }
    assert (second["tags"][9], second["parent"]) == ([], None)


def test_required_columns_are_enough(make_source: MakeSource) -> None:
    assert read(make_source([post(1)])) == [{"id": "1", "tags": {None: ["1girl", "smile"]}}]
    row = {"id": 2, "tag_string_general": "smile"}
    assert read(make_source([row])) == [{"id": "2", "tags": {0: ["smile"]}}]


def test_tag_string_is_used_if_a_category_has_no_column(
    make_source: MakeSource,
) -> None:
    (row,) = read(make_source([post(1, tag_string_general="smile")]))
    assert row["tags"] == {0: ["smile"], None: ["1girl", "smile"]}


@pytest.mark.parametrize("row", [{"tag_string": "smile"}, {"id": 1}, {"id": 1, "rating": "g"}])
def test_missing_columns_are_errors(make_source: MakeSource, row: Row) -> None:
    with pytest.raises(TaggerError, match=r"metadata\.parquet has no column '(id|tag_string)'"):
        read(make_source([row]))


def test_missing_and_invalid_metadata_is_an_error(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([post(1)])
    source.metadata.write_bytes(b"id,tag_string\n1,smile\n")
    with pytest.raises(TaggerError, match=r"metadata\.parquet cannot be read") as error:
        read(source)
    assert "\n" not in str(error.value)
    source.metadata.unlink()
    with pytest.raises(TaggerError, match=r"prepare\.path: there is no file"):
        read(source)


def test_ids_that_are_not_numbers_are_an_error(make_source: MakeSource) -> None:
    with pytest.raises(TaggerError, match="column 'id' holds more than numbers"):
        locate(make_source([{"id": "one", "tag_string": "smile"}]))


def test_missing_image_folders_are_an_error(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([post(1)])
    (tmp_path / "images").rmdir()
    with pytest.raises(TaggerError, match=r"prepare\.image_root: there is no folder"):
        locate(source)


def pack(tar: Path, members: list[tuple[str, bytes]], **options: Any) -> None:
    """Write a tar without an index."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w", **options) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


MEMBERS = [(f"{number}.webp", bytes([number]) * number) for number in range(1, 8)]


def images_of(*numbers: int) -> dict[str, bytes | None]:
    return {str(number): bytes([number]) * number for number in numbers}


def test_images_are_located_as_files_and_in_tars_of_any_folder(
    make_source: MakeSource, tmp_path: Path, write_file: Write
) -> None:
    write_file("images/1.png", MEMBERS[0][1])
    write_file("images/0002/2.JPG", MEMBERS[1][1])
    shards.write_tar(tmp_path / "images/0003.tar", MEMBERS[2:4])
    pack(tmp_path / "images/below/0005.tar", [("./images/5.webp", MEMBERS[4][1])])
    pack(tmp_path / "images/0006.tar", [("d" * 120 + "/6.webp", MEMBERS[5][1])])
    images = read_images(make_source([post(number) for number in (6, 5, 4, 3, 2, 1, 99)]))
    assert images == {**images_of(1, 2, 3, 4, 5, 6), "99": None}


def test_missing_images_are_not_replaced_by_neighbours(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source([post(number) for number in (1, 4, 9)])
    assert set(read_images(source).values()) == {None}
    shards.write_tar(tmp_path / "images/0003.tar", [MEMBERS[2], MEMBERS[4]])
    assert set(read_images(source).values()) == {None}


def test_other_files_are_not_images(
    make_source: MakeSource, tmp_path: Path, write_file: Write
) -> None:
    members = [("1.json", b"{}"), ("1.txt", b"smile"), MEMBERS[0], ("a1.webp", b""), ("1", b"")]
    pack(tmp_path / "images/0001.tar", members)
    write_file("images/2.txt", "smile")
    assert read_images(make_source([post(1), post(2)])) == {**images_of(1), "2": None}


def test_first_image_of_an_id_counts(make_source: MakeSource, tmp_path: Path) -> None:
    shards.write_tar(tmp_path / "images/a.tar", [("1.webp", b"first"), ("0001.webp", b"again")])
    shards.write_tar(tmp_path / "images/b.tar", [("1.webp", b"second")])
    assert read_images(make_source([post(1)])) == {"1": b"first"}


def test_wrong_indexes_cost_no_image_and_are_noted(make_source: MakeSource, tmp_path: Path) -> None:
    tar = tmp_path / "images/0001.tar"
    shards.write_tar(tar, MEMBERS)
    index = json.loads(tar.with_suffix(".json").read_text())
    index["files"]["7.webp"]["offset"] = 10**9
    tar.with_suffix(".json").write_text(json.dumps(index))
    source = make_source([post(number) for number in range(1, 8)])
    assert read_images(source) == images_of(*range(1, 8))
    (note,) = source.notes
    assert "0001.json" in note and "read from the tar itself" in note


def test_a_damaged_tar_costs_its_own_images_alone(
    make_source: MakeSource, tmp_path: Path, write_file: Write
) -> None:
    shards.write_tar(tmp_path / "images/a.tar", MEMBERS[:3])
    cut = tmp_path / "images/a.tar"
    cut.write_bytes(cut.read_bytes()[: 3 * 512 + 1])
    write_file("images/b.tar", b"no tar at all" * 100)
    write_file("images/c.tar", b"")
    shards.write_tar(tmp_path / "images/d.tar", MEMBERS[3:])
    source = make_source([post(number) for number in range(1, 8)])
    assert read_images(source) == {**images_of(1, 4, 5, 6, 7), "2": None, "3": None}
    assert [note.split("/")[-1][:5] for note in source.notes] == ["a.jso", "b.tar", "c.tar"]


@pytest.mark.parametrize("name", ["../1.webp", "a/../../1.webp", "/etc/1.webp", "a\n/1.webp"])
@pytest.mark.parametrize("indexed", [True, False])
def test_members_with_unsafe_names_are_skipped_and_counted(
    make_source: MakeSource, tmp_path: Path, name: str, indexed: bool
) -> None:
    members = [(name, b"evil"), MEMBERS[1]]
    tar = tmp_path / "images/0001.tar"
    shards.write_tar(tar, members) if indexed else pack(tar, members)
    source = make_source([post(1), post(2)])
    assert read_images(source) == {"1": None, **images_of(2)}
    assert any("1 members with unsafe names" in note for note in source.notes)


def test_names_that_are_no_utf8_cost_nothing_else(
    make_source: MakeSource, tmp_path: Path, write_file: Write
) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    write_file("images/2.webp", MEMBERS[1][1])
    (tmp_path / "images" / odd).mkdir()
    (tmp_path / "images" / odd / "3.webp").write_bytes(b"3")
    (tmp_path / "images" / f"{odd}.webp").write_bytes(b"x")
    pack(
        tmp_path / "images/0001.tar",
        [(f"{odd}.webp", b"x"), MEMBERS[0]],
        format=tarfile.GNU_FORMAT,
    )
    assert read_images(make_source([post(1), post(2)])) == images_of(1, 2)


def test_what_is_linked_or_hangs_costs_nothing_else(
    make_source: MakeSource, tmp_path: Path, write_file: Write
) -> None:
    write_file("images/1.webp", MEMBERS[0][1])
    (tmp_path / "images/loop").symlink_to(".")
    (tmp_path / "images/2.webp").symlink_to("nowhere.webp")
    os.mkfifo(tmp_path / "images/3.webp")
    os.mkfifo(tmp_path / "images/4.tar")
    source = make_source([post(number) for number in (1, 2, 3)])
    assert read_images(source) == {**images_of(1), "2": None, "3": None}
    assert any("loop" in note for note in source.notes)


def test_prepare_writes_locations_of_readable_images(
    tmp_path: Path, demo: Path, default_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    drawn = {n: (demo / f"{n:04d}.png").read_bytes() for n in range(6)}
    tars = [(f"{number}.png", content) for number, content in drawn.items()]
    shards.write_tar(Path("images/0000.tar"), tars[:3])
    pack(Path("images/0001.tar"), [*tars[3:5], ("7.png", b"no image")])
    Path("images/5.png").write_bytes(drawn[5])
    rows = [post(number, rating="gsqe"[number % 4]) for number in range(8)]
    p = default_params.prepare.model_copy(
        update={
            "source": "danbooru",
            "path": metadata(Path("metadata.parquet"), rows),
            "image_root": Path("images"),
        }
    )
    prepare.main(p)
    tags = {tag.name: (tag.tag_id, tag.category) for tag in manifest.read_tags(prepare.TAGS)}
    assert {name: tags[name] for name in ("general", "sensitive", "questionable", "explicit")} == {
        "general": (9999999, 9),
        "sensitive": (9999998, 9),
        "questionable": (9999997, 9),
        "explicit": (9999996, 9),
    }
    posts = manifest.read_posts(prepare.POSTS, len(tags))
    assert posts.ids.to_pylist() == [str(number) for number in range(6)]
    assert [decode.read_bytes(location) for location in manifest.locations(posts.table)] == list(
        drawn.values()
    )
    sizes = pq.read_table(prepare.POSTS)["width"].to_pylist()
    assert sizes == [Image.open(io.BytesIO(content)).width for content in drawn.values()]
    rejected = prepare.REJECTED.read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in rejected[1:]] == [
        ["6", "no image"],
        ["7", "unreadable image"],
    ]
    notes = json.loads(prepare.REPORT.read_text(encoding="utf-8"))
    assert "0001.tar has no index" in json.dumps(notes)
