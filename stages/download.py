"""Download Danbooru's metadata and tag tables from the hub."""

from pathlib import Path, PurePosixPath

from tagger import params
from tagger.core import errors, files
from tagger.core.errors import TaggerError
from tagger.data.hub import client, download
from tagger.data.hub.download import RemoteFile

METADATA = Path("data/danbooru/metadata.parquet")
TAGS = Path("data/danbooru/tags.csv")
ALIASES = Path("data/danbooru/tag_aliases.csv")

TABLES_FOLDER = "danbooru.donmai.us"  # of deepghs/site_tags


def main(p: params.DownloadParams) -> None:
    if not p.repo:
        raise TaggerError(
            "prepare.download.repo is empty, so there is no metadata to download. "
            f"Name a data set of the hub, or put its metadata.parquet at {METADATA}."
        )
    download_tables(p.repo, p.revision, p.connections, METADATA)
    if p.tag_tables:
        targets = (TAGS, ALIASES)
        download_tables(p.tag_tables, "main", p.connections, *targets, folder=TABLES_FOLDER)
    else:
        files.write_csv(TAGS, ("name", "category"), [])
        files.write_csv(ALIASES, ("alias", "tag"), [])
    print(f"{p.repo} -> {METADATA}")


def download_tables(
    repo: str, revision: str, connections: int, *targets: Path, folder: str = ""
) -> None:
    """Download files of a data set to paths with the same names.

    folder: the folder of the data set that holds the files
    """
    listing = client.list_files(repo, revision)
    for target in targets:
        path = (PurePosixPath(folder) / target.name).as_posix()
        if path not in listing.files:
            raise TaggerError(f"{repo} holds no {path}.")
        file = RemoteFile(*listing.files[path])
        failed = download.download_files(repo, [file], target.parent, listing.commit, connections)
        if failed:
            raise TaggerError(f"{path} of {repo} cannot be downloaded: {failed[path]}.")
        (target.parent / path).replace(target)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__).prepare.download)
