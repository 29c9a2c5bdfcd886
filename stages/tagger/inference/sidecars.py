"""A .txt for each picture, with its tags."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.inference import naming
from tagger.inference.given import Caption
from tagger.inference.inputs import InputImage
from tagger.inference.naming import TagFormat


def sidecar_path(found: InputImage, output_dir: Path | None) -> Path:
    """Return where the tags of a picture belong: beside it, or in the same subfolder of another."""
    target = output_dir / found.file.relative_to(found.base) if output_dir else found.file
    return target.with_suffix(".txt")


def check_unique(found: Iterable[InputImage], output_dir: Path | None) -> None:
    """Raise TaggerError where a sidecar would be written twice."""
    times = Counter(sidecar_path(one, output_dir) for one in found if not one.problem)
    shared = [path for path, count in times.items() if count > 1]
    if shared:
        raise TaggerError(
            f"Pictures of the same name would share the sidecar {shared[0]}. Tag them in turn, "
            "with another --output-dir each, or take --output json."
        )


def check_absent(found: Iterable[InputImage], output_dir: Path | None) -> None:
    """Raise TaggerError where a sidecar is there already."""
    existing = [sidecar_path(one, output_dir) for one in found if _has_sidecar(one, output_dir)]
    if existing:
        raise TaggerError(
            f"{len(existing):,} sidecars are there already, {existing[0]} first. Give --overwrite "
            "to replace them, --append, --skip-existing, or --output-dir to write elsewhere."
        )


def without_sidecar(found: Iterable[InputImage], output_dir: Path | None) -> list[InputImage]:
    """Return the pictures without a sidecar."""
    return [one for one in found if not _has_sidecar(one, output_dir)]


def _has_sidecar(found: InputImage, output_dir: Path | None) -> bool:
    return not found.problem and sidecar_path(found, output_dir).exists()


def write(
    caption: Caption, path: Path, how: TagFormat, known: frozenset[str], *, append: bool
) -> None:
    """Write the tags of a picture, whole or not at all.

    known: the tags that the model may give
    append: keep what is there, in its place and its form
    Raises ValueError for what is there in another encoding than UTF-8.
    """
    files.write_text(path, sidecar_text(caption, how, known, _present(path) if append else ()))


def sidecar_text(
    caption: Caption, how: TagFormat, known: frozenset[str], present: Iterable[str] = ()
) -> str:
    """Return the tags of a picture as a line, those that are present before the others."""
    written = [how.format_weighted(one.name, one.confidence) for one in caption.tags]
    if present := list(present):
        written = naming.merge_tags(present, written)
    ordered = naming.reorder_tags(written, [how.format(word) for word in how.first], known)
    return f"{', '.join(ordered)}\n"


def _present(path: Path) -> Sequence[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8-sig")
    return [tag for line in text.splitlines() for tag in line.split(",")]
