"""Upload models/export to the Hugging Face hub."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tagger.core import errors
from tagger.export import checksums, publish

EXPORT = Path("models/export")


def main(args: argparse.Namespace) -> None:
    checksums.check(EXPORT)
    url = publish.upload(EXPORT, args.repo, private=args.private, message=args.message)
    print(f"{EXPORT} -> {url}")


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    parser = errors.ArgumentParser(prog="publish.py", description=__doc__)
    parser.add_argument("repo", help="a model repository, USER/NAME; it is made if need be")
    parser.add_argument("--private", action="store_true", help="show it to nobody else")
    parser.add_argument("--message", default="Export", help="of the commit (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(parse_args(sys.argv[1:]))
