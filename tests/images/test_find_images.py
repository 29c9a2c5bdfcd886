"""Images below a folder are found in one order, whatever else is there."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tagger.images import find_images

STAGES = Path(__file__).parents[2] / "stages"
Paint = Callable[[str], Path]
NOBODY = 65534

LIST_AS_NOBODY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tagger.images import find_images
os.setuid(int(sys.argv[2]))
for directory in find_images.scan_folders(Path(".")):
    print(directory.path, [entry.name for entry in directory.images], directory.unreadable)
"""


def unread(folder: Path) -> list[tuple[str, str]]:
    return [
        reason for directory in find_images.scan_folders(folder) for reason in directory.unreadable
    ]


def pictures_of(folder: Path, *, recursive: bool = True) -> list[Path]:
    directories = find_images.scan_folders(folder, recursive=recursive)
    return [Path(entry.path) for directory in directories for entry in directory.images]


def test_images_of_a_folder_come_before_those_below_it_by_name(
    tmp_path: Path, write_image: Paint
) -> None:
    for name in ("b/2.png", "b/10.png", "a/c/1.jpg", "z.WEBP", "a/d.e.bmp", "a.png"):
        write_image(name)
    (tmp_path / "notes.md").touch()
    names = [path.relative_to(tmp_path).as_posix() for path in pictures_of(tmp_path)]
    assert names == ["a.png", "z.WEBP", "a/d.e.bmp", "a/c/1.jpg", "b/10.png", "b/2.png"]
    alone = [path.name for path in pictures_of(tmp_path, recursive=False)]
    assert alone == ["a.png", "z.WEBP"]


@pytest.mark.parametrize("name", ["a.png", "a.JPG", ".png", "a.b.jpeg", "初音.webp", "a.jfif"])
def test_images_are_known_by_their_suffix(name: str) -> None:
    assert find_images.is_image_name(name)


@pytest.mark.parametrize("name", ["png", "gif", "a.txt", "a.png.txt", "a.", "", "a.pn"])
def test_names_without_an_image_suffix_are_no_images(name: str) -> None:
    assert not find_images.is_image_name(name)


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path, write_image: Paint) -> None:
    write_image("a.png/b.png")
    assert pictures_of(tmp_path) == [tmp_path / "a.png/b.png"]


def test_links_to_images_are_followed_and_links_to_folders_reported(
    tmp_path: Path, write_image: Paint
) -> None:
    write_image("below/a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "below/up").symlink_to("..")
    (tmp_path / "linked.png").symlink_to("below/a.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    names = [path.relative_to(tmp_path).as_posix() for path in pictures_of(tmp_path)]
    assert names == ["dangling.png", "itself.png", "linked.png", "below/a.png"]
    assert unread(tmp_path) == [
        (name, "a link to a folder, which is not followed") for name in ("loop", "up")
    ]


def test_pipes_and_sockets_are_not_read(tmp_path: Path, write_image: Paint) -> None:
    write_image("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert pictures_of(tmp_path) == [tmp_path / "a.png"]
        assert [name for name, _ in unread(tmp_path)] == ["linked.png", "pipe.png", "socket"]


def test_an_unreadable_folder_is_reported_and_the_rest_listed(
    tmp_path: Path, write_image: Paint
) -> None:
    write_image("open/a.png")
    write_image("shut/b.png")
    (tmp_path / "open/link").symlink_to(tmp_path / "shut/inner")
    (tmp_path / "shut").chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    user = NOBODY if os.getuid() == 0 else os.getuid()
    if user != NOBODY:
        (tmp_path / "shut").chmod(0)
    listed = subprocess.run(
        [sys.executable, "-c", LIST_AS_NOBODY, STAGES, str(user)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    (tmp_path / "shut").chmod(0o700)
    assert listed.stderr == ""
    assert listed.stdout.splitlines() == [
        ". [] []",
        "open ['a.png'] []",
        "shut [] [('', 'Permission denied')]",
    ]
