"""Tag pictures with an exported model. Needs neither DVC nor MLflow, and torch only for CUDA."""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tagger import errors, params

if TYPE_CHECKING:
    from tagger.captions import Caption
    from tagger.metrics import Floats

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str]) -> int:
    """Tag what the arguments name; return 0, or 1 where pictures failed."""
    args = parse(arguments, params.load(ROOT / params.PATH).infer)
    # Loaded now, so that --help does not wait for it.
    from tagger import exported, files, tagging

    found = tagging.find(args.input, recursive=args.recursive, output_dir=args.output_dir)
    if args.output == "txt":
        check_sidecars([one.sidecar for one in found], args.overwrite)
    tagger = exported.load(args.model, args.device)
    limits = tagger.limits(args.threshold)
    failures: list[tagging.Failure] = []
    begun = time.monotonic()
    write(args, tagging.tag(tagger, found, limits, args.batch_size, failures), limits)
    tagged = len(found) - len(failures)
    tell(f"tagged: {tagged:,} pictures, {tagged / (time.monotonic() - begun):,.0f} a second")
    if failures:
        path = (args.output_dir or Path()) / "infer_failures.csv"
        files.write_csv(path, tagging.Failure._fields, failures)
        tell(f"failed: {len(failures):,} pictures, see {path}")
    return 1 if failures else 0


def write(args: argparse.Namespace, tagged: "Iterable[Caption]", limits: "Floats") -> None:
    from tagger import captions

    folder = args.output_dir or Path()
    if args.output == "txt":
        captions.write_sidecars(tagged)
    elif args.output == "json":
        captions.write_json(tagged, folder / "tags.json")
    elif args.output == "csv":
        captions.write_csv(tagged, folder / "tags.csv")
    else:
        for caption in tagged:
            print(captions.text(caption, limits, args.lang))


def check_sidecars(sidecars: Sequence[Path], overwrite: bool) -> None:
    """Raise TaggerError where a sidecar would be written twice, or replaced unasked."""
    shared = [sidecar for sidecar, times in Counter(sidecars).items() if times > 1]
    if shared:
        raise errors.TaggerError(
            f"Pictures of the same name would share the sidecar {shared[0]}. Tag them in turn, "
            "with another --output-dir each, or take --output json."
        )
    existing = [sidecar for sidecar in sidecars if sidecar.exists()]
    if existing and not overwrite:
        raise errors.TaggerError(
            f"{len(existing):,} sidecars are there already, {existing[0]} first. "
            "Give --overwrite to replace them, or --output-dir to write elsewhere."
        )


def tell(line: str) -> None:
    print(line, file=sys.stderr)


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def parse(arguments: Sequence[str], p: params.Infer) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="infer.py",
        description="Tag pictures, or those of a folder.",
        epilog="Exit code 0: all tagged. 1: some pictures failed, see infer_failures.csv. "
        "2: nothing was done.",
    )
    add = parser.add_argument
    add("input", type=Path, nargs="+", help="a picture or a folder")
    add("--model", type=Path, default=ROOT / p.model, help="an export folder (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threshold", type=share, help="confidence from 0 to 1 (the best of each tag)")
    add("--recursive", action="store_true", help="enter subfolders")
    add(
        "--output",
        choices=("text", "txt", "json", "csv"),
        default="text",
        help="text on the terminal, .txt sidecars, tags.json or tags.csv (%(default)s)",
    )
    add("--output-dir", type=Path, help="where to write (sidecars: beside the pictures, else .)")
    add("--overwrite", action="store_true", help="replace sidecars that exist")
    add(
        "--batch-size", type=positive, default=p.batch_size, help="pictures at a time (%(default)s)"
    )
    add("--lang", choices=("en", "zh"), default=p.lang, help="of the text (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors.reported():
        logging.basicConfig(format="%(message)s")
        raise SystemExit(main(sys.argv[1:]))
