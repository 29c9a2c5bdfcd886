"""The outputs of a run of infer: what is left to do, and writing it as the predictions come."""

import io
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tagger.core import files
from tagger.core.errors import TaggerError, did_you_mean
from tagger.core.vocabulary import CATEGORIES
from tagger.inference import embeddings, implications, messages, sidecars, tables, threshold_choice
from tagger.inference.captions import Caption, Captioner
from tagger.inference.cli import Options
from tagger.inference.inputs import InputImage
from tagger.inference.messages import MESSAGES
from tagger.inference.pipeline import ImagePrediction
from tagger.models.tagger import Tagger
from tagger.system.world import World

_log = logging.getLogger(__name__)


class FailedImage(NamedTuple):
    file: str
    reason: str
    detail: str


@dataclass
class RunStatus:
    """How far a run has come."""

    seen: int = 0  # images, the failed ones included
    seconds: float = 0
    failures: list[FailedImage] = field(default_factory=list)

    def add_failure(self, file: Path, reason: str, detail: str) -> None:
        self.failures.append(FailedImage(tables.encode_path(file), reason, detail))


@dataclass(frozen=True)
class OutputPlan:
    todo: Sequence[InputImage]
    skipped: int  # images that were done before
    table: Path | None
    embeddings: Path | None
    sidecars: bool
    kept_rows: frozenset[str] = frozenset()  # images whose earlier rows stay in the table
    kept_embeddings: frozenset[str] = frozenset()


def plan_outputs(options: Options, images: Sequence[InputImage], world: World) -> OutputPlan:
    """Return the images and outputs of this process.

    Raises TaggerError if two images share a sidecar, if a sidecar is there already and no option
    says what to do, and for earlier results that cannot be read or a folder that is none.
    """
    output_dir, vectors = options.output_dir, options.embeddings
    for folder in (output_dir, vectors and vectors.parent):
        _check_folder(folder)
    has_sidecars = options.output == "txt"
    if has_sidecars:
        sidecars.check_unique(images, output_dir)
    todo = images[world.rank :: world.size]
    if has_sidecars and options.existing == "refuse":
        sidecars.check_absent(todo, output_dir)
    table = (output_dir or Path()) / f"tags{world.file_suffix}.{options.output}"
    plan = OutputPlan(
        todo=todo,
        skipped=0,
        table=table if options.is_table else None,
        embeddings=vectors and vectors.with_stem(vectors.stem + world.file_suffix),
        sidecars=has_sidecars,
    )
    return _without_done(plan, output_dir) if options.existing == "skip" else plan


def _check_folder(folder: Path | None) -> None:
    for path in (folder, *folder.parents) if folder else ():
        if path.exists() and not path.is_dir():
            raise TaggerError(f"{path} is no folder. Name another to write to.")


def _without_done(plan: OutputPlan, output_dir: Path | None) -> OutputPlan:
    """Return the rest of a plan: an image is done if every output that is wanted holds it."""
    left: set[InputImage] = set()
    if plan.sidecars:
        left.update(sidecars.without_sidecar(plan.todo, output_dir))
    rows = tables.read_file_names(plan.table) if plan.table else frozenset()
    vectors = embeddings.read_file_names(plan.embeddings) if plan.embeddings else frozenset()
    for path, names in ((plan.table, rows), (plan.embeddings, vectors)):
        if path:
            left.update(i for i in plan.todo if tables.encode_path(i.file) not in names)
    left_names = {tables.encode_path(image.file) for image in left}
    return replace(
        plan,
        todo=[image for image in plan.todo if image in left],
        skipped=len(plan.todo) - len(left),
        kept_rows=rows - left_names,
        kept_embeddings=vectors - left_names,
    )


