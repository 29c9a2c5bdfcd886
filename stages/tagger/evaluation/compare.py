"""Two taggers on the same pictures, over the tags that both know."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tagger.core import thresholds as fitted
from tagger.core.errors import TaggerError
from tagger.core.thresholds import Aim, Policy
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

_TRIED = 256  # pictures by which the order of channels is found out

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedTagger:
    """One of the two: what it computes, of which only the shared tags count."""

    name: str
    runtime: Runtime
    preprocess: Preprocess
    columns: Sequence[int]  # of the shared tags


@dataclass(frozen=True)
class ComparisonData:
    """What both are judged on."""

    tags: Sequence[Tag]  # the shared ones
    splits: Mapping[str, Split]  # with these tags alone
    predictor: SplitPredictor
    policy: Policy
    seed: int

    def evaluate(self, side: ComparedTagger) -> EvaluationResult | None:
        """Return how good one is on the test part, by thresholds fitted on validation."""
        found = [
            self.predictor(
                f"{side.name}-{name}",
                self.splits[name],
                self.tags,
                side.runtime,
                side.preprocess,
                side.columns,
            )
            for name in predictions.EVALUATED_SPLITS
        ]
        validation, test = found
        if validation is None or test is None:
            return None
        aim = Aim(self.policy.by, self.policy.target)
        rows = fit_thresholds.fit(validation.store, self.tags, aim, self.seed)
        limits = fitted.per_tag(rows, self.tags, self.policy)
        return result.evaluate(test.store, self.tags, limits, self.seed)


@dataclass(frozen=True)
class Comparison:
    other: Path
    tags: int  # that both know
    ours: EvaluationResult
    theirs: EvaluationResult
    differences: Intervals  # ours less theirs

    def summary_lines(self) -> Iterator[str]:
        """Yield what is to be told: figures, differences, and how sure they are."""
        yield (
            f"{self.tags} tags that both know, on {self.ours.metrics['images']:,} test pictures; "
            "thresholds of both fitted on validation."
        )
        yield f"{'':24}{'ours':>8}{'theirs':>8}   difference, 95 % interval"
        for name in (OVERALL, *(name for name in self.differences if name != OVERALL)):
            for measure in METRICS:
                yield self._line(name, measure)
        yield f"If {self.other} was trained on some of these pictures, it does worse elsewhere."

    def _line(self, name: str, measure: str) -> str:
        mine, other = (_of(one.metrics, name)[measure] for one in (self.ours, self.theirs))
        difference, low, high = self.differences[name][measure]
        verdict = "ours is better" if low > 0 else "theirs is better" if high < 0 else "undecided"
        label = f"{name} {tag_metrics.display_name(measure)}"
        return (
            f"{label:24}{mine:8.3f}{other:8.3f}   "
            f"{difference:+.3f} ({low:+.3f} to {high:+.3f}) {verdict}"
        )

    def content(self) -> dict[str, Any]:
        return {
            "tags": self.tags,
            "ours": self.ours.metrics,
            "theirs": self.theirs.metrics,
            "differences": self.differences,
        }


def _of(figures: Mapping[str, Any], name: str) -> Mapping[str, float]:
    found: Mapping[str, float] = figures if name == OVERALL else figures["categories"][name]
    return found


def compare(
    runtime: Runtime,
    preprocess: Preprocess,
    folder: Path,
    ground: ComparisonData,
    aliases: Mapping[str, str],
) -> Comparison | None:
    """Return whether a model is better than a tagger, on the leading process.

    runtime, preprocess: the model's, with the tags of the ground
    folder: of the other tagger, in any layout
    Raises TaggerError where the two know no tag in common.
    """
    world = ground.predictor.group.world
    tagger = load_tagger(folder, Device("auto", world.local_rank, world.cores))
    found = match.match_tags(ground.tags, layouts.read_tags(folder), aliases)
    if not found:
        raise TaggerError(
            f"{folder}: none of its {len(tagger.tags):,} tags, such as {tagger.tags[0].name!r}, is "
            "among those of this model. There is nothing to compare."
        )
    own = np.array(sorted(found))
    shared = replace(
        ground,
        tags=[ground.tags[row] for row in own.tolist()],
        splits={n: replace(p, labels=p.labels[:, own]) for n, p in ground.splits.items()},
    )
    columns = [found[row][0] for row in own.tolist()]
    theirs = ComparedTagger("theirs", tagger, tagger.preprocess, columns)
    if not tagger.states_channel_order:
        theirs = _with_channels(theirs, tagger, shared)
    ours = ComparedTagger("ours", runtime, preprocess, own.tolist())
    mine, other = shared.evaluate(ours), shared.evaluate(theirs)
    if mine is None or other is None:
        return None
    differences = bootstrap.differences(mine.jackknife, other.jackknife, ground.seed)
    return Comparison(folder, len(own), mine, other, differences)


def _with_channels(side: ComparedTagger, tagger: Tagger, ground: ComparisonData) -> ComparedTagger:
    """Return the side given BGR, if that is what it is better at."""
    part = ground.splits["validation"].evenly_spaced(_TRIED)
    order, pictures = (
        ResumableBatchSampler(len(part), ground.predictor.batch_size),
        ImageDataset(part, side.preprocess),
    )
    batches = list(loader.build_loader(pictures, order, workers=ground.predictor.workers))
    reverse = replace(side, runtime=replace(tagger, takes_bgr=True))
    rgb, bgr = (_macro_ap(one, batches) for one in (side, reverse))
    if ground.predictor.group.is_main:
        _log.warning(
            "Its files do not say in which order it takes colours: macro AP %.3f as RGB, %.3f as "
            "BGR, on %d validation pictures. %s it is.",
            *(rgb, bgr, len(part), "BGR" if bgr > rgb else "RGB"),
        )
    return reverse if bgr > rgb else side


def _macro_ap(side: ComparedTagger, batches: Sequence[Batch]) -> float:
    logits, truth = [], []
    for batch, (values,) in predict(side.runtime, batches, "logits"):
        logits.append(values[:, side.columns])
        truth.append(batch.targets.numpy() > 0)
    return dense.macro_ap(np.concatenate(logits), np.concatenate(truth)) if logits else 0.0
