"""Get Danbooru's metadata and tables of tags from the hub."""

from pathlib import Path, PurePosixPath

from tagger import params
from tagger.core import errors, files
from tagger.core.errors import TaggerError
from tagger.data.hub import client, download
from tagger.data.hub.download import RemoteFile

METADATA = Path("data/danbooru/metadata.parquet")
TAGS = Path("data/danbooru/tags.csv")
ALIASES = Path("data/danbooru/tag_aliases.csv")

TABLES = "danbooru.donmai.us"  # folder of deepghs/site_tags


def main(p: params.DownloadParams) -> None:
    if not p.repo:
        raise TaggerError(
            "prepare.download.repo is empty, so there is no metadata to fetch. "
            f"Name a data set of the hub, or put its metadata.parquet at {METADATA}."
        )
    get(p.repo, p.revision, p.connections, METADATA)
    if p.tag_tables:
        get(p.tag_tables, "main", p.connections, TAGS, ALIASES, below=TABLES)
    else:
        files.write_csv(TAGS, ("name", "category"), [])
        files.write_csv(ALIASES, ("alias", "tag"), [])
    print(f"{p.repo} -> {METADATA}")


def get(repo: str, revision: str, connections: int, *targets: Path, below: str = "") -> None:
    """Download the files of a data set that have the names of the targets.

    below: the folder of the data set that holds them
    """
    listing = client.list_files(repo, revision)
    folder = METADATA.parent
    for target in targets:
        path = (PurePosixPath(below) / target.name).as_posix()
        if path not in listing.files:
            raise TaggerError(f"{repo} holds no {path}.")
        piece = RemoteFile(*listing.files[path])
        failed = download.download_files(repo, [piece], folder, listing.commit, connections)
        if failed:
            raise TaggerError(f"{path} of {repo} could not be had: {failed[path]}.")
        (folder / path).replace(target)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__).prepare.download)
