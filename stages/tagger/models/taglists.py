"""The tags of a tagger in any of the forms that are about."""

from collections.abc import Mapping
from pathlib import Path

from tagger.core import files, records
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import UNKNOWN, Tag, normalize_name, parse_category

FILE_NAMES = ("vocabulary.csv", "selected_tags.csv")  # by `train` and by everyone else


def read_tags(folder: Path) -> list[Tag]:
    """Return the tags of a tagger in the order of its outputs, names in lower_snake_case."""
    path = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    if path is None:
        why = f"it has neither {' nor '.join(FILE_NAMES)}" if folder.is_dir() else "it is no folder"
        raise TaggerError(
            f"{folder} is no tagger: {why}. Name the folder of a trained or exported model."
        )
    tags = [_tag(row, place) for place, row in records.read_rows(files.check_size(path))]
    if not tags:
        raise TaggerError(f"{path} lists no tags. Get the folder again.")
    return tags


def _tag(row: Mapping[str, object], place: str) -> Tag:
    """Return a row of any of the lists that are about, of which only the name is needed."""
    name = normalize_name(str(row.get("name", "")))
    if not name:
        raise TaggerError(f"{place} has no 'name'. Get the folder again.")
    category = parse_category(row.get("category"))
    return Tag(UNKNOWN, name, UNKNOWN if category is None else category, UNKNOWN)
