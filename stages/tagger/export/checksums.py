"""What a folder held when it was written; `sha256sum --check SHA256SUMS` reads it, too."""

from collections.abc import Iterator
from pathlib import Path

from tagger.core import files
from tagger.core.errors import TaggerError

SUMS = "SHA256SUMS"
CARD = "README.md"  # which is for its reader to change


def write(folder: Path) -> None:
    """List every file of a folder with its hash, but the list itself and the model card."""
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    lines = [f"{files.sha256_file(folder / name)}  {name}\n" for name in names]
    files.write_text(folder / SUMS, "".join(lines))


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path not in (folder / SUMS, folder / CARD):
            yield path


def check(folder: Path) -> int:
    """Return how many files are as they were listed. Raises TaggerError with the first other."""
    path = folder / SUMS
    if not path.is_file():
        raise TaggerError(f"{folder} is no whole export: it lacks {SUMS}. Get the folder again.")
    listed = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in listed:
        if len(line) != 2 or len(line[0]) != 64:
            raise TaggerError(f"{path} is no list of hashes. Get the folder again.")
        wanted, name = line
        if not (folder / name).is_file():
            raise TaggerError(f"{folder} is not whole: {name} is missing. Get the folder again.")
        if (found := files.sha256_file(folder / name)) != wanted:
            raise TaggerError(
                f"{folder / name} is not what was exported: its SHA-256 begins with {found[:12]}, "
                f"not with {wanted[:12]}. Get the file again, or export again."
            )
    return len(listed)
