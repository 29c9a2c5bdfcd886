"""Measure the evaluation of many predictions, and beside scikit-learn's average precision.

    python tests/benchmarks/evaluation.py --beside 20000x2000x30 --alone 200000x10000x30

Predictions are drawn at random: labels by Zipf's law, logits normal, those of true pairs higher.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import measure
import numpy as np
import stratified_split
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

from tagger.core.colours import WHITE
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.evaluation import (
    bootstrap,
    calibration,
    fit_thresholds,
    jackknife,
    prediction_store,
    result,
    score_counts,
    tag_metrics,
)
from tagger.evaluation.inspection import SplitInspection
from tagger.evaluation.prediction_store import LogitBlock, PredictionStore, StoreLabels
from tagger.evaluation.result import EvaluationResult
from tagger.images.dataset import Split

T = TypeVar("T")

_BATCH = 256  # images that a model would predict at a time
_TIMES = 5
_FASTER = 10
_LIMITS = {(200_000, 10_000): (300, 4)}  # seconds, GB


def tags_of(labels: csr_array) -> list[Tag]:
    """Return a vocabulary in which the first half of the tags is general, the rest characters."""
    counts = np.bincount(labels.indices, minlength=labels.shape[1]).tolist()
    half = len(counts) // 2
    return [Tag(n, f"tag_{n}", 0 if n < half else 4, 8 * count) for n, count in enumerate(counts)]


def blocks(labels: csr_array, shift: float = 3.0) -> Iterator[LogitBlock]:
    random = np.random.default_rng(0)
    rates = np.bincount(labels.indices, minlength=labels.shape[1]) / labels.shape[0]
    base = np.log(np.clip(rates, 1e-5, None)).astype(np.float32)
    for start in range(0, labels.shape[0], _BATCH):
        rows = range(start, min(start + _BATCH, labels.shape[0]))
        logits = random.standard_normal((len(rows), labels.shape[1]), np.float32) + base
        block = labels[rows.start : rows.stop].tocoo()
        logits[block.coords] += shift
        yield rows, logits


def timed(seconds: dict[str, float], name: str, function: Callable[[], T]) -> T:
    start = time.perf_counter()
    result_ = function()
    seconds[name] = time.perf_counter() - start
    return result_


def all_of_evaluation(path: Path) -> dict[str, Any]:
    """Compute everything but the predictions: seconds of each step."""
    labels = stratified_split.load(path)
    tags = tags_of(labels)
    seconds: dict[str, float] = {}
    rows = timed(seconds, "drawing", lambda: sum(len(rows) for rows, _ in blocks(labels)))
    assert rows == labels.shape[0]
    with timed(seconds, "drawing and writing", lambda: write_store(path, labels)) as store:
        return evaluate(store, tags, seconds)


def write_store(path: Path, labels: csr_array) -> PredictionStore:
    return prediction_store.write(path.with_suffix(".logits"), StoreLabels(labels), blocks(labels))


def evaluate(store: PredictionStore, tags: list[Tag], seconds: dict[str, float]) -> dict[str, Any]:
    rows = timed(seconds, "thresholds", lambda: fit_thresholds.fit(store, tags))
    thresholds = np.array([row.threshold for row in rows if row.name])
    counts, ranking, metrics = timed(
        seconds, "metrics", lambda: result.measure(store, tags, thresholds)
    )
    timed(seconds, "temperatures", lambda: calibration.fit(counts, tags))
    influences = timed(
        seconds, "jackknife", lambda: jackknife.compute(store, counts, tags, thresholds)
    )
    timed(seconds, "bootstrap", lambda: bootstrap.intervals(influences, 0))
    inspection = SplitInspection(
        name="test",
        store=store,
        split=Split([Location("", 0, 0)] * len(store), store.labels),
        tags=tags,
        thresholds=thresholds,
        result=EvaluationResult(counts, ranking, influences, metrics),
        background=WHITE,
    )
    timed(seconds, "mistakes", lambda: inspection.mistakes)
    timed(seconds, "confusions", lambda: inspection.confusions)
    timed(seconds, "label issues", lambda: inspection.label_issues)
    return {"seconds": seconds, "macro_ap": metrics["macro_ap"], "micro_f1": metrics["micro_f1"]}


def beside(path: Path) -> dict[str, Any]:
    """Return the seconds of AP for every tag, ours from disk and scikit-learn's in a loop."""
    from sklearn.metrics import average_precision_score

    labels = stratified_split.load(path)
    pools = tag_metrics.pool_numbers(tags_of(labels))
    with write_store(path, labels) as store:
        logits = np.concatenate([rows for _, rows in blocks(labels)]).astype(np.float16)
        seconds: list[float] = []
        for _ in range(_TIMES):
            start = time.perf_counter()
            ours = score_counts.count(store, pools).average_precision
            seconds.append(time.perf_counter() - start)
    truth, columns = labels.toarray().T.copy(), logits.T.astype(np.float32)
    supported = np.flatnonzero(truth.any(axis=1))
    start = time.perf_counter()
    reference = [average_precision_score(truth[tag], columns[tag]) for tag in supported]
    loop = time.perf_counter() - start
    apart = float(np.abs(ours[supported] - reference).max())
    return {"ours": median(seconds), "scikit-learn": loop, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", nargs="*", default=[], metavar="IMAGESxTAGSxPER_IMAGE")
    parser.add_argument("--alone", nargs="*", default=[], metavar="IMAGESxTAGSxPER_IMAGE")
    parser.add_argument("--folder", type=Path, help="where labels are kept for the next time")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"))
    args = parser.parse_args()
    if args.part:
        print(
            json.dumps(
                {"all": all_of_evaluation, "beside": beside}[args.part[0]](Path(args.part[1]))
            )
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for number, size in enumerate((*args.beside, *args.alone)):
            path = folder / f"{size}.npz"
            images, tags, per_image = map(int, size.split("x"))
            if not path.exists():
                stratified_split.draw(path, images, tags, per_image)
            print(f"{images:,} images x {tags:,} tags, {per_image} an image")
            if number < len(args.beside):
                compare(path)
            else:
                alone(path, (images, tags))


def compare(path: Path) -> None:
    answer = measure.run(__file__, "--part", "beside", path).answer
    ratio = answer["scikit-learn"] / answer["ours"]
    print(f"{'':4}ours {answer['ours']:.3f} s, scikit-learn {answer['scikit-learn']:.2f} s")
    print(f"{'':4}target: {_FASTER} times as fast: {_met(ratio >= _FASTER)} ({ratio:.0f})")
    apart = answer["apart"]
    print(f"{'':4}target: same values: {_met(apart < 1e-9)} ({apart:.0e} apart)")


def alone(path: Path, size: tuple[int, int]) -> None:
    run = measure.run(__file__, "--part", "all", path)
    seconds_of = run.answer["seconds"]
    drawing = seconds_of.pop("drawing")
    seconds_of["writing"] = seconds_of.pop("drawing and writing") - drawing
    for name, seconds in seconds_of.items():
        print(f"{'':4}{name:14} {seconds:7.1f} s")
    total = sum(seconds_of.values())
    print(f"{'':4}{'in all':14} {total:7.1f} s, {run.peak:.2f} GB")
    if size in _LIMITS:
        seconds, gigabytes = _LIMITS[size]
        print(f"{'':4}target: {seconds} s: {_met(total <= seconds)}")
        print(f"{'':4}target: {gigabytes} GB: {_met(run.peak <= gigabytes)}")


def _met(holds: bool) -> str:
    return "met" if holds else "MISSED"


if __name__ == "__main__":
    main()
