"""The command line of infer.py: its options, their words, and what they mean together."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagger import params
from tagger.core.errors import ArgumentParser
from tagger.core.vocabulary import CATEGORIES
from tagger.inference import argument_types, threshold_choice
from tagger.inference.pipeline import PipelineOptions
from tagger.inference.tag_format import TagFormat
from tagger.inference.threshold_choice import ThresholdChoice

OUTPUTS = ("text", "txt", "json", "jsonl", "csv", "parquet")
_EPILOG = """exit code 0: all tagged. 1: some pictures failed, see infer_failures.csv.
2: nothing was done, the reason is told. 130: stopped, what was tagged so far is kept."""


@dataclass(frozen=True)
class Options:
    inputs: Sequence[str]
    recursive: bool
    skip: Sequence[str]  # globs of pictures
    model: Path
    device: str  # auto, cpu, cuda
    pipeline: PipelineOptions
    calibrated: bool
    thresholds: ThresholdChoice
    top: int | None  # tags of a picture at most
    categories: Sequence[str]  # to write, in the order of CATEGORIES
    exclude: Sequence[str]  # globs of tags that are not written
    implications: str | None  # remove, add
    rules: Path
    output: str  # one of OUTPUTS
    output_dir: Path | None
    existing: str  # refuse, append, overwrite or skip: what becomes of earlier results
    embeddings: Path | None
    tag_format: TagFormat
    lang: str

    @property
    def is_table(self) -> bool:
        return self.output not in ("text", "txt")


def parse_args(arguments: Sequence[str], p: params.InferParams, root: Path, cores: int) -> Options:
    """Return what the arguments ask for. Raises TaggerError where they make no sense.

    root: the folder on which the model and the rules of `p` hang
    cores: how many processes decode where no number is given
    """
    parser = ArgumentParser(
        prog="infer.py",
        description="Tag pictures, or those of folders.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_inputs(parser)
    _add_work(parser, p, root)
    _add_choice(parser, root)
    _add_output(parser, p)
    _add_naming(parser)
    given = parser.parse_args(arguments)
    if problem := _contradiction(given):
        parser.error(problem)
    return _options(given, cores)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to tag").add_argument
    add("input", nargs="+", help="a picture, a folder, a glob, or - for a list of paths on stdin")
    add("--recursive", action="store_true", help="enter subfolders")
    add("--skip", action="append", default=[], metavar="GLOB", help="not these; repeatable")


def _add_work(parser: argparse.ArgumentParser, p: params.InferParams, root: Path) -> None:
    add = parser.add_argument_group("how").add_argument
    add(
        "--model",
        type=Path,
        default=root / p.model,
        help="an export folder, its .onnx file, or a training folder (%(default)s)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--calibrated",
        action=argparse.BooleanOptionalAction,
        default=p.calibrated,
        help="confidences that say how often a tag is there; the same tags (%(default)s)",
    )
    add(
        "--batch-size",
        type=argument_types.whole_or_auto(1),
        default=_or_auto(p.batch_size),
        help="pictures, or auto (%(default)s)",
    )
    add(
        "--workers",
        type=argument_types.whole_or_auto(0),
        default=_or_auto(p.workers),
        help="processes that decode; 0: none, auto: one per core (%(default)s)",
    )
    add(
        "--timeout",
        type=argument_types.seconds,
        default=p.timeout,
        metavar="SECONDS",
        help="how long a picture may take to decode (%(default)g)",
    )


def _or_auto(number: int | None) -> str:
    return "auto" if number is None else str(number)


def _add_choice(parser: argparse.ArgumentParser, root: Path) -> None:
    add = parser.add_argument_group("which tags").add_argument
    add(
        "--threshold",
        type=argument_types.explained(threshold_choice.parse_thresholds),
        default=ThresholdChoice(),
        help="a confidence from 0 to 1; best: of each tag; category: of its category; "
        "or general=0.3,character=0.8, the others best (best)",
    )
    add("--top", type=argument_types.whole(1), metavar="N", help="the N surest at most")
    add(
        "--categories",
        type=argument_types.explained(argument_types.categories),
        default=tuple(CATEGORIES.values()),
        help="to write, such as general,character (all)",
    )
    add("--exclude", action="append", default=[], metavar="GLOB", help="not these; repeatable")
    add(
        "--implications",
        choices=("remove", "add"),
        help="remove tags that another one implies, or add those implied",
    )
    add("--rules", type=Path, default=root / "data" / "rules", help="folder of tag_implications")


def _add_output(parser: argparse.ArgumentParser, p: params.InferParams) -> None:
    group = parser.add_argument_group("where to")
    add = group.add_argument
    add(
        "--output",
        choices=OUTPUTS,
        default="text",
        help="text on the terminal, .txt sidecars, or a table tags.json, ... (%(default)s)",
    )
    add("--output-dir", type=Path, help="where to write (sidecars: beside the pictures, else .)")
    vectors = "write them, too: .npz or .parquet"
    add("--embeddings", type=argument_types.vectors_file, metavar="FILE", help=vectors)
    add("--lang", choices=("en", "zh"), default=p.lang, help="of the text (%(default)s)")
    one = group.add_mutually_exclusive_group()
    for name, help_text in (
        ("append", "add to sidecars that exist"),
        ("overwrite", "replace sidecars that exist"),
        ("skip-existing", "go on: leave out pictures that have a sidecar, or are in the table"),
    ):
        one.add_argument(
            f"--{name}",
            dest="existing",
            action="store_const",
            const=name.partition("-")[0],
            default="refuse",
            help=help_text,
        )


def _add_naming(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how tags are written (text and txt)")
    add = group.add_argument
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--underscores", dest="spaces", action="store_false", default=False, help="long_hair"
    )
    form.add_argument("--spaces", action="store_true", help="long hair; kaomoji stay ^_^")
    add("--escape-parentheses", action="store_true", help=r"saber_\(fate\)")
    add("--confidence", action="store_true", help="txt: (long_hair:0.98)")
    add(
        "--always-first",
        action="append",
        default=[],
        metavar="TAG",
        help="txt: before the others where given; a word that is no tag of the model, always; "
        "repeatable",
    )
    add(
        "--replace",
        action="append",
        type=argument_types.replacement,
        default=[],
        metavar="OLD=NEW",
        help="write another name, everywhere; nothing: leave it out; repeatable",
    )


def _contradiction(given: argparse.Namespace) -> str | None:
    if given.output == "text" and given.existing != "refuse":
        return f"--output text has nothing to {given.existing}: name another --output"
    if given.existing == "append" and given.output != "txt":
        return "--append is for --output txt: a table is gone on with by --skip-existing"
    if given.confidence and given.output != "txt":
        return "--confidence is for --output txt: the others hold confidences anyway"
    return None


def _options(given: argparse.Namespace, cores: int) -> Options:
    return Options(
        inputs=given.input,
        recursive=given.recursive,
        skip=given.skip,
        exclude=given.exclude,
        model=given.model,
        device=given.device,
        pipeline=PipelineOptions(
            batch_size=given.batch_size,
            workers=cores if given.workers is None else given.workers,
            timeout=given.timeout,
        ),
        calibrated=given.calibrated,
        thresholds=given.threshold,
        top=given.top,
        categories=given.categories,
        implications=given.implications,
        rules=given.rules,
        output=given.output,
        output_dir=given.output_dir,
        existing=given.existing,
        embeddings=given.embeddings,
        tag_format=TagFormat(
            spaces=given.spaces,
            escape=given.escape_parentheses,
            confidence=given.confidence,
            first=given.always_first,
            replacements=dict(given.replace),
        ),
        lang=given.lang,
    )
