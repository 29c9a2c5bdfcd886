"""The command line of infer.py: its options, their help, and which of them exclude others."""

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
_EPILOG = """exit code 0: all tagged. 1: some images failed, see infer_failures.csv.
2: nothing was done, and the reason is printed. 130: stopped, and the results so far are kept."""


@dataclass(frozen=True)
class Options:
    inputs: Sequence[str]
    recursive: bool
    skip: Sequence[str]  # globs of images
    model: Path
    device: str  # auto, cpu, cuda
    pipeline: PipelineOptions
    calibrated: bool
    thresholds: ThresholdChoice
    top: int | None  # tags of an image at most
    categories: Sequence[str]  # to write, in the order of CATEGORIES
    exclude: Sequence[str]  # globs of tags that are not written
    implications: str | None  # remove, add
    rules: Path
    output: str  # one of OUTPUTS
    output_dir: Path | None
    existing: str  # refuse, append, overwrite or skip: what to do with earlier results
    embeddings: Path | None
    tag_format: TagFormat
    lang: str

    @property
    def is_table(self) -> bool:
        return self.output not in ("text", "txt")


def parse_args(arguments: Sequence[str], p: params.InferParams, root: Path, cores: int) -> Options:
    """Return the options of the arguments. Raises TaggerError if they make no sense.

    root: the folder of the model of `p`, and of the rules
    cores: processes that decode if no number is given
    """
    parser = ArgumentParser(
        prog="infer.py",
        description="Tag images, or the images of folders.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_inputs(parser)
    _add_work(parser, p, root)
    _add_choice(parser, root)
    _add_output(parser, p)
    _add_naming(parser)
    args = parser.parse_args(arguments)
    if problem := _contradiction(args):
        parser.error(problem)
    return _options(args, cores)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to tag").add_argument
    add("input", nargs="+", help="an image, a folder, a glob, or - for a list of paths on stdin")
    add("--recursive", action="store_true", help="enter subfolders")
    add("--skip", action="append", default=[], metavar="GLOB", help="not these; repeatable")


def _add_work(parser: argparse.ArgumentParser, p: params.InferParams, root: Path) -> None:
    add = parser.add_argument_group("how").add_argument
    add(
        "--model",
        type=Path,
        default=root / p.model,
        help="an export folder, its .onnx file, a training folder, or a folder of WD14, imgutils "
        "or timm (%(default)s)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--calibrated",
        action=argparse.BooleanOptionalAction,
        default=p.calibrated,
        help="confidences that say how often a tag is right; the same tags (%(default)s)",
    )
    add(
        "--batch-size",
        type=argument_types.integer_or_auto(1),
        default=_or_auto(p.batch_size),
        help="images, or auto (%(default)s)",
    )
    add(
        "--workers",
        type=argument_types.integer_or_auto(0),
        default=_or_auto(p.workers),
        help="processes that decode; 0: none, auto: one per core (%(default)s)",
    )
    add(
        "--timeout",
        type=argument_types.seconds,
        default=p.timeout,
        metavar="SECONDS",
        help="how long an image may take to decode (%(default)g)",
    )


def _or_auto(number: int | None) -> str:
    return "auto" if number is None else str(number)


def _add_choice(parser: argparse.ArgumentParser, root: Path) -> None:
    add = parser.add_argument_group("which tags").add_argument
    add(
        "--threshold",
        type=argument_types.with_reason(threshold_choice.parse_thresholds),
        default=ThresholdChoice(),
        help="a confidence from 0 to 1; best: of each tag; category: of its category; "
        "or general=0.3,character=0.8, the others best (best)",
    )
    add("--top", type=argument_types.integer(1), metavar="N", help="the N surest at most")
    add(
        "--categories",
        type=argument_types.with_reason(argument_types.categories),
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
    add("--output-dir", type=Path, help="where to write (sidecars: beside the images, else .)")
    add(
        "--embeddings",
        type=argument_types.embeddings_file,
        metavar="FILE",
        help="write embeddings, too: .npz or .parquet",
    )
    add("--lang", choices=("en", "zh"), default=p.lang, help="of the text (%(default)s)")
    existing = group.add_mutually_exclusive_group()
    for name, help_text in (
        ("append", "add to sidecars that exist"),
        ("overwrite", "replace sidecars that exist"),
        ("skip-existing", "resume: skip images that have a sidecar, or are in the table"),
    ):
        existing.add_argument(
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
        help="txt: before the others if predicted; a word that is no tag of the model, always; "
        "repeatable",
    )
    add(
        "--replace",
        action="append",
        type=argument_types.replacement,
        default=[],
        metavar="OLD=NEW",
        help="write another name, everywhere; nothing: drop the tag; repeatable",
    )


def _contradiction(args: argparse.Namespace) -> str | None:
    if args.output == "text" and args.existing != "refuse":
        return f"--output text has nothing to {args.existing}: name another --output"
    if args.existing == "append" and args.output != "txt":
        return "--append is for --output txt: a table is resumed by --skip-existing"
    if args.confidence and args.output != "txt":
        return "--confidence is for --output txt: the others have confidences anyway"
    return None


def _options(args: argparse.Namespace, cores: int) -> Options:
    return Options(
        inputs=args.input,
        recursive=args.recursive,
        skip=args.skip,
        exclude=args.exclude,
        model=args.model,
        device=args.device,
        pipeline=PipelineOptions(
            batch_size=args.batch_size,
            workers=cores if args.workers is None else args.workers,
            timeout=args.timeout,
        ),
        calibrated=args.calibrated,
        thresholds=args.threshold,
        top=args.top,
        categories=args.categories,
        implications=args.implications,
        rules=args.rules,
        output=args.output,
        output_dir=args.output_dir,
        existing=args.existing,
        embeddings=args.embeddings,
        tag_format=TagFormat(
            spaces=args.spaces,
            escape=args.escape_parentheses,
            confidence=args.confidence,
            first=args.always_first,
            replacements=dict(args.replace),
        ),
        lang=args.lang,
    )
