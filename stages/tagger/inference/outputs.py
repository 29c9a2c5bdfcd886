"""What a run is to write: which pictures are left to do, and where what is said of them goes."""

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
from tagger.inference import captions, embeddings, implications, limits, sidecars, tables
from tagger.inference.captions import Captioner
from tagger.inference.cli import Options
from tagger.inference.given import Caption
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

    seen: int = 0  # pictures, the failed ones included
    seconds: float = 0
    failures: list[FailedImage] = field(default_factory=list)

    def add_failure(self, file: Path, reason: str, detail: str) -> None:
        self.failures.append(FailedImage(tables.encode_path(file), reason, detail))


@dataclass(frozen=True)
class OutputPlan:
    todo: Sequence[InputImage]
    skipped: int  # pictures that were done before
    table: Path | None
    embeddings: Path | None
    sidecars: bool
    kept_rows: frozenset[str] = frozenset()  # pictures whose earlier entries stay in the table
    kept_embeddings: frozenset[str] = frozenset()


def plan_outputs(asked: Options, found: Sequence[InputImage], world: World) -> OutputPlan:
    """Return what this process is to do.

    Raises TaggerError where two pictures would share a sidecar, where one is there already and
    nothing was said of it, where what is to be gone on with cannot be read, and where it cannot
    be written.
    """
    for folder in (asked.output_dir, asked.embeddings and asked.embeddings.parent):
        _check_folder(folder)
    if asked.output == "txt":
        sidecars.check_unique(found, asked.output_dir)
    todo = found[world.rank :: world.size]
    folder = asked.output_dir or Path()
    table = folder / f"tags{world.file_suffix}.{asked.output}" if asked.is_table else None
    vectors = asked.embeddings and asked.embeddings.with_stem(
        asked.embeddings.stem + world.file_suffix
    )
    if asked.output == "txt" and asked.existing == "refuse":
        sidecars.check_absent(todo, asked.output_dir)
    fresh = OutputPlan(todo, 0, table, vectors, sidecars=asked.output == "txt")
    return _without_done(fresh, asked.output_dir) if asked.existing == "skip" else fresh


def _check_folder(folder: Path | None) -> None:
    for path in (folder, *folder.parents) if folder else ():
        if path.exists() and not path.is_dir():
            raise TaggerError(f"{path} is no folder. Name another to write to.")


def _without_done(plan: OutputPlan, output_dir: Path | None) -> OutputPlan:
    """Return what is left of a plan: a picture is done if all that is wanted of it is there."""
    left: set[InputImage] = set()
    if plan.sidecars:
        left.update(sidecars.without_sidecar(plan.todo, output_dir))
    rows = tables.read_file_names(plan.table) if plan.table else frozenset()
    vectors = embeddings.read_file_names(plan.embeddings) if plan.embeddings else frozenset()
    for wanted, done in ((plan.table, rows), (plan.embeddings, vectors)):
        left.update(one for one in plan.todo if wanted and tables.encode_path(one.file) not in done)
    again = {tables.encode_path(one.file) for one in left}
    return replace(
        plan,
        todo=[one for one in plan.todo if one in left],
        skipped=len(plan.todo) - len(left),
        kept_rows=rows - again,
        kept_embeddings=vectors - again,
    )


def build_captioner(asked: Options, tagger: Tagger) -> Captioner:
    """Return what chooses the tags as the options say.

    Raises TaggerError where thresholds or implications that they need are missing.
    """
    categories = {tag.name: CATEGORIES[tag.category] for tag in tagger.tags}
    change = implications.build_implications(asked.implications, asked.rules, categories)
    for old in asked.tag_format.replacements:
        if old not in categories:
            _log.warning("The model has no tag %r.%s", old, did_you_mean(old, categories))
    return Captioner(
        tagger.tags,
        limits.resolve_thresholds(asked.thresholds, tagger),
        asked.categories,
        asked.top,
        change,
        asked.tag_format,
        asked.exclude,
    )


def write_outputs(
    blocks: Iterable[list[ImagePrediction]],
    choose: Captioner,
    asked: Options,
    plan: OutputPlan,
    tally: RunStatus,
) -> None:
    """Write what is said of the pictures, as the answers come.

    Raises the TaggerError that cuts the answers short, after those before it are written.
    """
    broken: list[TaggerError] = []
    answers: Iterable[ImagePrediction] = _until_broken(blocks, broken)
    if plan.embeddings:
        answers = embeddings.write_embeddings(
            answers, plan.embeddings, plan.kept_embeddings, tables.encode_path
        )
    said = _captioned(answers, choose, tally)
    if plan.table:
        tables.write(said, plan.table, asked.categories, plan.kept_rows)
    elif asked.output == "txt":
        _write_sidecars(said, choose.tag_names, asked, tally)
    else:
        _print(said, choose.common_threshold, asked)
    if broken:
        raise broken[0]


def _until_broken(
    blocks: Iterable[list[ImagePrediction]], broken: list[TaggerError]
) -> Iterator[ImagePrediction]:
    """Yield the answers up to an error, which is kept for later unless nothing came before it."""
    come = 0
    try:
        for block in blocks:
            come += 1
            yield from block
    except TaggerError as error:
        if not come:
            raise
        broken.append(error)


def _captioned(
    answers: Iterable[ImagePrediction], choose: Captioner, tally: RunStatus
) -> Iterator[Caption]:
    """Yield what is said of the pictures that could be read; count the others."""
    for answer in answers:
        tally.seen += 1
        if answer.problem:
            tally.add_failure(answer.image.file, "unreadable image", answer.problem)
        else:
            yield choose(answer.image, answer.probabilities)


def _write_sidecars(
    said: Iterable[Caption], known: frozenset[str], asked: Options, tally: RunStatus
) -> None:
    append = asked.existing == "append"
    for caption in said:
        path = sidecars.sidecar_path(caption.image, asked.output_dir)
        try:
            sidecars.write(caption, path, asked.tag_format, known, append=append)
        except ValueError as error:
            tally.add_failure(caption.image.file, "unreadable sidecar", f"{path.name}: {error}")


def _print(said: Iterable[Caption], limit: float | None, asked: Options) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for caption in said:
        print(captions.caption_text(caption, limit, asked.lang, asked.tag_format))


def write_failures(tally: RunStatus, asked: Options, world: World, *, whole: bool) -> Path:
    """Write the pictures that failed, if any did, and return where they are listed.

    whole: whether all pictures were tried; then a list of earlier failures is removed
    """
    folder = asked.output_dir or Path()
    path = folder / f"infer_failures{world.file_suffix}.csv"
    if tally.failures:
        files.write_csv(path, FailedImage._fields, tally.failures)
    elif whole:
        for former in (path, folder / "infer_failures.csv"):  # of one process, or of several
            former.unlink(missing_ok=True)
    return path


def summary(
    tally: RunStatus, plan: OutputPlan, listed: Path, lang: str, *, stopped: bool
) -> Iterator[str]:
    """Yield the closing lines; listed: where the failures are."""
    words, tagged = MESSAGES[lang], tally.seen - len(tally.failures)
    rate = tagged / tally.seconds if tally.seconds else 0
    yield words.tagged.format(tagged, f"{rate:,.{int(rate < 10)}f}")
    if plan.skipped:
        yield words.skipped.format(plan.skipped)
    if tally.failures:
        yield words.failed.format(len(tally.failures), listed)
    if stopped:
        way_on = plan.table or plan.embeddings or plan.sidecars
        yield words.stopped.format(len(plan.todo) - tally.seen) + (
            words.resume_hint if way_on else ""
        )
