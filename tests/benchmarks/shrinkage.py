"""What drawing the thresholds of rare tags toward their category's gains, by several ways.

    python tests/benchmarks/shrinkage.py [--seeds 20]

Macro F1 on pictures that neither the model nor the thresholds have seen: of the demonstration
model, which `dvc repro` leaves in models/, on freshly drawn pictures, and of simulated models.
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

Whole = npt.NDArray[np.int64]

ROOT = Path(__file__).parents[2]
GRID = np.arange(-12, 12.01, 0.05)  # logits
STRENGTHS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 1e9]
PICTURES = 3000  # drawn anew
FRESH = 4711  # the seed by which; the demonstration set has another


class Judged(NamedTuple):
    """Predictions and labels, both (pictures, tags)."""

    logits: Floats
    truth: Truth

    def rows(self, some: Whole) -> "Judged":
        return Judged(self.logits[some], self.truth[some])


class Curves(NamedTuple):
    """What each threshold of GRID gives: (tags, thresholds) but for support, (tags,)."""

    true: Floats
    given: Floats
    support: Floats

    def of(self, inside: npt.NDArray[np.bool_]) -> "Curves":
        return Curves(*(part[inside] for part in self))

    def pooled(self) -> "Curves":
        return Curves(*(part.sum(axis=0, keepdims=True) for part in self))

    @property
    def f1(self) -> Floats:
        return 2 * self.true / np.maximum(1e-9, self.given + self.support[:, None])


def curves(judged: Judged) -> Curves:
    def above(column: Floats) -> Floats:
        return len(column) - np.searchsorted(np.sort(column), GRID).astype(float)

    pairs = list(zip(judged.logits.T, judged.truth.T, strict=True))
    true = np.stack([above(column[own]) for column, own in pairs])
    return Curves(true, np.stack([above(column) for column, _ in pairs]), true[:, 0])


def best(f1: Floats) -> Floats:
    """Return the middle of each row's first stretch of the highest F1, in logits."""
    highest = f1 >= f1.max(axis=1, keepdims=True) - 1e-12
    first = highest.argmax(axis=1)
    beyond = ~highest & (np.arange(len(GRID)) > first[:, None])
    last = np.where(beyond.any(axis=1), beyond.argmax(axis=1), len(GRID)) - 1
    return np.asarray(GRID[(first + last) // 2])


def macro_f1(limits: Floats, found: Curves) -> float:
    places = np.clip(np.rint((limits - GRID[0]) / (GRID[1] - GRID[0])), 0, len(GRID) - 1)
    f1 = np.take_along_axis(found.f1, places.astype(int)[:, None], axis=1)[:, 0]
    return float(f1[found.support > 0].mean())


Way = Callable[[Curves, Whole, float], Floats]  # curves, categories, strength to limits, (tags,)


def each_category(found: Curves, categories: Whole, function: Callable[[Curves], Floats]) -> Floats:
    """Return what a function says of the tags of each category, (tags, ...)."""
    parts = [(categories == one, function(found.of(categories == one))) for one in set(categories)]
    answer = np.empty((len(categories), *parts[0][1].shape[1:]))
    for inside, values in parts:
        answer[inside] = values
    return answer


def common(found: Curves) -> Floats:
    return np.full(len(found.support), best(found.pooled().f1)[0])


def typical(found: Curves) -> Floats:
    has = found.support > 0
    mean = found.f1[has].mean(axis=0, keepdims=True) if has.any() else np.zeros((1, len(GRID)))
    return np.full(len(has), best(mean)[0])


def weight(found: Curves, strength: float) -> Floats:
    return found.support / np.maximum(1e-9, found.support + strength)


def leaning(toward: Callable[[Curves], Floats]) -> Way:
    def limits(found: Curves, categories: Whole, strength: float) -> Floats:
        share = weight(found, strength)
        return share * best(found.f1) + (1 - share) * each_category(found, categories, toward)

    return limits


def pseudo_counts(found: Curves, categories: Whole, strength: float) -> Floats:
    """Add positives, and what comes with each, as they are in the category."""

    def mixed(some: Curves) -> Floats:
        whole = some.pooled()
        rates = [part / max(1, whole.support[0]) * strength for part in (whole.true, whole.given)]
        support = some.support + strength
        return Curves(some.true + rates[0], some.given + rates[1], support).f1

    return best(each_category(found, categories, mixed))


def mixed_curves(found: Curves, categories: Whole, strength: float) -> Floats:
    """Mix the curve of F1 with the mean one of the category."""

    def mixed(some: Curves) -> Floats:
        share = weight(some, strength)[:, None]
        mean = some.f1[some.support > 0].mean(axis=0)
        return np.asarray(share * some.f1 + (1 - share) * mean)

    return best(each_category(found, categories, mixed))


def empirical_bayes(found: Curves, categories: Whole) -> Floats:
    """Take the strength from how far thresholds are from their category's, by support."""
    toward, own = each_category(found, categories, common), best(found.f1)
    has = found.support > 0
    noise = np.stack([np.ones(has.sum()), 1 / found.support[has]], axis=1)
    root = np.sqrt(found.support[has])
    (between, within), _ = nnls(noise * root[:, None], (own - toward)[has] ** 2 * root)
    share = weight(found, within / max(between, 1e-9))
    return np.asarray(share * own + (1 - share) * toward)


def chosen(way: Way, judged: Judged, categories: Whole, random: np.random.Generator) -> Floats:
    """Return the limits with the strength that is best from one half to the other."""
    order = random.permutation(len(judged.logits))
    one, other = (curves(judged.rows(half)) for half in (order[::2], order[1::2]))
    scores = [
        macro_f1(way(one, categories, k), other) + macro_f1(way(other, categories, k), one)
        for k in STRENGTHS
    ]
    return way(curves(judged), categories, STRENGTHS[int(np.argmax(scores))])


def ours(judged: Judged, tags: list[Tag], seed: int) -> Floats:
    with tempfile.TemporaryDirectory() as folder:
        truth = prediction_store.StoreLabels(csr_array(judged.truth))
        everything = [(range(len(judged.logits)), judged.logits)]
        with prediction_store.write(Path(folder) / "logits", truth, everything) as part:
            rows = fit_thresholds.fit(part, tags, seed=seed)
    return logit([row.threshold for row in rows if row.name])


def compare(seen: Judged, unseen: Judged, tags: list[Tag], seed: int) -> dict[str, float]:
    random = np.random.default_rng(seed)
    categories = np.array([tag.category for tag in tags])
    found, truth = curves(seen), curves(unseen)
    limits = {
        "its own": best(found.f1),
        "its category's": each_category(found, categories, common),
        "one for the category, best mean": each_category(found, categories, typical),
        "leaning on the category's": chosen(leaning(common), seen, categories, random),
        "pseudo-counts": chosen(pseudo_counts, seen, categories, random),
        "mixed curves of F1": chosen(mixed_curves, seen, categories, random),
        "empirical Bayes": empirical_bayes(found, categories),
        "leaning on the best mean: ours": ours(seen, tags, seed),
        "(best on the unseen themselves)": best(truth.f1),
    }
    return {name: macro_f1(values, truth) for name, values in limits.items()}


def demonstration() -> tuple[Judged, list[Tag]]:
    """Draw pictures anew, and let the demonstration model predict them."""
    model = ROOT / "models/tagger"
    tags = vocabulary.read(model / "vocabulary.csv")
    column = {tag.name: number for number, tag in enumerate(tags)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "demo"
        draw.draw_images(folder, images=PICTURES, size=128, seed=FRESH)
        files = sorted(folder.glob("*.png"))
        truth = np.zeros((len(files), len(tags)), np.bool_)
        for row, file in enumerate(files):
            names = file.with_suffix(".txt").read_text(encoding="utf-8").split(",")
            truth[row, [column[name.strip()] for name in names if name.strip() in column]] = True
        part = Split(
            [Location(str(file), 0, file.stat().st_size) for file in files], csr_array(truth)
        )
        prepared = preprocess.read(model / "preprocess.json")
        pictures, order = ImageDataset(part, prepared), ResumableBatchSampler(len(part), 64)
        batches = loader.build_loader(pictures, order, workers=0)
        runtime = TorchRuntime(backbone.load_model(model), prepared)
        found = predict.predict_labelled(runtime, batches, len(tags))
    return Judged(finite_logit(found.scores), found.truth), tags


def simulated(seed: int, bias: float) -> tuple[Judged, Judged, list[Tag]]:
    """Draw two parts that a model predicts with calibrated logits, off by a bias for each tag."""
    random = np.random.default_rng(seed)
    rates = np.concatenate([0.3 / np.arange(1, 201) ** 0.9, 0.02 / np.arange(1, 101) ** 0.6])
    parting, off = random.uniform(1, 4, len(rates)), random.normal(0, bias, len(rates))
    parts = []
    for pictures in (3000, 30_000):
        truth = random.random((pictures, len(rates))) < rates
        logits = parting * (random.standard_normal(truth.shape) + parting * truth)
        logits += np.log(rates / (1 - rates)) - parting**2 / 2 + off
        parts.append(Judged(logits, truth))
    tags = [Tag(n, f"tag_{n}", 0 if n < 200 else 4, 300 - n) for n in range(len(rates))]
    return parts[0], parts[1], tags


def cases(seeds: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    judged, tags = demonstration()
    for count in (100, 300, 1000):
        rows = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(judged.logits))
            parts = judged.rows(order[:count]), judged.rows(order[count:])
            rows.append(compare(*parts, tags, seed))
        yield f"demonstration, {count} pictures seen", rows
    for bias in (0.3, 1.0):
        rows = [compare(*simulated(seed, bias), seed) for seed in range(max(2, seeds // 4))]
        yield f"simulated, biased by {bias}", rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    for name, rows in cases(parser.parse_args().seeds):
        print(f"{name}, {len(rows)} seeds")
        own = np.array([row["its own"] for row in rows])
        for way in rows[0]:
            gains = np.array([row[way] for row in rows]) - own
            error = 1.96 * gains.std(ddof=1) / len(rows) ** 0.5
            print(f"{'':4}{way:32} {(own + gains).mean():.4f}  {gains.mean():+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
