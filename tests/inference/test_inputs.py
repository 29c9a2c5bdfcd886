"""Inputs of infer: files, folders, globs and lists, whatever their names."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.core.errors import TaggerError
from tagger.inference import inputs

Paint = Callable[[str], Path]


@pytest.fixture
def names(
    write_image: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Find images from the folder that holds them, and return the paths."""
    for name in ("a.png", "b.jpg", "in/c.png", "in/deep/d.png", "thumbs/a.png"):
        write_image(name)
    (tmp_path / "a.txt").write_text("tag\n")
    monkeypatch.chdir(tmp_path)

    def find(
        *arguments: str, recursive: bool = False, skip: tuple[str, ...] = (), stdin: bytes = b""
    ) -> list[str]:
        images = inputs.find_inputs(
            arguments, recursive=recursive, skip=skip, stdin=io.BytesIO(stdin)
        )
        return [str(image.file) for image in images]

    return find


def test_files_and_folders_come_in_their_order_each_once(names: Callable[..., list[str]]) -> None:
    assert names("b.jpg", ".", "./a.png") == ["b.jpg", "a.png"]
    assert names("in", recursive=True) == ["in/c.png", "in/deep/d.png"]
    assert names("in") == ["in/c.png"]


def test_a_glob_finds_images_alone_and_two_stars_enter_folders(
    names: Callable[..., list[str]],
) -> None:
    assert names("a.*") == ["a.png"]
    assert names("in/*") == ["in/c.png", "in/deep/d.png"]
    assert names("**/*.png") == ["a.png", "in/c.png", "in/deep/d.png", "thumbs/a.png"]
    with pytest.raises(TaggerError, match=r"No file matches \*\.webp\."):
        names("*.webp")


def test_a_file_whose_name_looks_like_a_glob_is_itself(
    names: Callable[..., list[str]], write_image: Paint
) -> None:
    write_image("[ab].png")
    assert names("[ab].png") == ["[ab].png"]


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (("a.png",), ["b.jpg", "in/c.png", "in/deep/d.png"]),
        (("thumbs/*",), ["a.png", "b.jpg", "in/c.png", "in/deep/d.png"]),
        (("*.png",), ["b.jpg"]),
        (("*/deep/*", "thumbs/*", "b.*"), ["a.png", "in/c.png"]),
    ],
)
def test_images_that_match_skip_are_skipped(
    names: Callable[..., list[str]], skip: tuple[str, ...], left: list[str]
) -> None:
    assert names(".", recursive=True, skip=skip) == left


def test_a_list_on_stdin_names_files_and_folders(names: Callable[..., list[str]]) -> None:
    assert names("-", stdin=b"b.jpg\r\n\nin\n") == ["b.jpg", "in/c.png"]
    assert names("-", stdin=b"a.png\0b.jpg\0") == ["a.png", "b.jpg"]
    with pytest.raises(TaggerError, match="-: no images there"):
        names("-")


def test_a_list_may_name_missing_files(names: Callable[..., list[str]]) -> None:
    """One of many that vanished since the list was made must not stop the others."""
    assert names("-", stdin=b"gone.png\na.png\n") == ["gone.png", "a.png"]
    with pytest.raises(TaggerError, match=r"There is no image or folder gone\.png\."):
        names("gone.png")


def test_an_unreadable_entry_is_found_with_its_problem(
    tmp_path: Path, write_image: Paint, caplog: pytest.LogCaptureFixture
) -> None:
    write_image("set/a.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    (tmp_path / "set" / "link").symlink_to(tmp_path)
    images = inputs.find_inputs([str(tmp_path / "set")], recursive=True)
    assert [(image.file.name, image.problem) for image in images] == [
        ("a.png", ""),
        ("pipe.png", "neither a file nor a folder"),
    ]
    assert "a link to a folder, which is not followed" in caplog.text


def test_the_base_is_the_folder_that_was_named(
    names: Callable[..., list[str]], tmp_path: Path
) -> None:
    def bases(*arguments: str) -> list[str]:
        return [str(image.base) for image in inputs.find_inputs(arguments, recursive=True)]

    assert bases("in/c.png") == ["in"]
    assert bases("in") == ["in", "in"]
    assert bases("in/**/*.png") == ["in", "in"]
