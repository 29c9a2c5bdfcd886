"""Make the folder that people download, and prove that every tool tags with it as the model does.

With --check DIR an export is tried as it is, here or where it was downloaded to; with --push REPO
it is uploaded to the hub.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagger import params
from tagger.core import errors, files, thresholds
from tagger.core.errors import TaggerError
from tagger.evaluation import predictions
from tagger.export import checksums, compatibility, log_model, model_card, package, publish, samples
from tagger.export.compatibility import Compatibility
from tagger.export.package import ExportTags
from tagger.export.trial import QuantizationTrial, QuantizationTrials
from tagger.images import dataset, decode
from tagger.images.dataset import Split
from tagger.inference import inputs
from tagger.models import training_folder
from tagger.system import scratch
from tagger.tracking import runs

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
THRESHOLDS = Path("models/thresholds.csv")
CALIBRATION = Path("models/calibration.json")
FIGURES = Path("metrics/evaluate.json")
EXPORT = Path("models/export")
REPORT = Path("metrics/export.json")


def main(p: params.Params) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.copies_and_originals)
    tags, parts = dataset.read_splits(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    run = files.read_json(MODEL / "run.json")
    fitted = thresholds.read(THRESHOLDS)
    names = ExportTags(tags, thresholds.per_tag(fitted, tags, p.evaluate.threshold), fitted)
    model = training_folder.load(MODEL)
    with files.atomic_write(EXPORT) as folder:
        package.write(folder, MODEL, CALIBRATION, names, p.export.opset)
        trials = lighten(folder, parts, run["params"]["train"]["unlabelled"], p)
        samples.write(folder, parts["test"], p.export.samples)
        tried = parts["test"].evenly_spaced(p.export.parity_images).locations
        pictures = samples.readable_images(tried, model.preprocess.background)
        found = compatibility.check_compatibility(folder, pictures, model, p.export.tolerance)
        figures = files.read_json(FIGURES)
        files.write_json(folder / "metrics.json", figures)
        counts = {name: len(part) for name, part in parts.items()}
        model_card.write(folder, model_card.CardContent(run, figures, counts, p, found, trials))
        checksums.write(folder)
    quantized = {name: one._asdict() for name, one in trials.items()}
    files.write_json(REPORT, found.to_json() | {"quantized": quantized})
    track(run)
    tell(EXPORT, found, trials, p.export.min_agreement)


def lighten(
    folder: Path, parts: Mapping[str, Split], unlabelled: Sequence[Any], p: params.Params
) -> dict[str, QuantizationTrial]:
    """Add lighter weights to the export, as far as they do as well."""
    with scratch.temporary_folder("export") as room:
        predictor = predictions.local_predictor(room, unlabelled, **p.evaluate.loading)
        return QuantizationTrials(
            folder, parts["validation"], parts["test"], predictor, p.export
        ).run()


def track(run: Mapping[str, Any]) -> None:
    """Log the export as a model that MLflow can serve, in the run of its training."""
    if run["run_id"] is not None:
        with runs.add_to(run["run_id"]) as opened:
            log_model.log_export(opened, EXPORT)


def tell(
    folder: Path, found: Compatibility, trials: Mapping[str, QuantizationTrial], agreement: float
) -> None:
    for name, one in trials.items():
        print(f"{name}: {one}")
    others = {n: one.same_tags for n, one in found.tools.items() if one.same_tags < agreement}
    if others:
        listed = ", ".join(f"{name} {100 * same:.1f}%" for name, same in others.items())
        print(
            f"Of the model's tags these tools give: {listed}. They resize pictures otherwise, "
            "which matters most for models of small pictures."
        )
    print(f"{found} -> {folder}")


def check(folder: Path, named: Sequence[str], p: params.Params) -> None:
    """Try an export as it is: on the pictures named, or on those that came with it."""
    decode.init_process()
    whole = checksums.check(folder)
    if not (named or (folder / samples.FOLDER).is_dir()):
        raise TaggerError(f"{folder} came without pictures to try it on. Name some with --on.")
    found = inputs.find_inputs(named or [str(folder / samples.FOLDER)], recursive=True)
    pictures = [one.file for one in found]
    examined = compatibility.check_compatibility(
        folder,
        samples.readable_images(pictures),
        compatibility.load_reference(folder),
        p.export.tolerance,
    )
    print(f"{whole} files as they were exported")
    tell(folder, examined, {}, p.export.min_agreement)


def push(repo: str, *, private: bool, message: str) -> None:
    checksums.check(EXPORT)
    print(f"{EXPORT} -> {publish.upload(EXPORT, repo, private=private, message=message)}")


def asked_for(arguments: Sequence[str]) -> argparse.Namespace:
    parser = errors.ArgumentParser(prog="export.py", description=__doc__)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--check", type=Path, metavar="DIR", help="try an export as it is")
    one.add_argument("--push", metavar="REPO", help="upload models/export, as USER/NAME")
    parser.add_argument(
        "--on", nargs="+", default=[], metavar="PICTURE", help="for --check: files or folders"
    )
    parser.add_argument("--private", action="store_true", help="for --push: show it to nobody else")
    parser.add_argument("--message", help="for --push: of the commit (Export)")
    asked = parser.parse_args(arguments)
    if asked.on and not asked.check:
        parser.error("--on goes with --check")
    if (asked.private or asked.message) and not asked.push:
        parser.error("--private and --message go with --push")
    asked.message = asked.message or "Export"
    return asked


if __name__ == "__main__":
    with errors.exit_on_error():
        asked = asked_for(sys.argv[1:])
        if asked.check:
            check(asked.check, asked.on, params.load())
        elif asked.push:
            push(asked.push, private=asked.private, message=asked.message)
        else:
            main(params.load())
