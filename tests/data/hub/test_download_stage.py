"""Danbooru from the hub: the stages of the README, against a hub on this machine."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from support.hub_server import REPO, HubServer, environment, serve_hub
from tagger.core import manifest
from tagger.data.hub import shards
from tagger.images import decode

TABLES = "danbooru.donmai.us"
IDS = [1000, 2000, 3000, 7, 1007, 2007, 42]  # the last has no image


@pytest.fixture(scope="module")
def server(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A data set in the form of danbooru2024-webp-4Mpixel, with tables of tags."""
    repository = tmp_path_factory.mktemp("repository")
    images = [
        (f"{post}.png", file.read_bytes())
        for post, file in zip(IDS, sorted(demo.glob("*.png")), strict=False)
    ]
    shards.write_tar(repository / "images/0000.tar", images[:3])
    shards.write_tar(repository / "images/0007.tar", images[3:6])
    metadata = {
        "id": IDS,
        "rating": list("gsqegsq"),
        "score": [5, 5, 5, 5, 5, -5, 5],
        "parent_id": [None, 1000, None, None, None, None, None],
        "tag_string_general": ["1girls smile"] * 7,
        "tag_string_character": ["hatsune_miku"] * 7,
        "tag_string": ["1girls smile hatsune_miku vocaloid"] * 7,
    }
    pq.write_table(pa.table(metadata), repository / "metadata.parquet")
    (repository / TABLES).mkdir()
    tables = repository / TABLES
    (tables / "tags.csv").write_text("id,name,category\n3,vocaloid,3\n9,hatsune_miku,4\n")
    (tables / "tag_aliases.csv").write_text("alias,tag\n1girls,1girl\n")
    files = (path for path in sorted(repository.rglob("*")) if path.is_file())
    with serve_hub(
        {path.relative_to(repository).as_posix(): path.read_bytes() for path in files}
    ) as hub:
        yield hub


def project(root: Path, tmp_path: Path, **values: Any) -> Path:
    content = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {
        "source": "danbooru",
        "path": "data/danbooru/metadata.parquet",
        "image_root": "data/danbooru",
    }
    content["prepare"]["download"] |= {"repo": REPO, "tag_tables": REPO} | values
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path


def run(root: Path, project: Path, stage: str, server: HubServer) -> str:
    ended = subprocess.run(
        [sys.executable, root / f"stages/{stage}.py"],
        cwd=project,
        env=environment(server.url, project / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{ended.returncode} {ended.stdout}{ended.stderr}"


def test_danbooru_is_downloaded_and_prepared(root: Path, tmp_path: Path, server: HubServer) -> None:
    here = project(root, tmp_path, method="shards")
    assert run(root, here, "download", server) == f"0 {REPO} -> data/danbooru/metadata.parquet\n"
    output = run(root, here, "prepare", server)
    assert output.startswith("0 ") and "6 posts with" in output, output
    posts = pq.read_table(here / "data/posts.parquet")
    assert posts["id"].to_pylist() == [str(post) for post in IDS[:6]]
    for location, width in zip(manifest.locations(posts), posts["width"].to_pylist(), strict=True):
        location = location._replace(path=str(here / location.path))
        assert decode.open_rgb(location).width == width
    assert posts["shard"].null_count == 0
    assert posts["group"].to_pylist()[:3] == [0, 0, 2]  # the second is a child of the first
    tags = {tag.name: tag for tag in manifest.read_tags(here / "data/tags.parquet")}
    assert (tags["hatsune_miku"].category, tags["hatsune_miku"].tag_id) == (4, 9)
    assert (tags["vocaloid"].category, tags["1girl"].count) == (3, 6)
    assert (tags["explicit"].category, tags["explicit"].tag_id) == (9, 9_999_996)
    with (here / "metrics/rejected.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == "42" and row["reason"] == "no image"
    assert "0042" in row["detail"]
    before = len(server.log)
    assert run(root, here, "prepare", server).startswith("0 ")
    requested = {r.path for r in server.log[before:] if r.path.startswith("images")}
    assert not requested - {"images/0042.json"}


def test_only_images_that_pass_the_filters_are_downloaded(
    root: Path, tmp_path: Path, server: HubServer
) -> None:
    here = project(root, tmp_path, method="members")
    content = yaml.safe_load((here / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"]["filters"] |= {"ratings": ["general"], "max_id": 2000}
    (here / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run(root, here, "download", server)
    assert "2 posts with" in run(root, here, "prepare", server)
    posts = pq.read_table(here / "data/posts.parquet")
    assert posts["shard"].null_count == 2
    for location, width in zip(manifest.locations(posts), posts["width"].to_pylist(), strict=True):
        assert decode.open_rgb(here / location.path).width == width
    downloaded = {file.name for file in (here / "data/danbooru/images").rglob("*.png")}
    assert downloaded == {"1000.png", "1007.png"}
    report = json.loads((here / "metrics/prepare.json").read_text(encoding="utf-8"))
    assert report["rejected"] == {"rating": 3, "id": 2}


def test_metadata_without_a_data_set_is_an_error(
    root: Path, tmp_path: Path, server: HubServer
) -> None:
    here = project(root, tmp_path, repo=None)
    assert "prepare.download.repo is empty" in run(root, here, "download", server)


def test_data_sets_without_metadata_are_an_error(
    root: Path, tmp_path: Path, server: HubServer
) -> None:
    metadata = server.files.pop("metadata.parquet")
    here = project(root, tmp_path)
    assert run(root, here, "download", server) == f"2 error: {REPO} holds no metadata.parquet.\n"
    server.files["metadata.parquet"] = metadata
