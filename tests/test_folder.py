"""A folder as people bring it: odd sidecars are read, the hopeless listed with a reason."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagger import folder
from tagger.errors import TaggerError

Write = Callable[[str, str | bytes], Path]
Paint = Callable[[str], Path]


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        (b"1girl, long_hair\n", ["1girl", "long_hair"]),
        (b"\xef\xbb\xbf1girl, long_hair", ["1girl", "long_hair"]),
        (b"1girl,\r\nlong_hair\r\n", ["1girl", "long_hair"]),
        (b"1girl\nlong_hair\n\n", ["1girl", "long_hair"]),
        (b"1girl\rlong_hair", ["1girl", "long_hair"]),
        (b",, 1girl ,,  Long   Hair ,", ["1girl", "long_hair"]),
        (b"1girl, 1girl, long hair, long_hair", ["1girl", "long_hair"]),
        ("初音ミク, é".encode(), ["初音ミク", "é"]),
        (b'null, nan, ^_^, "quoted", don\'t', ["null", "nan", "^_^", '"quoted"', "don't"]),
    ],
)
def test_sidecars_are_read_as_people_write_them(
    tmp_path: Path, paint: Paint, write: Write, content: bytes, tags: list[str]
) -> None:
    paint("a.png")
    write("a.txt", content)
    pictures, rejected = folder.read(tmp_path, ",")
    assert [picture.tags for picture in pictures] == [tags]
    assert not rejected


@pytest.mark.parametrize("separator", [",", ", ", " ", ";", "|", "\t"])
def test_the_separator_is_chosen(separator: str) -> None:
    text = separator.join(["1girl", "long_hair", "smile"])
    assert folder.parse_tags(text, separator) == ["1girl", "long_hair", "smile"]


@given(st.text(), st.sampled_from([",", " ", ";", "|"]))
def test_tags_never_hold_separators_spaces_or_capitals(text: str, separator: str) -> None:
    tags = folder.parse_tags(text.replace("\0", ""), separator)
    assert len(set(tags)) == len(tags)
    for tag in tags:
        assert tag == "".join(tag.split()).lower()
        assert tag
        assert separator not in tag
        assert folder.parse_tags(tag, separator) == [tag]


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        (b"", "no tags"),
        (b" ,\n, ", "no tags"),
        (b"1girl\0, smile", "unreadable sidecar"),
        ("1girl, café".encode("latin-1"), "unreadable sidecar"),
        (b"\xff\xfe1\0g\0", "unreadable sidecar"),
        (None, "no sidecar"),
    ],
)
def test_a_picture_without_readable_tags_is_left_out_and_the_rest_kept(
    tmp_path: Path, paint: Paint, write: Write, sidecar: bytes | None, reason: str
) -> None:
    for name in ("bad.png", "good.png"):
        paint(name)
    write("good.txt", "smile")
    if sidecar is not None:
        write("bad.txt", sidecar)
    pictures, rejected = folder.read(tmp_path, ",")
    assert [picture.id for picture in pictures] == ["good.png"]
    assert [(reject.id, reject.reason) for reject in rejected] == [("bad.png", reason)]
    assert rejected[0].detail
    assert "\n" not in rejected[0].detail


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_an_unreadable_picture_is_left_out_and_the_rest_kept(
    tmp_path: Path, paint: Paint, write: Write, content: bytes
) -> None:
    paint("good.png")
    write("bad.png", content)
    for name in ("good.txt", "bad.txt"):
        write(name, "smile")
    pictures, rejected = folder.read(tmp_path, ",")
    assert [picture.id for picture in pictures] == ["good.png"]
    assert [(reject.id, reject.reason) for reject in rejected] == [
        ("bad.png", "unreadable picture")
    ]


def test_pictures_come_by_path_from_all_subfolders(
    tmp_path: Path, paint: Paint, write: Write
) -> None:
    for name in ("b/2.png", "a/c/1.jpg", "3.WEBP", "a/d.e.bmp"):
        paint(name)
        write(str(Path(name).with_suffix(".txt")), "smile")
    write("notes.md", "no picture")
    pictures, rejected = folder.read(tmp_path, ",")
    assert [picture.id for picture in pictures] == ["3.WEBP", "a/c/1.jpg", "a/d.e.bmp", "b/2.png"]
    assert not rejected


def test_size_is_that_of_the_upright_picture(tmp_path: Path, write: Write) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    write("a.txt", "smile")
    pictures, _ = folder.read(tmp_path, ",")
    assert (pictures[0].width, pictures[0].height) == (10, 20)
    assert pictures[0].size == (tmp_path / "a.jpg").stat().st_size


def test_a_name_that_cannot_be_printed_is_left_out(
    tmp_path: Path, paint: Paint, write: Write
) -> None:
    paint("good.png")
    write("good.txt", "smile")
    for odd in (b"\xc4\xe3.png", b"new\nline.png"):
        (tmp_path / os.fsdecode(odd)).write_bytes((tmp_path / "good.png").read_bytes())
    pictures, rejected = folder.read(tmp_path, ",")
    assert [picture.id for picture in pictures] == ["good.png"]
    assert [reject.reason for reject in rejected] == ["name", "name"]
    assert all(reject.id.isascii() and reject.id.isprintable() for reject in rejected)


def test_a_folder_without_anything_to_use_is_refused(
    tmp_path: Path, paint: Paint, write: Write
) -> None:
    with pytest.raises(TaggerError, match="there is no folder"):
        folder.read(tmp_path / "none", ",")
    with pytest.raises(TaggerError, match="holds no pictures"):
        folder.read(tmp_path, ",")
    paint("a.png")
    with pytest.raises(TaggerError, match=r"has a sidecar\. a\.png needs its tags in a\.txt"):
        folder.read(tmp_path, ",")
    write("a.txt", "")
    with pytest.raises(TaggerError, match="None of the 1 pictures"):
        folder.read(tmp_path, ",")


def test_without_tags_csv_only_the_ratings_have_a_category(tmp_path: Path) -> None:
    assert folder.read_categories(tmp_path) == dict.fromkeys(
        ("general", "sensitive", "questionable", "explicit"), (9, -1)
    )


def test_tags_csv_gives_categories_and_ids(tmp_path: Path, write: Write) -> None:
    write("tags.csv", '\ufeffname,category,tag_id\r\nmiku,4,42\r\n"a,""b""",3,\r\nnan,0,7\r\n')
    known = folder.read_categories(tmp_path)
    assert known["miku"] == (4, 42)
    assert known['a,"b"'] == (3, -1)
    assert known["nan"] == (0, 7)
    assert known["explicit"] == (9, -1)


def test_names_in_tags_csv_are_brought_into_the_form_of_the_sidecars(
    tmp_path: Path, write: Write
) -> None:
    write("tags.csv", "name,category\nHatsune Miku,4\n")
    assert folder.read_categories(tmp_path)["hatsune_miku"] == (4, -1)


@pytest.mark.parametrize("row", ["miku,character", "miku,2", "miku,", "miku"])
def test_mistakes_in_tags_csv_are_told_with_their_line(
    tmp_path: Path, write: Write, row: str
) -> None:
    write("tags.csv", f"name,category\nok,0\n{row}\n")
    with pytest.raises(TaggerError, match=r"tags\.csv: line 3: "):
        folder.read_categories(tmp_path)
