"""How much shrinking the thresholds of rare tags toward their category's gains, by several methods.

    python tests/benchmarks/shrinkage.py [--seeds 20]

Macro F1 on images that neither the model nor the thresholds have seen: of the demonstration
model, which `dvc repro` leaves in models/, on newly drawn images, and of simulated models.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

from tagger.core import vocabulary
from tagger.core.arrays import Floats, Truth
from tagger.core.location import Location
from tagger.core.logits import finite_logit, logit
from tagger.core.vocabulary import Tag
from tagger.demo import draw
from tagger.evaluation import fit_thresholds, prediction_store
from tagger.images import loader, preprocess
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import ResumableBatchSampler
from tagger.models import backbone, predict
from tagger.models.torch_runtime import TorchRuntime

Integers = npt.NDArray[np.int64]

ROOT = Path(__file__).parents[2]
GRID = np.arange(-12, 12.01, 0.05)  # logits
STRENGTHS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 1e9]
IMAGES = 3000  # newly drawn
NEW_SEED = 4711  # other than that of the demonstration set


class ScoredLabels(NamedTuple):
    """Predictions and labels, both (images, tags)."""

    logits: Floats
    truth: Truth

    def rows(self, numbers: Integers) -> "ScoredLabels":
        return ScoredLabels(self.logits[numbers], self.truth[numbers])


class Curves(NamedTuple):
    """Counts at each threshold of GRID, (tags, thresholds), and support, (tags,)."""

    true: Floats
    predicted: Floats
    support: Floats

    def of(self, inside: npt.NDArray[np.bool_]) -> "Curves":
        return Curves(*(values[inside] for values in self))

    def pooled(self) -> "Curves":
        return Curves(*(values.sum(axis=0, keepdims=True) for values in self))

    @property
    def f1(self) -> Floats:
        return 2 * self.true / np.maximum(1e-9, self.predicted + self.support[:, None])


def build_curves(scored: ScoredLabels) -> Curves:
    def above(column: Floats) -> Floats:
        return len(column) - np.searchsorted(np.sort(column), GRID).astype(float)

    pairs = list(zip(scored.logits.T, scored.truth.T, strict=True))
    true = np.stack([above(column[labels]) for column, labels in pairs])
    return Curves(true, np.stack([above(column) for column, _ in pairs]), true[:, 0])


def best(f1: Floats) -> Floats:
    """Return the middle of each row's first stretch of the highest F1, in logits."""
    highest = f1 >= f1.max(axis=1, keepdims=True) - 1e-12
    first = highest.argmax(axis=1)
    beyond = ~highest & (np.arange(len(GRID)) > first[:, None])
    last = np.where(beyond.any(axis=1), beyond.argmax(axis=1), len(GRID)) - 1
    return np.asarray(GRID[(first + last) // 2])


def macro_f1(thresholds: Floats, curves: Curves) -> float:
    places = np.clip(np.rint((thresholds - GRID[0]) / (GRID[1] - GRID[0])), 0, len(GRID) - 1)
    f1 = np.take_along_axis(curves.f1, places.astype(int)[:, None], axis=1)[:, 0]
    return float(f1[curves.support > 0].mean())


# From curves, categories and strength to thresholds, (tags,).
Method = Callable[[Curves, Integers, float], Floats]


def each_category(
    curves: Curves, categories: Integers, function: Callable[[Curves], Floats]
) -> Floats:
    """Return the result of a function for the tags of each category, (tags, ...)."""
    masks = [categories == category for category in set(categories)]
    results = [function(curves.of(inside)) for inside in masks]
    combined = np.empty((len(categories), *results[0].shape[1:]))
    for inside, values in zip(masks, results, strict=True):
        combined[inside] = values
    return combined


def common(curves: Curves) -> Floats:
    return np.full(len(curves.support), best(curves.pooled().f1)[0])


def typical(curves: Curves) -> Floats:
    has = curves.support > 0
    mean = curves.f1[has].mean(axis=0, keepdims=True) if has.any() else np.zeros((1, len(GRID)))
    return np.full(len(has), best(mean)[0])


def weight(curves: Curves, strength: float) -> Floats:
    return curves.support / np.maximum(1e-9, curves.support + strength)


def shrunk(toward: Callable[[Curves], Floats]) -> Method:
    def thresholds(curves: Curves, categories: Integers, strength: float) -> Floats:
        fraction = weight(curves, strength)
        return fraction * best(curves.f1) + (1 - fraction) * each_category(
            curves, categories, toward
        )

    return thresholds


def pseudo_counts(curves: Curves, categories: Integers, strength: float) -> Floats:
    """Add positives, and what comes with each, as they are in the category."""

    def mixed(tag_curves: Curves) -> Floats:
        whole = tag_curves.pooled()
        rates = [
            values / max(1, whole.support[0]) * strength for values in (whole.true, whole.predicted)
        ]
        support = tag_curves.support + strength
        return Curves(tag_curves.true + rates[0], tag_curves.predicted + rates[1], support).f1

    return best(each_category(curves, categories, mixed))


def mixed_curves(curves: Curves, categories: Integers, strength: float) -> Floats:
    """Mix the curve of F1 with the mean one of the category."""

    def mixed(tag_curves: Curves) -> Floats:
        fraction = weight(tag_curves, strength)[:, None]
        mean = tag_curves.f1[tag_curves.support > 0].mean(axis=0)
        return np.asarray(fraction * tag_curves.f1 + (1 - fraction) * mean)

    return best(each_category(curves, categories, mixed))


def empirical_bayes(curves: Curves, categories: Integers) -> Floats:
    """Take the strength from how far thresholds are from their category's, by support."""
    toward, tag_thresholds = each_category(curves, categories, common), best(curves.f1)
    has = curves.support > 0
    noise = np.stack([np.ones(has.sum()), 1 / curves.support[has]], axis=1)
    root = np.sqrt(curves.support[has])
    (between, within), _ = nnls(noise * root[:, None], (tag_thresholds - toward)[has] ** 2 * root)
    fraction = weight(curves, within / max(between, 1e-9))
    return np.asarray(fraction * tag_thresholds + (1 - fraction) * toward)


def chosen(
    method: Method, scored: ScoredLabels, categories: Integers, random: np.random.Generator
) -> Floats:
    """Return the thresholds at the strength that is best from each half to the other."""
    order = random.permutation(len(scored.logits))
    first, second = (build_curves(scored.rows(half)) for half in (order[::2], order[1::2]))
    scores = [
        macro_f1(method(first, categories, k), second)
        + macro_f1(method(second, categories, k), first)
        for k in STRENGTHS
    ]
    return method(build_curves(scored), categories, STRENGTHS[int(np.argmax(scores))])


def ours(scored: ScoredLabels, tags: list[Tag], seed: int) -> Floats:
    with tempfile.TemporaryDirectory() as folder:
        truth = prediction_store.StoreLabels(csr_array(scored.truth))
        everything = [(range(len(scored.logits)), scored.logits)]
        with prediction_store.write(Path(folder) / "logits", truth, everything) as store:
            rows = fit_thresholds.fit(store, tags, seed=seed)
    return logit([row.threshold for row in rows if row.name])


def compare(
    seen: ScoredLabels, unseen: ScoredLabels, tags: list[Tag], seed: int
) -> dict[str, float]:
    random = np.random.default_rng(seed)
    categories = np.array([tag.category for tag in tags])
    curves, truth = build_curves(seen), build_curves(unseen)
    thresholds = {
        "its own": best(curves.f1),
        "its category's, of best micro F1": each_category(curves, categories, common),
        "its category's, of best macro F1": each_category(curves, categories, typical),
        "shrunk toward that of best micro F1": chosen(shrunk(common), seen, categories, random),
        "pseudo-counts": chosen(pseudo_counts, seen, categories, random),
        "mixed curves of F1": chosen(mixed_curves, seen, categories, random),
        "shrunk by empirical Bayes": empirical_bayes(curves, categories),
        "shrunk toward that of best macro F1: ours": ours(seen, tags, seed),
        "(the best in hindsight)": best(truth.f1),
    }
    return {name: macro_f1(values, truth) for name, values in thresholds.items()}


def demonstration() -> tuple[ScoredLabels, list[Tag]]:
    """Draw new images, and predict them with the demonstration model."""
    model = ROOT / "models/tagger"
    tags = vocabulary.read(model / "vocabulary.csv")
    column = {tag.name: number for number, tag in enumerate(tags)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "demo"
        draw.draw_images(folder, images=IMAGES, size=128, seed=NEW_SEED)
        files = sorted(folder.glob("*.png"))
        truth = np.zeros((len(files), len(tags)), np.bool_)
        for row, file in enumerate(files):
            names = file.with_suffix(".txt").read_text(encoding="utf-8").split(",")
            truth[row, [column[name.strip()] for name in names if name.strip() in column]] = True
        part = Split(
            [Location(str(file), 0, file.stat().st_size) for file in files], csr_array(truth)
        )
        prepared = preprocess.read(model / "preprocess.json")
        images, order = ImageDataset(part, prepared), ResumableBatchSampler(len(part), 64)
        batches = loader.build_loader(images, order, workers=0)
        runtime = TorchRuntime(backbone.load_model(model), prepared)
        predictions = predict.predict_labelled(runtime, batches, len(tags))
    return ScoredLabels(finite_logit(predictions.scores), predictions.truth), tags


def simulated(seed: int, bias: float) -> tuple[ScoredLabels, ScoredLabels, list[Tag]]:
    """Draw two sets that a model predicts with calibrated logits, off by a bias for each tag."""
    random = np.random.default_rng(seed)
    rates = np.concatenate([0.3 / np.arange(1, 201) ** 0.9, 0.02 / np.arange(1, 101) ** 0.6])
    parting, off = random.uniform(1, 4, len(rates)), random.normal(0, bias, len(rates))
    sets = []
    for images in (3000, 30_000):
        truth = random.random((images, len(rates))) < rates
        logits = parting * (random.standard_normal(truth.shape) + parting * truth)
        logits += np.log(rates / (1 - rates)) - parting**2 / 2 + off
        sets.append(ScoredLabels(logits, truth))
    tags = [Tag(n, f"tag_{n}", 0 if n < 200 else 4, 300 - n) for n in range(len(rates))]
    return sets[0], sets[1], tags


def cases(seeds: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    scored, tags = demonstration()
    for count in (100, 300, 1000):
        rows = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(scored.logits))
            sets = scored.rows(order[:count]), scored.rows(order[count:])
            rows.append(compare(*sets, tags, seed))
        yield f"demonstration, {count} images seen", rows
    for bias in (0.3, 1.0):
        rows = [compare(*simulated(seed, bias), seed) for seed in range(max(2, seeds // 4))]
        yield f"simulated, biased by {bias}", rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    for name, rows in cases(parser.parse_args().seeds):
        print(f"{name}, {len(rows)} seeds")
        baseline = np.array([row["its own"] for row in rows])
        for method in rows[0]:
            gains = np.array([row[method] for row in rows]) - baseline
            error = 1.96 * gains.std(ddof=1) / len(rows) ** 0.5
            print(
                f"{'':4}{method:42} {(baseline + gains).mean():.4f}  "
                f"{gains.mean():+.4f} ± {error:.4f}"
            )


if __name__ == "__main__":
    main()
