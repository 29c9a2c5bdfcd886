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
    ranking,
    score_counts,
    tag_metrics,
)
from tagger.evaluation.inspection import SplitInspection
from tagger.evaluation.prediction_store import LogitBlock, PredictionStore, StoreLabels
from tagger.evaluation.result import EvaluationResult
from tagger.images.dataset import Split

T = TypeVar("T")

_BATCH = 256  # pictures that a model would predict at a time
_TIMES = 5
_FASTER = 20
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
        some = labels[rows.start : rows.stop].tocoo()
        logits[some.coords] += shift
        yield rows, logits


def timed(seconds: dict[str, float], name: str, function: Callable[[], T]) -> T:
    start = time.perf_counter()
    answer = function()
    seconds[name] = time.perf_counter() - start
    return answer


def whole(path: Path) -> dict[str, Any]:
    """Do all that evaluation does, but predict: seconds of each part."""
    labels = stratified_split.load(path)
    tags = tags_of(labels)
    took: dict[str, float] = {}
    drawing = sum(len(rows) for rows, _ in timed(took, "drawing", lambda: list(_drawn(labels))))
    assert drawing == labels.shape[0]
    with timed(
        took,
        "drawing and writing",
        lambda: prediction_store.write(
            path.with_suffix(".logits"), StoreLabels(labels), blocks(labels)
        ),
    ) as part:
        return judge(part, tags, took)


def _drawn(labels: csr_array) -> Iterator[tuple[range, None]]:
    """Yield what `blocks` does, without keeping the logits."""
    for rows, _ in blocks(labels):
        yield range(len(rows)), None


def judge(part: PredictionStore, tags: list[Tag], took: dict[str, float]) -> dict[str, Any]:
    rows = timed(took, "thresholds", lambda: fit_thresholds.fit(part, tags))
    limits = np.array([row.threshold for row in rows if row.name])
    pools, marks = tag_metrics.pool_numbers(tags), score_counts.evaluation_thresholds(limits)
    counted = timed(took, "metrics", lambda: score_counts.count(part, pools, thresholds=marks))
    ranked = timed(took, "ranking", lambda: ranking.rank_labels(part))
    timed(took, "temperatures", lambda: calibration.fit(counted, tags))
    moved = timed(took, "influence", lambda: jackknife.compute(part, counted, tags, limits))
    timed(took, "bootstrap", lambda: bootstrap.intervals(moved, 0))
    summed = tag_metrics.summarize(counted, tags, ranked)
    look = SplitInspection(
        name="test",
        store=part,
        split=Split([Location("", 0, 0)] * len(part), part.labels),
        tags=tags,
        thresholds=limits,
        result=EvaluationResult(counted, ranked, moved, summed),
        background=WHITE,
    )
    timed(took, "mistakes", lambda: look.mistakes)
    timed(took, "tags confused", lambda: look.confusions)
    timed(took, "labels in doubt", lambda: look.label_issues)
    return {"seconds": took, "macro_ap": summed["macro_ap"], "micro_f1": summed["micro_f1"]}


def beside(path: Path) -> dict[str, Any]:
    """Return the seconds of AP for every tag, ours from disk and scikit-learn's in a loop."""
    from sklearn.metrics import average_precision_score

    labels = stratified_split.load(path)
    tags = tags_of(labels)
    pools = tag_metrics.pool_numbers(tags)
    with prediction_store.write(
        path.with_suffix(".logits"), StoreLabels(labels), blocks(labels)
    ) as part:
        logits = np.concatenate([some for _, some in blocks(labels)]).astype(np.float16)
        score_counts.count(part, pools)  # loads the compiled code
        ours: list[float] = []
        for _ in range(_TIMES):
            start = time.perf_counter()
            found = score_counts.count(part, pools).average_precision
            ours.append(time.perf_counter() - start)
    truth, columns = labels.toarray().T.copy(), logits.T.astype(np.float32)
    has = np.flatnonzero(truth.any(axis=1))
    start = time.perf_counter()
    theirs = [average_precision_score(truth[tag], columns[tag]) for tag in has]
    loop = time.perf_counter() - start
    apart = float(np.abs(found[has] - theirs).max())
    return {"ours": median(ours), "scikit-learn": loop, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", nargs="*", default=[], metavar="PICTURESxTAGSxPER_PICTURE")
    parser.add_argument("--alone", nargs="*", default=[], metavar="PICTURESxTAGSxPER_PICTURE")
    parser.add_argument("--folder", type=Path, help="where labels are kept for the next time")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"))
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps({"whole": whole, "beside": beside}[asked.part[0]](Path(asked.part[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        for number, size in enumerate((*asked.beside, *asked.alone)):
            path = folder / f"{size}.npz"
            pictures, tags, per_picture = map(int, size.split("x"))
            if not path.exists():
                stratified_split.draw(path, pictures, tags, per_picture)
            print(f"{pictures:,} pictures x {tags:,} tags, {per_picture} a picture")
            if number < len(asked.beside):
                compare(path)
            else:
                alone(path, (pictures, tags))


def compare(path: Path) -> None:
    answer = measure.run(__file__, "--part", "beside", path).answer
    ratio = answer["scikit-learn"] / answer["ours"]
    print(f"{'':4}ours {answer['ours']:.3f} s, scikit-learn {answer['scikit-learn']:.2f} s")
    print(f"{'':4}target: {_FASTER} times as fast: {_met(ratio >= _FASTER)} ({ratio:.0f})")
    apart = answer["apart"]
    print(f"{'':4}target: same values: {_met(apart < 1e-9)} ({apart:.0e} apart)")


def alone(path: Path, size: tuple[int, int]) -> None:
    run = measure.run(__file__, "--part", "whole", path)
    took = run.answer["seconds"]
    drawing = took.pop("drawing")
    took["writing"] = took.pop("drawing and writing") - drawing
    for name, seconds in took.items():
        print(f"{'':4}{name:14} {seconds:7.1f} s")
    total = sum(took.values())
    print(f"{'':4}{'in all':14} {total:7.1f} s, {run.peak:.2f} GB")
    if size in _LIMITS:
        seconds, gigabytes = _LIMITS[size]
        print(f"{'':4}target: {seconds} s: {_met(total <= seconds)}")
        print(f"{'':4}target: {gigabytes} GB: {_met(run.peak <= gigabytes)}")


def _met(holds: bool) -> str:
    return "met" if holds else "MISSED"


if __name__ == "__main__":
    main()
