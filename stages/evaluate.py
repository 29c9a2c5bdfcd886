"""Evaluate the trained model: fit thresholds on validation, report metrics on the test split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagger import params
from tagger.core import calibration, errors, files, thresholds
from tagger.core.errors import TaggerError
from tagger.evaluation import predictions, summary
from tagger.evaluation.predictions import EVALUATED_SPLITS
from tagger.evaluation.report import html_page
from tagger.evaluation.report.html_page import ReportContent
from tagger.evaluation.summary import Evaluation
from tagger.images import dataset, decode, preprocess
from tagger.models import backbone
from tagger.models.torch_runtime import TorchRuntime
from tagger.system import scratch
from tagger.tracking import runs

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
    Path("metrics/confusions.csv"),
    Path("metrics/label_issues.csv"),
)
SHEET = Path("metrics/predictions.png")
REPORT = Path("metrics/report.html")


def main(p: params.Params) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.image_folders)
    tags, splits = dataset.read_splits(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    if not len(splits["test"]):
        raise TaggerError("The test split is empty. Raise split.test.")
    run = files.read_json(MODEL / "run.json")
    preprocessing = preprocess.read(MODEL / "preprocess.json")
    unlabelled = run["params"]["train"]["unlabelled"]
    with predictions.open_predictor(unlabelled, **p.evaluate.loading) as predictor:
        model = backbone.to_device(backbone.load_model(MODEL), predictor.group.device)
        runtime = TorchRuntime(model, preprocessing)
        stores = {
            name: predictor(name, splits[name], tags, runtime, preprocessing)
            for name in EVALUATED_SPLITS
        }
        on_main = {name: store for name, store in stores.items() if store}
        if on_main:
            background = preprocessing.background
            evaluation = summary.evaluate(
                on_main, splits, tags, p.evaluate.threshold, p.seed, background
            )
            content = evaluation.report_content(run)
            write(evaluation, content)
            track(evaluation, content, run, p.prepare.path.stem)
            print(*evaluation.summary_lines(), sep="\n", end=f" -> {REPORT}\n")


def write(evaluation: Evaluation, content: ReportContent) -> None:
    thresholds.write(evaluation.thresholds, THRESHOLDS)
    calibration.write(evaluation.temperatures, CALIBRATION)
    files.write_json(METRICS, evaluation.metrics)
    for path in TABLES:
        files.write_csv(path, *evaluation.tables[path.stem])
    with files.atomic_write(SHEET) as partial:
        evaluation.test.sheet().save(partial, format="PNG")
    html_page.write(REPORT, content)


def track(
    evaluation: Evaluation, content: ReportContent, run: Mapping[str, Any], data_name: str
) -> None:
    """Log to the MLflow run of the training, if it has one: its store may have been down."""
    if run["run_id"] is None:
        return
    counts = {name: each.split.counts() for name, each in evaluation.splits.items()}
    with runs.add_to(run["run_id"]) as logged:
        logged.log_data(data_name, runs.data_digest(run["data"]), POSTS, counts)
        logged.log_metrics(evaluation.logged_metrics, checkpoint="best")
        logged.log_files(METRICS, *TABLES, THRESHOLDS, CALIBRATION, REPORT, SHEET)
        for name, plot in html_page.build_plots(content).items():
            logged.log_figure(plot, f"{name}.png")


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__))
