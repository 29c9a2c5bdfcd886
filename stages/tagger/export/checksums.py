"""SHA-256 checksums of the files of an export; `sha256sum --check SHA256SUMS` reads them, too."""

from pathlib import Path

from tagger.core import files
from tagger.core.errors import TaggerError

SUMS = "SHA256SUMS"
CARD = "README.md"  # has no checksum: its reader may change it


def write(folder: Path) -> None:
    """List every file of a folder with its hash, but the list itself and the model card."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    lines = [
        f"{files.sha256_file(folder / name)}  {name}\n"
        for name in names
        if name not in (SUMS, CARD)
    ]
    files.write_text(folder / SUMS, "".join(lines))


def check(folder: Path) -> int:
    """Return the number of listed files. Raises TaggerError for the first one that has changed."""
    path = folder / SUMS
    if not path.is_file():
        raise TaggerError(f"{folder} is no complete export: it lacks {SUMS}. Get it again.")
    rows = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if len(row) != 2 or len(row[0]) != 64:
            raise TaggerError(f"{path} is no list of checksums. Get the folder again.")
        expected, name = row
        if not (folder / name).is_file():
            raise TaggerError(f"{folder} is incomplete: {name} is missing. Get the folder again.")
        actual = files.sha256_file(folder / name)
        if actual != expected:
            raise TaggerError(
                f"{folder / name} has changed since the export: its SHA-256 begins with "
                f"{actual[:12]}, not with {expected[:12]}. Get the file again, or export again."
            )
    return len(rows)
