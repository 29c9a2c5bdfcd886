"""Compare two taggers on the same images, over the tags that both have."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagger.core import thresholds
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.data.tags import match
from tagger.evaluation import bootstrap, fit_thresholds, predictions, result, tag_metrics
from tagger.evaluation.bootstrap import METRICS, OVERALL, Intervals
from tagger.evaluation.metrics import dense
from tagger.evaluation.predictions import SplitPredictor
from tagger.evaluation.result import EvaluationResult
from tagger.images import loader
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import Batch, ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models import layouts, load_tagger
from tagger.models.predict import predict
from tagger.models.runtimes import Device, Runtime
from tagger.models.tagger import Tagger
from tagger.params import ThresholdParams

_CHANNEL_SAMPLE = 256  # images to detect the order of channels

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedTagger:
    """One of the two taggers; only the shared tags count."""

    name: str
    runtime: Runtime
    preprocess: Preprocess
    columns: Sequence[int]  # of the shared tags


@dataclass(frozen=True)
class ComparisonData:
    """The images and tags to evaluate both taggers on."""

    tags: Sequence[Tag]
    splits: Mapping[str, Split]  # labelled with these tags
    predictor: SplitPredictor
    thresholds: ThresholdParams
    seed: int

    def evaluate(self, tagger: ComparedTagger) -> EvaluationResult | None:
        """Return the metrics on test, at thresholds fitted on validation, on the main process."""
        validation, test = (
            self.predictor(
                f"{tagger.name}-{name}",
                self.splits[name],
                self.tags,
                tagger.runtime,
                tagger.preprocess,
                tagger.columns,
            )
            for name in predictions.EVALUATED_SPLITS
        )
        if validation is None or test is None:
            return None
        objective, target = self.thresholds.objective, self.thresholds.target
        rows = fit_thresholds.fit(validation.store, self.tags, objective, target, self.seed)
        values = thresholds.per_tag(rows, self.tags, self.thresholds.kind)
        return result.evaluate(test.store, self.tags, values, self.seed)


@dataclass(frozen=True)
class Comparison:
    other: Path
    tags: int  # that both have
    ours: EvaluationResult
    theirs: EvaluationResult
    differences: Intervals  # ours minus theirs

    def summary_lines(self) -> Iterator[str]:
        """Yield what to print: metrics, differences, and how certain they are."""
        yield (
            f"{self.tags} shared tags, {self.ours.metrics['images']:,} test images; thresholds of "
            "both fitted on validation."
        )
        yield f"{'':24}{'ours':>8}{'theirs':>8}   difference, 95 % interval"
        for category in (OVERALL, *(name for name in self.differences if name != OVERALL)):
            for metric in METRICS:
                yield self._line(category, metric)
        yield f"If {self.other} was trained on some of these images, it is worse on other images."

    def _line(self, category: str, metric: str) -> str:
        ours, theirs = (
            (side.metrics if category == OVERALL else side.metrics["categories"][category])[metric]
            for side in (self.ours, self.theirs)
        )
        difference, low, high = self.differences[category][metric]
        verdict = "ours is better" if low > 0 else "theirs is better" if high < 0 else "undecided"
        label = f"{category} {tag_metrics.display_name(metric)}"
        return (
            f"{label:24}{ours:8.3f}{theirs:8.3f}   "
            f"{difference:+.3f} ({low:+.3f} to {high:+.3f}) {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "tags": self.tags,
            "ours": self.ours.metrics,
            "theirs": self.theirs.metrics,
            "differences": self.differences,
        }


def compare(
    runtime: Runtime,
    preprocess: Preprocess,
    folder: Path,
    data: ComparisonData,
    aliases: Mapping[str, str],
) -> Comparison | None:
    """Compare a model with another tagger. Return the result on the main process.

    runtime, preprocess: of the model, which has the tags of the data
    folder: of the other tagger, in any layout
    Raises TaggerError if the two share no tag.
    """
    world = data.predictor.group.world
    tagger = load_tagger(folder, Device("auto", world.local_rank, world.cores))
    matches = match.match_tags(data.tags, layouts.read_tags(folder), aliases)
    if not matches:
        raise TaggerError(
            f"{folder}: none of its {len(tagger.tags):,} tags, such as {tagger.tags[0].name!r}, is "
            "among those of this model. There is nothing to compare."
        )
    our_columns = sorted(matches)
    their_columns = [matches[column][0] for column in our_columns]
    shared = replace(
        data,
        tags=[data.tags[column] for column in our_columns],
        splits={
            name: replace(split, labels=split.labels[:, our_columns])
            for name, split in data.splits.items()
        },
    )
    other = ComparedTagger("theirs", tagger, tagger.preprocess, their_columns)
    if not tagger.states_channel_order:
        other = _with_best_channels(other, tagger, shared)
    ours = shared.evaluate(ComparedTagger("ours", runtime, preprocess, our_columns))
    theirs = shared.evaluate(other)
    if ours is None or theirs is None:
        return None
    differences = bootstrap.differences(ours.jackknife, theirs.jackknife, data.seed)
    return Comparison(folder, len(our_columns), ours, theirs, differences)


def _with_best_channels(
    compared: ComparedTagger, tagger: Tagger, data: ComparisonData
) -> ComparedTagger:
    """Return the tagger with channels in the order, RGB or BGR, in which it does better."""
    split = data.splits["validation"].evenly_spaced(_CHANNEL_SAMPLE)
    sampler = ResumableBatchSampler(len(split), data.predictor.batch_size)
    dataset = ImageDataset(split, compared.preprocess)
    batches = list(loader.build_loader(dataset, sampler, workers=data.predictor.workers))
    reversed_channels = replace(compared, runtime=replace(tagger, takes_bgr=True))
    rgb, bgr = (_macro_ap(each, batches) for each in (compared, reversed_channels))
    if data.predictor.group.is_main:
        _log.warning(
            "Its files do not name the order of channels: macro AP %.3f as RGB, %.3f as BGR, on "
            "%d validation images. Using %s.",
            *(rgb, bgr, len(split), "BGR" if bgr > rgb else "RGB"),
        )
    return reversed_channels if bgr > rgb else compared


def _macro_ap(tagger: ComparedTagger, batches: Sequence[Batch]) -> float:
    logits, labels = [], []
    for batch, (outputs,) in predict(tagger.runtime, batches, "logits"):
        logits.append(outputs[:, tagger.columns])
        labels.append(batch.targets.numpy() > 0)
    return dense.macro_ap(np.concatenate(logits), np.concatenate(labels)) if logits else 0.0
