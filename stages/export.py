"""Write the folder to publish, and prove that every tool gives the model's tags with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagger import params
from tagger.core import errors, files, thresholds
from tagger.evaluation import predictions
from tagger.export import checksums, compatibility, log_model, model_card, package, samples
from tagger.export.model_card import CardContent
from tagger.export.package import ExportTags
from tagger.export.trial import QuantizationTrial, QuantizationTrials
from tagger.images import dataset, decode
from tagger.images.dataset import Split
from tagger.models import load_tagger
from tagger.system import scratch
from tagger.tracking import runs

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
THRESHOLDS = Path("models/thresholds.csv")
CALIBRATION = Path("models/calibration.json")
METRICS = Path("metrics/evaluate.json")
EXPORT = Path("models/export")
REPORT = Path("metrics/export.json")


def main(p: params.Params) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.image_folders)
    tags, splits = dataset.read_splits(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    run, metrics = files.read_json(MODEL / "run.json"), files.read_json(METRICS)
    fitted = thresholds.read(THRESHOLDS)
    threshold = p.evaluate.threshold
    thresholds.check_objective(fitted, threshold.objective, threshold.target)
    export_tags = ExportTags(tags, thresholds.per_tag(fitted, tags, threshold.kind), fitted)
    with files.atomic_write(EXPORT) as folder:
        package.write(folder, MODEL, CALIBRATION, export_tags, p.export.opset)
        trials = quantize_weights(folder, splits, run, p)
        samples.write(folder, splits["test"], p.export.samples)
        model, test = load_tagger(MODEL), splits["test"]
        locations = test.evenly_spaced(p.export.parity_images).locations
        images = samples.readable_images(locations, model.preprocess.background)
        report = compatibility.check_compatibility(folder, images, model, p.export.tolerance)
        files.write_json(folder / "metrics.json", metrics)
        counts = {name: len(split) for name, split in splits.items()}
        model_card.write(folder, CardContent(run, metrics, counts, p, report, trials))
        checksums.write(folder)
    quantized = {name: trial._asdict() for name, trial in trials.items()}
    files.write_json(REPORT, report.to_json() | {"quantized": quantized})
    with runs.add_to(run["run_id"]) as mlflow_run:
        log_model.log_export(mlflow_run, EXPORT)
    for name, trial in trials.items():
        print(f"{name}: {trial}")
    print(f"{report.summary(p.export.min_agreement)} -> {EXPORT}")


def quantize_weights(
    folder: Path, splits: Mapping[str, Split], run: Mapping[str, Any], p: params.Params
) -> dict[str, QuantizationTrial]:
    """Add quantized weights to the export if they are good enough, and return how good they are."""
    with scratch.temporary_folder("export") as room:
        unlabelled = run["params"]["train"]["unlabelled"]
        predictor = predictions.local_predictor(room, unlabelled, **p.evaluate.loading)
        validation, test = splits["validation"], splits["test"]
        return QuantizationTrials(folder, validation, test, predictor, p.export).run()


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__))
