"""A .txt with its tags for each image."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tagger.core import files
from tagger.core.errors import TaggerError
from tagger.inference import tag_format
from tagger.inference.captions import Caption, Captioner
from tagger.inference.inputs import InputImage


def sidecar_path(image: InputImage, output_dir: Path | None) -> Path:
    """Return the sidecar of an image: beside it, or in the same subfolder of another folder."""
    target = output_dir / image.file.relative_to(image.base) if output_dir else image.file
    return target.with_suffix(".txt")


def check_unique(images: Iterable[InputImage], output_dir: Path | None) -> None:
    """Raise TaggerError if two images have the same sidecar."""
    counts = Counter(sidecar_path(image, output_dir) for image in images if not image.problem)
    shared = [path for path, count in counts.items() if count > 1]
    if shared:
        raise TaggerError(
            f"Images of the same name would share the sidecar {shared[0]}. Tag them in turn, "
            "with another --output-dir each, or take --output json."
        )


def check_absent(images: Iterable[InputImage], output_dir: Path | None) -> None:
    """Raise TaggerError if an image has a sidecar already."""
    existing = [
        sidecar_path(image, output_dir) for image in images if _has_sidecar(image, output_dir)
    ]
    if existing:
        raise TaggerError(
            f"{len(existing):,} sidecars are there already, {existing[0]} first. Give --overwrite "
            "to replace them, --append, --skip-existing, or --output-dir to write elsewhere."
        )


def without_sidecar(images: Iterable[InputImage], output_dir: Path | None) -> list[InputImage]:
    return [image for image in images if not _has_sidecar(image, output_dir)]


def _has_sidecar(image: InputImage, output_dir: Path | None) -> bool:
    return not image.problem and sidecar_path(image, output_dir).exists()


def write(caption: Caption, path: Path, captioner: Captioner, *, append: bool) -> None:
    """Write the tags of an image, whole or not at all.

    append: keep the tags that are there, in their place and form
    Raises ValueError for a sidecar that is there in another encoding than UTF-8.
    """
    files.write_text(path, sidecar_text(caption, captioner, _read_tags(path) if append else ()))


def sidecar_text(caption: Caption, captioner: Captioner, present: Iterable[str] = ()) -> str:
    """Return the tags of an image as a line, those that are present before the others."""
    style = captioner.tag_format
    texts = [style.format_weighted(tag.name, tag.confidence) for tag in caption.tags]
    if present := list(present):
        texts = tag_format.merge_tags(present, texts)
    first = [style.format(word) for word in style.first]
    return f"{', '.join(tag_format.reorder_tags(texts, first, captioner.tag_names))}\n"


def _read_tags(path: Path) -> Sequence[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8-sig")
    return [tag for line in text.splitlines() for tag in line.split(",")]