def build_captioner(options: Options, tagger: Tagger) -> Captioner:
    """Return a captioner that chooses tags as the options say.

    Raises TaggerError if thresholds or implications that they need are missing.
    """
    categories = {tag.name: CATEGORIES[tag.category] for tag in tagger.tags}
    for name in options.tag_format.replacements:
        if name not in categories:
            _log.warning("The model has no tag %r.%s", name, did_you_mean(name, categories))
    return Captioner(
        tags=tagger.tags,
        thresholds=threshold_choice.resolve_thresholds(options.thresholds, tagger),
        categories=options.categories,
        top=options.top,
        apply_implications=implications.build_implications(
            options.implications, options.rules, categories
        ),
        tag_format=options.tag_format,
        exclude=options.exclude,
    )


def write_outputs(
    batches: Iterable[list[ImagePrediction]],
    captioner: Captioner,
    options: Options,
    plan: OutputPlan,
    status: RunStatus,
) -> None:
    """Write tags and embeddings as the predictions come.

    Raises the TaggerError that cuts the predictions short, after those before it are written.
    """
    errors: list[TaggerError] = []
    predictions: Iterable[ImagePrediction] = _until_error(batches, errors)
    if plan.embeddings:
        predictions = embeddings.write_embeddings(
            predictions, plan.embeddings, plan.kept_embeddings, tables.encode_path
        )
    captions = _captions(predictions, captioner, status)
    if plan.table:
        tables.write(captions, plan.table, options.categories, plan.kept_rows)
    elif plan.sidecars:
        _write_sidecars(captions, captioner, options, status)
    else:
        _print(captions, captioner, options.lang)
    if errors:
        raise errors[0]


def _until_error(
    batches: Iterable[list[ImagePrediction]], errors: list[TaggerError]
) -> Iterator[ImagePrediction]:
    """Yield predictions up to an error, which is kept for later unless it is the first thing."""
    has_batches = False
    try:
        for batch in batches:
            has_batches = True
            yield from batch
    except TaggerError as error:
        if not has_batches:
            raise
        errors.append(error)


def _captions(
    predictions: Iterable[ImagePrediction], captioner: Captioner, status: RunStatus
) -> Iterator[Caption]:
    """Yield the captions of images that can be read; count the others."""
    for prediction in predictions:
        status.seen += 1
        if prediction.problem:
            status.add_failure(prediction.image.file, "unreadable image", prediction.problem)
        else:
            yield captioner(prediction.image, prediction.probabilities)


def _write_sidecars(
    captions: Iterable[Caption], captioner: Captioner, options: Options, status: RunStatus
) -> None:
    for caption in captions:
        path = sidecars.sidecar_path(caption.image, options.output_dir)
        try:
            sidecars.write(caption, path, captioner, append=options.existing == "append")
        except ValueError as error:
            status.add_failure(caption.image.file, "unreadable sidecar", f"{path.name}: {error}")


def _print(captions: Iterable[Caption], captioner: Captioner, lang: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for caption in captions:
        print(messages.caption_text(caption, captioner, lang))


def write_failures(status: RunStatus, options: Options, world: World, *, whole: bool) -> Path:
    """Write the images that failed, if any did, and return the path of their list.

    whole: whether all images were tried; then a list of earlier failures is removed
    """
    folder = options.output_dir or Path()
    path = folder / f"infer_failures{world.file_suffix}.csv"
    if status.failures:
        files.write_csv(path, FailedImage._fields, status.failures)
    elif whole:
        for earlier in (path, folder / "infer_failures.csv"):  # of one process, or of several
            earlier.unlink(missing_ok=True)
    return path


def summary(
    status: RunStatus, plan: OutputPlan, failures: Path, lang: str, *, stopped: bool
) -> Iterator[str]:
    """Yield the closing lines; failures: the path of their list."""
    texts, tagged = MESSAGES[lang], status.seen - len(status.failures)
    rate = tagged / status.seconds if status.seconds else 0
    yield texts.tagged.format(tagged, f"{rate:,.{int(rate < 10)}f}")
    if plan.skipped:
        yield texts.skipped.format(plan.skipped)
    if status.failures:
        yield texts.failed.format(len(status.failures), failures)
    if stopped:
        can_resume = plan.table or plan.embeddings or plan.sidecars
        hint = texts.resume_hint if can_resume else ""
        yield texts.stopped.format(len(plan.todo) - status.seen) + hint
