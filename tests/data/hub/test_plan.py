"""Images of posts are downloaded once, at the lower cost. Missing ones have a reason."""

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

IMAGES = {
    0: [f"{post}.webp" for post in range(1000, 21000, 1000)],
    7: ["7.webp", "1007.png", "1007.json", "../../2007.webp", "README.md"],
}
SIZE = 20_000  # bytes of each


def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a data set: two tars with indexes, and files that belong to no post."""
    repository = tmp_path_factory.mktemp("repository")
    for number, names in IMAGES.items():
        tar = repository / f"images/{number:04}.tar"
        shards.write_tar(tar, ((name, content(name)) for name in names))
    (repository / "images/0008.tar").write_bytes(b"without an index")
    (repository / "README.md").write_text("# tiny")
    paths = (path for path in sorted(repository.rglob("*")) if path.is_file())
    return {path.relative_to(repository).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def server(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(plan, "REQUEST_COST", 3000)
    with serve_hub(dict(files)) as server, use_hub(server.url, tmp_path / "home", monkeypatch):
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def get(folder: Path) -> Callable[..., dict[int, str]]:
    def get(*posts: int, method: plan.DownloadMethod = "auto") -> dict[int, str]:
        return plan.download_images(np.array(posts, np.int64), REPO, folder, method=method)

    return get


Get = Callable[..., dict[int, str]]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_members_are_the_images_of_the_posts(server: HubServer, folder: Path, get: Get) -> None:
    assert get(1000, 7, 1007, 5000, method="members") == {}
    names = {"0000/1000.webp", "0000/5000.webp", "0007/7.webp", "0007/1007.png"}
    assert files_in(folder) == {f"images/{name}" for name in names | {"0000.json", "0007.json"}}
    for name in names:
        assert (folder / "images" / name).read_bytes() == content(Path(name).name)


def test_shards_are_whole_tars_with_their_indexes(
    server: HubServer, folder: Path, get: Get, files: dict[str, bytes]
) -> None:
    assert get(1000, 5000, method="shards") == {}
    assert files_in(folder) == {"images/0000.tar", "images/0000.json"}
    assert (folder / "images/0000.tar").read_bytes() == files["images/0000.tar"]
    index, distrust = shards.open_index(folder / "images/0000.tar")
    assert (index.names, distrust) == (IMAGES[0], "")


def test_each_tar_is_downloaded_at_the_lower_cost(
    server: HubServer, folder: Path, get: Get, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get(*range(1000, 21000, 1000), 7) == {}
    assert files_in(folder) == {
        "images/0000.tar",
        "images/0000.json",
        "images/0007.json",
        "images/0007/7.webp",
    }
    size = (len(server.files["images/0000.tar"]) + SIZE) / 1000
    assert capsys.readouterr().out == (
        f"downloading 21 images of {REPO}, {size:.1f} kB (whole tars: 1, single images: 1) "
        f"-> {folder}\n"
    )


@pytest.mark.parametrize(("cost", "tar"), [(0, False), (3_000, True), (50_000, True)])
def test_requests_have_a_cost(
    server: HubServer,
    folder: Path,
    get: Get,
    monkeypatch: pytest.MonkeyPatch,
    cost: int,
    tar: bool,
) -> None:
    monkeypatch.setattr(plan, "REQUEST_COST", cost)
    get(*range(1000, 21000, 1000))
    assert (folder / "images/0000.tar").exists() == tar


@pytest.mark.parametrize("method", ["auto", "shards", "members"])
def test_nothing_is_downloaded_twice(
    server: HubServer, folder: Path, get: Get, method: plan.DownloadMethod
) -> None:
    posts = [*range(1000, 21000, 1000), 7]
    get(*posts, method=method)
    requests = len(server.log)
    assert get(*posts, method=method) == {}
    assert len(server.log) == requests


def test_posts_without_an_image_do_not_cause_downloads_of_tars(server: HubServer, get: Get) -> None:
    get(7, method="members")
    assert get(7, 9007, method="shards").keys() == {9007}
    assert len(server.requested_ranges("images/0007.tar")) == 1


def test_files_from_elsewhere_are_not_downloaded_again(
    server: HubServer, folder: Path, get: Get, files: dict[str, bytes]
) -> None:
    (folder / "images/0007").mkdir(parents=True)
    (folder / "images/0000.tar").write_bytes(files["images/0000.tar"])
    (folder / "images/0007/7.webp").write_bytes(content("7.webp"))
    assert get(1000, 2000, 7) == {}
    assert not server.requested_ranges("images/0000.tar")
    assert not server.requested_ranges("images/0007.tar")


def test_only_missing_files_are_downloaded(server: HubServer, get: Get) -> None:
    get(1000, 2000, method="members")
    get(1000, 2000, 3000, method="members")
    assert len(server.requested_ranges("images/0000.tar")) == 3
    assert len(server.requested_ranges("images/0000.json")) == 1


def test_truncated_tars_are_downloaded_again(
    server: HubServer, folder: Path, get: Get, files: dict[str, bytes]
) -> None:
    get(1000, method="shards")
    tar = folder / "images/0000.tar"
    tar.write_bytes(files["images/0000.tar"][:100_000])
    assert get(20000, method="shards") == {}
    assert tar.read_bytes() == files["images/0000.tar"]


def test_posts_without_an_image_have_a_reason(server: HubServer, get: Get) -> None:
    assert get(1000, 99000, 7, 9007, 8, 1999) == {
        99000: "images/0000.json does not list it",
        9007: "images/0007.json does not list it",
        8: f"{REPO} has no tar 0008 with an index",
        1999: f"{REPO} has no tar 0999 with an index",
    }


def test_failed_images_have_a_reason(server: HubServer, folder: Path, get: Get) -> None:
    server.inject_faults("images/0007.tar", repeat(Fault(status=500)))
    assert get(1000, 7, method="members") == {
        7: "images/0007/7.webp: the server answers 500 Internal Server Error"
    }
    assert (folder / "images/0000/1000.webp").exists()


def test_failed_tars_give_a_reason_for_all_their_posts(
    server: HubServer, folder: Path, get: Get
) -> None:
    server.inject_faults("images/0000.tar", repeat(Fault(corrupted=True)))
    reason = "images/0000.tar: its SHA-256 is not the one that the data set names"
    assert get(1000, 2000, method="shards") == {1000: reason, 2000: reason}
    assert files_in(folder) == {"images/0000.json"}  # no partial file of corrupted bytes


def test_failed_indexes_give_a_reason_for_all_their_posts(server: HubServer, get: Get) -> None:
    server.inject_faults("images/0000.json", repeat(Fault(status=500)))
    reason = "images/0000.json: the server answers 500 Internal Server Error"
    assert get(1000, 2000, 7) == {1000: reason, 2000: reason}


def test_wrong_indexes_give_a_reason_for_all_their_posts(
    server: HubServer, folder: Path, get: Get
) -> None:
    index = json.loads(server.files["images/0007.json"])
    index["files"]["7.webp"]["offset"] = 10**9
    server.files["images/0007.json"] = json.dumps(index).encode()
    (reason,) = get(1000, 7, method="members").values()
    assert "names members outside its tar" in reason
    assert (folder / "images/0000/1000.webp").exists()


def test_names_in_an_index_stay_in_the_folder(server: HubServer, folder: Path, get: Get) -> None:
    assert get(2007, method="members") == {}
    assert files_in(folder.parent) == {"data/images/0007.json", "data/images/0007/2007.webp"}


def test_paths_in_a_listing_stay_in_the_folder(server: HubServer, folder: Path, get: Get) -> None:
    server.files |= {"../up/0009.tar": b"tar", "../up/0009.json": b"{}"}
    assert get(9) == {9: f"{REPO} has no tar 0009 with an index"}
    assert not folder.parent.joinpath("up").exists()


def test_new_images_of_the_data_set_are_found(
    server: HubServer, folder: Path, get: Get, tmp_path: Path
) -> None:
    assert get(7, 3007, method="members").keys() == {3007}
    tar = tmp_path / "0007.tar"
    shards.write_tar(tar, [("3007.webp", b"new")])
    server.files["images/0007.tar"] = tar.read_bytes()
    server.files["images/0007.json"] = tar.with_suffix(".json").read_bytes()
    assert get(3007, method="members") == {}
    assert (folder / "images/0007/3007.webp").read_bytes() == b"new"


def test_offline_mode_uses_the_files_in_the_folder(
    server: HubServer, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(1000, 7, method="members")
    get(*range(1000, 21000, 1000), method="shards")
    requests = len(server.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(1000, 20000, 7, 9007) == {9007: "images/0007.json does not list it"}
    with pytest.raises(TaggerError, match="HF_HUB_OFFLINE is set, and not all of"):
        get(1000, 1007)
    assert len(server.log) == requests


def test_all_files_are_of_the_listed_commit(server: HubServer, get: Get) -> None:
    get(1000, 7)
    about, *others = [r.path for r in server.log if r.path.startswith("/api/")]
    assert about.endswith("/revision/main")
    assert others
    assert all(path.endswith(f"/tree/{COMMIT}") for path in others)


def test_disk_space_for_all_images_is_checked_before_the_first(
    server: HubServer, folder: Path, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(TaggerError, match=r"50\.0 kB free, and 60\.0 kB are needed"):
        get(1000, 2000, 7, method="members")
    assert files_in(folder) == {"images/0000.json", "images/0007.json"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("more/0007", "has images/0007.tar and more/0007.tar: it is unknown"),
        ("more/7", "has images/0007.tar and more/7.tar: it is unknown"),
    ],
)
def test_two_tars_with_the_same_number_are_an_error(
    server: HubServer, get: Get, path: str, message: str
) -> None:
    server.files |= {f"{path}.tar": b"", f"{path}.json": b"{}"}
    with pytest.raises(TaggerError, match=message):
        get(7)


def test_data_sets_without_numbered_tars_are_an_error(server: HubServer, get: Get) -> None:
    server.files = {"data/train.tar": b"", "data/train.json": b"{}", "0007.tar": b""}
    with pytest.raises(TaggerError, match="holds no numbered tars with their indexes"):
        get(7)
