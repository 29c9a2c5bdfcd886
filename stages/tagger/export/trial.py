"""Quantized weights of an export: each is evaluated on the test split, and dropped if it is bad."""

from collections.abc import Mapping
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

_METRICS = ("macro_ap", "macro_f1", "micro_f1")
_CALIBRATION_IMAGES = 256  # that give the ranges of int8
_TIMED_IMAGES = 64
_CPU = Device("cpu")


class QuantizationTrial(NamedTuple):
    """What quantized weights cost and gain."""

    bytes: int
    speedup: float  # images per second over those of fp32, on a CPU
    metric_changes: dict[str, float]  # on the test split, by metric
    shipped: bool
    reason: str  # why they are not shipped; empty if they are

    def __str__(self) -> str:
        changes = ", ".join(
            f"{tag_metrics.display_name(name)} {change:+.4f}"
            for name, change in self.metric_changes.items()
        )
        line = f"{self.bytes / 1e6:.1f} MB, {self.speedup:.1f} times as fast, {changes}"
        return line if self.shipped else f"dropped: {self.reason} ({line})"


@dataclass(frozen=True)
class QuantizationTrials:
    """Evaluates all weights on the same images, at the same thresholds."""

    folder: Path  # the export
    validation: Split
    test: Split
    predictor: SplitPredictor
    params: ExportParams

    def run(self) -> dict[str, QuantizationTrial]:
        """Write quantized weights into the export, and remove those that are not good enough."""
        if not self.params.quantize:
            return {}
        full = self.folder / ONNX
        paths: dict[str, Path] = {
            name: self.folder / FILE_NAMES[name] for name in self.params.quantize
        }
        for name, path in paths.items():
            if name == "fp16":
                quantize.to_fp16(full, path)
            else:
                quantize.to_int8(full, path, self._batches(self.validation, _CALIBRATION_IMAGES))
        inputs = np.concatenate(self._batches(self.test, _TIMED_IMAGES))
        graphs: Mapping[str, Path] = {"fp32": full, **paths}
        throughput = quantize.measure_throughput(graphs, inputs, read_world().cores)
        metrics = {name: self._evaluate(name, path) for name, path in graphs.items()}
        trials = {}
        for name, path in paths.items():
            changes = {
                metric: round(metrics[name][metric] - metrics["fp32"][metric], 4) + 0.0
                for metric in _METRICS
            }
            speedup = round(throughput[name] / throughput["fp32"], 1)
            reason = self._reason(name, speedup, changes)
            size = path.stat().st_size
            trials[name] = QuantizationTrial(size, speedup, changes, not reason, reason)
            if reason:
                path.unlink()
        return trials

    def _batches(self, split: Split, count: int) -> list[Array]:
        """Return inputs of the graph for images of a split."""
        preprocess = load_tagger(self.folder, _CPU).preprocess
        images = readable_images(split.evenly_spaced(count).locations, preprocess.background)
        squares = [preprocess.to_square(image) for _, image in images]
        return [
            preprocess.normalise(np.stack(squares[start : start + quantize.BATCH_SIZE]))
            for start in range(0, len(squares), quantize.BATCH_SIZE)
        ]

    def _evaluate(self, name: str, path: Path) -> MetricTree:
        tagger = load_tagger(path, _CPU)
        split = self.test.evenly_spaced(self.params.evaluate_on)
        predictions = self.predictor(name, split, tagger.tags, tagger, tagger.preprocess)
        assert predictions  # in this process, the only one
        pools = tag_metrics.pool_numbers(tagger.tags)
        thresholds = score_counts.evaluation_thresholds(tagger.thresholds)
        counts = score_counts.count(predictions.store, pools, thresholds=thresholds)
        return tag_metrics.summarize(counts, tagger.tags, ranking.rank_labels(predictions.store))

    def _reason(self, name: str, speedup: float, changes: Mapping[str, float]) -> str:
        """Return why weights are not good enough, or nothing."""
        worst = min(changes, key=lambda metric: changes[metric])
        if changes[worst] < -self.params.max_metric_drop:
            drop = f"{tag_metrics.display_name(worst)} falls by {-changes[worst]:.4f}"
            return f"{drop}, more than {self.params.max_metric_drop:g}"
        if name == "int8" and speedup < self.params.min_speedup:
            return f"{speedup:.1f} times as fast, less than {self.params.min_speedup:g}"
        return ""
