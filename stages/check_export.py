"""Check an export as it is, here or where it was downloaded to: files, layouts and tags."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tagger import params
from tagger.core import errors
from tagger.core.errors import TaggerError
from tagger.export import checksums, compatibility, samples
from tagger.images import decode
from tagger.inference import inputs


def main(args: argparse.Namespace, p: params.ExportParams) -> None:
    decode.init_process()
    count = checksums.check(args.folder)
    if not (args.images or (args.folder / samples.FOLDER).is_dir()):
        raise TaggerError(f"{args.folder} has no sample images. Name images with --images.")
    names = args.images or [str(args.folder / samples.FOLDER)]
    paths = [image.file for image in inputs.find_inputs(names, recursive=True)]
    report = compatibility.check_compatibility(
        args.folder,
        samples.readable_images(paths),
        compatibility.load_reference(args.folder),
        p.tolerance,
    )
    print(f"{count} files as they were exported")
    print(f"{report.summary(p.min_agreement)} -> {args.folder}")


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    parser = errors.ArgumentParser(prog="check_export.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="an export folder, such as models/export")
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="files or folders to tag (the samples in the export)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(parse_args(sys.argv[1:]), params.load().export)
