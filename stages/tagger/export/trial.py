"""Lighter weights of an export, each tried on the test part before it is shipped with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tagger.evaluation import ranking, score_counts, tag_metrics
from tagger.evaluation.predictions import SplitPredictor
from tagger.evaluation.tag_metrics import MetricTree
from tagger.export import quantize
from tagger.export.samples import readable_images
from tagger.images.dataset import Split
from tagger.models import load_tagger
from tagger.models.layouts import ONNX
from tagger.models.runtimes import Array, Device
from tagger.params import ExportParams
from tagger.system.world import read_world

FILE_NAMES = {"fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}

_MEASURES = ("macro_ap", "macro_f1", "micro_f1")
_CALIBRATING = 256  # pictures by which the ranges of int8 are found
_TIMED = 64  # pictures by which speed is measured


class QuantizationTrial(NamedTuple):
    """What lighter weights cost and gain."""

    bytes: int
    speedup: float  # pictures per second over those of fp32, on a CPU
    metric_changes: dict[str, float]  # of figures on the test part, by name
    shipped: bool
    reason: str  # empty where it is shipped

    def __str__(self) -> str:
        changes = ", ".join(
            f"{tag_metrics.display_name(name)} {change:+.4f}"
            for name, change in self.metric_changes.items()
        )
        told = f"{self.bytes / 1e6:.1f} MB, {self.speedup:.1f} times as fast, {changes}"
        return told if self.shipped else f"left out: {self.reason} ({told})"


@dataclass(frozen=True)
class QuantizationTrials:
    """Tries weights on the same pictures, by the same thresholds."""

    folder: Path  # the export
    validation: Split
    test: Split
    predictor: SplitPredictor
    params: ExportParams

    def run(self) -> dict[str, QuantizationTrial]:
        """Write the weights wanted into the export, and take out those that do not do."""
        if not self.params.quantize:
            return {}
        plain = self.folder / ONNX
        paths: dict[str, Path] = {
            name: self.folder / FILE_NAMES[name] for name in self.params.quantize
        }
        for name, path in paths.items():
            if name == "fp16":
                quantize.to_fp16(plain, path)
            else:
                quantize.to_int8(plain, path, self._batches(self.validation, _CALIBRATING))
        timed = np.concatenate(list(self._batches(self.test, _TIMED)))
        pace = quantize.measure_throughput({"fp32": plain, **paths}, timed, read_world().cores)
        full = self._judged("fp32", plain)
        found = {}
        for name, path in paths.items():
            judged = self._judged(name, path)
            changes = {one: round(judged[one] - full[one], 4) + 0.0 for one in _MEASURES}
            speed = round(pace[name] / pace["fp32"], 1)
            why_not = self._why_not(name, speed, changes)
            found[name] = QuantizationTrial(
                path.stat().st_size, speed, changes, not why_not, why_not
            )
            if why_not:
                path.unlink()
        return found

    def _batches(self, part: Split, count: int) -> list[Array]:
        tagger = load_tagger(self.folder, Device("cpu"))
        pictures = readable_images(
            part.evenly_spaced(count).locations, tagger.preprocess.background
        )
        squares = [tagger.preprocess.to_square(picture) for _, picture in pictures]
        return [
            tagger.preprocess.normalise(np.stack(squares[start : start + quantize.BATCH_SIZE]))
            for start in range(0, len(squares), quantize.BATCH_SIZE)
        ]

    def _judged(self, name: str, path: Path) -> MetricTree:
        tagger = load_tagger(path, Device("cpu"))
        part = self.test.evenly_spaced(self.params.evaluate_on)
        found = self.predictor(name, part, tagger.tags, tagger, tagger.preprocess)
        assert found  # as there is one process
        marks, pools = (
            score_counts.evaluation_thresholds(tagger.thresholds),
            tag_metrics.pool_numbers(tagger.tags),
        )
        counted = score_counts.count(found.store, pools, thresholds=marks)
        return tag_metrics.summarize(counted, tagger.tags, ranking.rank_labels(found.store))

    def _why_not(self, name: str, speed: float, changes: dict[str, float]) -> str:
        worst = min(changes, key=lambda one: changes[one])
        if changes[worst] < -self.params.max_metric_drop:
            falls = f"{tag_metrics.display_name(worst)} falls by {-changes[worst]:.4f}"
            return f"{falls}, more than {self.params.max_metric_drop:g}"
        if name == "int8" and speed < self.params.min_speedup:
            return f"{speed:.1f} times as fast, less than {self.params.min_speedup:g}"
        return ""
