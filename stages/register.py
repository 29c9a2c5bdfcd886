"""Register the best model that was evaluated on the current data in MLflow's registry."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tagger.core import errors, files
from tagger.tracking import registry, runs

MODEL = Path("models/tagger")
METRIC = "test.macro_ap"  # the best run has the highest


def main(name: str, alias: str) -> None:
    data = runs.data_digest(files.read_json(MODEL / "run.json")["data"])
    print(registry.register(registry.best_run(METRIC, data), name, alias).summary(METRIC))


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    parser = errors.ArgumentParser(prog="register.py", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="of the model in the registry")
    parser.add_argument("--alias", default="best", help="of its new version (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors.exit_on_error():
        args = parse_args(sys.argv[1:])
        main(args.name, args.alias)
