"""Judge the trained model: thresholds fitted on validation, figures reported on the test part."""

from pathlib import Path
from typing import Any

from tagger import (
    backbone,
    dataset,
    errors,
    files,
    images,
    params,
    preprocess,
    report,
    sheet,
    thresholds,
    tracking,
)
from tagger.dataset import Part
from tagger.metrics import Floats
from tagger.predict import Predictions, predict
from tagger.vocabulary import Tag

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
THRESHOLDS = Path("models/thresholds.csv")
REPORT = Path("metrics/evaluate.json")
PER_TAG = Path("metrics/tags.csv")
PR_CURVE = Path("metrics/pr_curve.csv")
F1_CURVE = Path("metrics/f1_by_threshold.csv")
SHEET = Path("metrics/predictions.png")
PICTURES_ON_SHEET = 12


def main(p: params.Evaluate) -> None:
    images.begin()
    tags, parts = dataset.read(POSTS, TAGS, MODEL / "vocabulary.csv", SPLIT)
    model = backbone.to_device(backbone.load(MODEL))
    prepared = preprocess.read(MODEL / "preprocess.json")
    judged = {
        name: predict(model, parts[name], prepared, batch_size=p.batch_size, workers=p.workers)
        for name in ("validation", "test")
    }
    fitted = thresholds.fit(judged["validation"].scores, judged["validation"].truth, tags)
    thresholds.write(fitted, THRESHOLDS)
    limits = thresholds.per_tag(fitted, tags, p.threshold)
    figures = {part: report.summary(judged[part], tags, limits) for part in ("test", "validation")}
    files.write_json(REPORT, figures)
    test = judged["test"]
    files.write_csv(PER_TAG, report.TAG_HEADER, report.tag_rows(test, tags, limits))
    files.write_csv(PR_CURVE, report.PR_HEADER, report.pr_rows(test))
    files.write_csv(F1_CURVE, report.F1_HEADER, report.f1_rows(test, thresholds.GRID))
    draw_sheet(test, parts["test"], tags, limits, prepared.background)
    track(figures)
    tell(figures["test"])


def tell(test: dict[str, Any]) -> None:
    print(
        f"test: macro AP {test['macro_ap']:.3f} over {test['tags']} tags, micro AP "
        f"{test['micro_ap']:.3f}, macro F1 {test['macro_f1']:.3f}, micro F1 {test['micro_f1']:.3f} "
        f"on {test['images']:,} pictures -> {REPORT}"
    )


def draw_sheet(
    judged: Predictions, part: Part, tags: list[Tag], limits: Floats, background: images.Colour
) -> None:
    shown = judged.rows[:PICTURES_ON_SHEET]
    pictures = [images.open_rgb(part.places[row], background) for row in shown]
    drawn = sheet.draw(pictures, judged.scores, judged.truth, [tag.name for tag in tags], limits)
    with files.replacing(SHEET) as partial:
        drawn.save(partial, format="PNG")


def track(figures: dict[str, Any]) -> None:
    """Add to the run of the training, where there is one: a store may have been away."""
    run_id = files.read_json(MODEL / "run.json")["run_id"]
    if run_id is None:
        return
    with tracking.run(run_id=run_id) as run:
        run.log_metrics(figures)
        run.log_files(REPORT, PER_TAG, THRESHOLDS, SHEET)
        run.log_curve(PR_CURVE, "Precision and recall")
        run.log_curve(F1_CURVE, "F1 by threshold")


if __name__ == "__main__":
    with errors.reported():
        main(params.load().evaluate)
