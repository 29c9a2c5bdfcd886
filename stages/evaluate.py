"""Judge the trained model: thresholds fitted on validation, figures reported on the test part.

With --against DIR it is compared with another tagger instead, on the same pictures; with
--register NAME the best model that was judged on them goes into MLflow's registry.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tagger import params
from tagger.core import calibration, errors, files, thresholds
from tagger.core.errors import TaggerError
from tagger.data.tags import rules
from tagger.evaluation import compare, summary
from tagger.evaluation.compare import ComparisonData
from tagger.evaluation.predictions import EVALUATED_SPLITS, SplitPredictor
from tagger.evaluation.report import html_page
from tagger.evaluation.report.html_page import ReportContent
from tagger.evaluation.summary import Evaluation
from tagger.images import dataset, decode, preprocess
from tagger.models import backbone
from tagger.models.torch_runtime import TorchRuntime
from tagger.system import distributed, scratch
from tagger.tracking import registry, runs

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
THRESHOLDS = Path("models/thresholds.csv")
CALIBRATION = Path("models/calibration.json")
METRICS = Path("metrics/evaluate.json")
TABLES = (
    Path("metrics/tags.csv"),
    Path("metrics/categories.csv"),
    Path("metrics/pr_curve.csv"),
    Path("metrics/f1_by_threshold.csv"),
    Path("metrics/reliability.csv"),
    Path("metrics/confused_tags.csv"),
    Path("metrics/label_issues.csv"),
)
SHEET = Path("metrics/predictions.png")
REPORT = Path("metrics/report.html")
AGAINST = Path("metrics/against.json")  # of --against, and no output of the stage
METRIC = "test.macro_ap"  # by which the best run is found


def main(p: params.Params, other: Path | None = None) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.image_folders)
    tags, parts = dataset.read_splits(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    if not len(parts["test"]):
        raise TaggerError("The split has no test pictures to judge the model by. Raise split.test.")
    trained = files.read_json(MODEL / "run.json")
    prepared = preprocess.read(MODEL / "preprocess.json")
    with (
        distributed.process_group() as group,
        scratch.temporary_folder("evaluate") if group.is_main else nullcontext(Path()) as folder,
    ):
        unlabelled, loading = trained["params"]["train"]["unlabelled"], p.evaluate.loading
        predictor = SplitPredictor(group, folder, unlabelled, **loading)
        model = backbone.to_device(backbone.load_model(MODEL), group.device)
        runtime = TorchRuntime(model, prepared)
        if other:
            ground = ComparisonData(tags, parts, predictor, p.evaluate.threshold, p.seed)
            aliases = rules.read(*p.prepare.rule_folders).current_names
            if compared := compare.compare(runtime, prepared, other, ground, aliases):
                print(*compared.summary_lines(), sep="\n")
                files.write_json(AGAINST, compared.content())
            return
        every = {
            name: predictor(name, parts[name], tags, runtime, prepared) for name in EVALUATED_SPLITS
        }
        found = {name: one for name, one in every.items() if one}
        if group.is_main:
            judged = summary.evaluate(
                found, parts, tags, p.evaluate.threshold, p.seed, prepared.background
            )
            content = judged.report_content(trained)
            write(judged, content)
            track(judged, content, trained, p.prepare.path.stem)
            print(*judged.summary_lines(), sep="\n", end=f" -> {REPORT}\n")


def write(judged: Evaluation, content: ReportContent) -> None:
    thresholds.write(judged.thresholds, THRESHOLDS)
    calibration.write(judged.temperatures, CALIBRATION)
    files.write_json(METRICS, judged.metrics)
    for path in TABLES:
        files.write_csv(path, *judged.tables[path.stem])
    with files.atomic_write(SHEET) as partial:
        judged.test.sheet().save(partial, format="PNG")
    html_page.write(REPORT, content)


def track(
    judged: Evaluation, content: ReportContent, trained: Mapping[str, Any], data_name: str
) -> None:
    """Add to the run of the training, where there is one: a store may have been away."""
    if trained["run_id"] is None:
        return
    counts = {name: each.split.counts() for name, each in judged.splits.items()}
    with runs.add_to(trained["run_id"]) as run:
        run.log_data(data_name, runs.data_digest(trained["data"]), POSTS, counts)
        run.log_metrics(judged.logged_metrics, checkpoint="best")
        run.log_files(METRICS, *TABLES, THRESHOLDS, CALIBRATION, REPORT, SHEET)
        for name, figure in html_page.build_plots(content).items():
            run.log_figure(figure, f"{name}.png")


def register(name: str, alias: str) -> None:
    """Put the best of the runs that were judged on this data into the registry."""
    data = runs.data_digest(files.read_json(MODEL / "run.json")["data"])
    print(registry.register(registry.best_run(METRIC, data), name, alias).summary(METRIC))


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    parser = errors.ArgumentParser(prog="evaluate.py", description=__doc__)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--against", type=Path, metavar="DIR", help="another tagger, of any layout")
    one.add_argument("--register", metavar="NAME", help="of the model in MLflow's registry")
    parser.add_argument("--alias", help="for --register: of this version (best)")
    asked = parser.parse_args(arguments)
    if asked.alias and not asked.register:
        parser.error("--alias goes with --register")
    asked.alias = asked.alias or "best"
    return asked


if __name__ == "__main__":
    with errors.exit_on_error():
        asked = parse_args(sys.argv[1:])
        if asked.register:
            register(asked.register, asked.alias)
        else:
            main(params.load(), asked.against)
