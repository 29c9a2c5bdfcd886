"""The pictures of wanted posts are fetched once, the cheaper way; what cannot be had is named."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants

from support.hub_server import COMMIT, REPO, Fault, HubServer, serve_hub, use_hub
from tagger.core.errors import TaggerError
from tagger.data.hub import download, plan, shards

PICTURES = {
    0: [f"{post}.webp" for post in range(1000, 21000, 1000)],
    7: ["7.webp", "1007.png", "1007.json", "../../2007.webp", "README.md"],
}
SIZE = 20_000  # bytes of each


def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a data set: two tars with their indexes, and what belongs to no post."""
    made = tmp_path_factory.mktemp("repository")
    for number, names in PICTURES.items():
        tar = made / f"images/{number:04}.tar"
        shards.write_tar(tar, ((name, content(name)) for name in names))
    (made / "images/0008.tar").write_bytes(b"without an index")
    (made / "README.md").write_text("# tiny")
    found = (path for path in sorted(made.rglob("*")) if path.is_file())
    return {path.relative_to(made).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def server(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(plan, "_REQUEST", 3000)
    with serve_hub(dict(files)) as server, use_hub(server.url, tmp_path / "home", monkeypatch):
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def get(folder: Path) -> Callable[..., dict[int, str]]:
    def get(*posts: int, how: plan.DownloadMethod = "auto") -> dict[int, str]:
        return plan.download_images(np.array(posts, np.int64), REPO, folder, method=how)

    return get


Get = Callable[..., dict[int, str]]


def below(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}


def test_members_are_the_pictures_of_the_wanted_posts(
    server: HubServer, folder: Path, get: Get
) -> None:
    assert get(1000, 7, 1007, 5000, how="members") == {}
    names = {"0000/1000.webp", "0000/5000.webp", "0007/7.webp", "0007/1007.png"}
    assert below(folder) == {f"images/{name}" for name in names | {"0000.json", "0007.json"}}
    for name in names:
        assert (folder / "images" / name).read_bytes() == content(Path(name).name)


def test_shards_are_whole_tars_with_their_indexes(
    server: HubServer, folder: Path, get: Get, files: dict[str, bytes]
) -> None:
    assert get(1000, 5000, how="shards") == {}
    assert below(folder) == {"images/0000.tar", "images/0000.json"}
    assert (folder / "images/0000.tar").read_bytes() == files["images/0000.tar"]
    index, complaint = shards.open_index(folder / "images/0000.tar")
    assert (index.names, complaint) == (PICTURES[0], "")


def test_each_tar_is_fetched_the_cheaper_way(
    server: HubServer, folder: Path, get: Get, capsys: pytest.CaptureFixture[str]
) -> None:
    every, one = range(1000, 21000, 1000), 7
    assert get(*every, one) == {}
    assert below(folder) == {
        "images/0000.tar",
        "images/0000.json",
        "images/0007.json",
        "images/0007/7.webp",
    }
    size = (len(server.files["images/0000.tar"]) + SIZE) / 1000
    assert capsys.readouterr().out == (
        f"downloading 21 pictures of {REPO}, {size:.1f} kB (whole tars: 1, single pictures: 1) "
        f"-> {folder}\n"
    )


@pytest.mark.parametrize(("cost", "tar"), [(0, False), (3_000, True), (50_000, True)])
def test_a_request_has_its_price(
    server: HubServer,
    folder: Path,
    get: Get,
    monkeypatch: pytest.MonkeyPatch,
    cost: int,
    tar: bool,
) -> None:
    monkeypatch.setattr(plan, "_REQUEST", cost)
    get(*range(1000, 21000, 1000))
    assert (folder / "images/0000.tar").exists() == tar


@pytest.mark.parametrize("how", ["auto", "shards", "members"])
def test_nothing_is_fetched_twice(
    server: HubServer, folder: Path, get: Get, how: plan.DownloadMethod
) -> None:
    wanted = [*range(1000, 21000, 1000), 7]
    get(*wanted, how=how)
    asked = len(server.log)
    assert get(*wanted, how=how) == {}
    assert len(server.log) == asked


def test_a_post_without_a_picture_is_no_reason_to_fetch_a_tar(server: HubServer, get: Get) -> None:
    get(7, how="members")
    assert get(7, 9007, how="shards").keys() == {9007}
    assert len(server.requested_ranges("images/0007.tar")) == 1


def test_what_others_put_there_is_not_fetched(
    server: HubServer, folder: Path, get: Get, files: dict[str, bytes]
) -> None:
    """A tar without its index, and a loose picture."""
    (folder / "images/0007").mkdir(parents=True)
    (folder / "images/0000.tar").write_bytes(files["images/0000.tar"])
    (folder / "images/0007/7.webp").write_bytes(content("7.webp"))
    assert get(1000, 2000, 7) == {}
    assert not server.requested_ranges("images/0000.tar")
    assert not server.requested_ranges("images/0007.tar")


def test_only_what_is_missing_is_fetched(server: HubServer, get: Get) -> None:
    get(1000, 2000, how="members")
    get(1000, 2000, 3000, how="members")
    assert len(server.requested_ranges("images/0000.tar")) == 3
    assert len(server.requested_ranges("images/0000.json")) == 1


def test_a_tar_cut_short_is_fetched_again(
    server: HubServer, folder: Path, get: Get, files: dict[str, bytes]
) -> None:
    get(1000, how="shards")
    tar = folder / "images/0000.tar"
    tar.write_bytes(files["images/0000.tar"][:100_000])
    assert get(20000, how="shards") == {}
    assert tar.read_bytes() == files["images/0000.tar"]


def test_posts_without_a_picture_are_named(server: HubServer, get: Get) -> None:
    assert get(1000, 99000, 7, 9007, 8, 1999) == {
        99000: "images/0000.json does not name it",
        9007: "images/0007.json does not name it",
        8: f"{REPO} has no tar 0008 with an index",
        1999: f"{REPO} has no tar 0999 with an index",
    }


def test_a_picture_that_cannot_be_downloaded_is_named(
    server: HubServer, folder: Path, get: Get
) -> None:
    server.inject_faults("images/0007.tar", repeat(Fault(status=500)))
    assert get(1000, 7, how="members") == {
        7: "images/0007/7.webp: the server answers 500 Internal Server Error"
    }
    assert (folder / "images/0000/1000.webp").exists()


def test_a_tar_that_cannot_be_downloaded_names_all_its_posts(
    server: HubServer, folder: Path, get: Get
) -> None:
    server.inject_faults("images/0000.tar", repeat(Fault(corrupted=True)))
    why = "images/0000.tar: its SHA-256 is not the one that the data set names"
    assert get(1000, 2000, how="shards") == {1000: why, 2000: why}
    assert below(folder) == {"images/0000.json"}  # spoiled bytes are no start to go on from


def test_an_index_that_cannot_be_downloaded_names_all_its_posts(
    server: HubServer, get: Get
) -> None:
    server.inject_faults("images/0000.json", repeat(Fault(status=500)))
    why = "images/0000.json: the server answers 500 Internal Server Error"
    assert get(1000, 2000, 7) == {1000: why, 2000: why}


def test_an_index_that_lies_names_all_its_posts(server: HubServer, folder: Path, get: Get) -> None:
    index = json.loads(server.files["images/0007.json"])
    index["files"]["7.webp"]["offset"] = 10**9
    server.files["images/0007.json"] = json.dumps(index).encode()
    (why,) = get(1000, 7, how="members").values()
    assert "names members outside its tar" in why
    assert (folder / "images/0000/1000.webp").exists()


def test_no_name_in_an_index_leads_out_of_the_folder(
    server: HubServer, folder: Path, get: Get
) -> None:
    assert get(2007, how="members") == {}
    assert below(folder.parent) == {"data/images/0007.json", "data/images/0007/2007.webp"}


def test_no_path_in_a_listing_leads_out_of_the_folder(
    server: HubServer, folder: Path, get: Get
) -> None:
    server.files |= {"../up/0009.tar": b"tar", "../up/0009.json": b"{}"}
    assert get(9) == {9: f"{REPO} has no tar 0009 with an index"}
    assert not folder.parent.joinpath("up").exists()


def test_a_picture_newly_in_the_data_set_is_found(
    server: HubServer, folder: Path, get: Get, tmp_path: Path
) -> None:
    assert get(7, 3007, how="members").keys() == {3007}
    tar = tmp_path / "0007.tar"
    shards.write_tar(tar, [("3007.webp", b"new")])
    server.files["images/0007.tar"] = tar.read_bytes()
    server.files["images/0007.json"] = tar.with_suffix(".json").read_bytes()
    assert get(3007, how="members") == {}
    assert (folder / "images/0007/3007.webp").read_bytes() == b"new"


def test_offline_all_that_is_there_is_enough(
    server: HubServer, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(1000, 7, how="members")
    get(*range(1000, 21000, 1000), how="shards")
    asked = len(server.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(1000, 20000, 7, 9007) == {9007: "images/0007.json does not name it"}
    with pytest.raises(TaggerError, match="HF_HUB_OFFLINE is set, and not all of"):
        get(1000, 1007)
    assert len(server.log) == asked


def test_all_files_are_of_the_commit_that_was_listed(server: HubServer, get: Get) -> None:
    get(1000, 7)
    about, *others = [one.path for one in server.log if one.path.startswith("/api/")]
    assert about.endswith("/revision/main")
    assert others
    assert all(path.endswith(f"/tree/{COMMIT}") for path in others)


def test_the_room_for_all_pictures_is_asked_for_before_the_first(
    server: HubServer, folder: Path, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(TaggerError, match=r"50\.0 kB free, and 60\.0 kB are needed"):
        get(1000, 2000, 7, how="members")
    assert below(folder) == {"images/0000.json", "images/0007.json"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("more/0007", "has images/0007.tar and more/0007.tar: which one"),
        ("more/7", "has images/0007.tar and more/7.tar: which one"),
    ],
)
def test_two_tars_of_one_number_are_told(
    server: HubServer, get: Get, path: str, message: str
) -> None:
    server.files |= {f"{path}.tar": b"", f"{path}.json": b"{}"}
    with pytest.raises(TaggerError, match=message):
        get(7)


def test_a_data_set_of_another_make_is_told(server: HubServer, get: Get) -> None:
    server.files = {"data/train.tar": b"", "data/train.json": b"{}", "0007.tar": b""}
    with pytest.raises(TaggerError, match="holds no numbered tars with their indexes"):
        get(7)
