"""Compare the trained model with another tagger, of any layout, on the same images.

Thresholds of both are fitted on validation; metrics and differences are those of the test split.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tagger import params
from tagger.core import errors, files
from tagger.core.errors import TaggerError
from tagger.data.tags import rules
from tagger.evaluation import compare, predictions
from tagger.evaluation.compare import ComparisonData
from tagger.images import dataset, decode, preprocess
from tagger.models import backbone
from tagger.models.torch_runtime import TorchRuntime
from tagger.system import scratch

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
METRICS = Path("metrics/compare.json")


def main(p: params.Params, other: Path) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.image_folders)
    tags, splits = dataset.read_splits(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    if not len(splits["test"]):
        raise TaggerError("The test split is empty. Raise split.test.")
    unlabelled = files.read_json(MODEL / "run.json")["params"]["train"]["unlabelled"]
    preprocessing = preprocess.read(MODEL / "preprocess.json")
    aliases = rules.read(*p.prepare.rule_folders).current_names
    with predictions.open_predictor(unlabelled, **p.evaluate.loading) as predictor:
        model = backbone.to_device(backbone.load_model(MODEL), predictor.group.device)
        runtime = TorchRuntime(model, preprocessing)
        data = ComparisonData(tags, splits, predictor, p.evaluate.threshold, p.seed)
        comparison = compare.compare(runtime, preprocessing, other, data, aliases)
    if comparison:
        print(*comparison.summary_lines(), sep="\n")
        files.write_json(METRICS, comparison.to_json())


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    parser = errors.ArgumentParser(prog="compare.py", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the other tagger")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load(), parse_args(sys.argv[1:]).folder)
