"""What each part of the training recipe is worth, on the demonstration set.

    python tests/benchmarks/recipe.py [--seeds 0 1 2] [--only NAME ...]

Needs what `dvc repro` leaves in data/. Every variant is trained whole by the default preset, and
its best weights are judged on the test part; thresholds are fitted on validation.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from tagger import params
from tagger.core import thresholds
from tagger.core.thresholds import Aim
from tagger.evaluation import fit_thresholds, result
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.predictions import SplitPredictor
from tagger.images import dataset
from tagger.models import backbone
from tagger.models.torch_runtime import TorchRuntime
from tagger.params import Params
from tagger.system import distributed
from tagger.training import setup

ROOT = Path(__file__).parents[2]
PLAIN: dict[str, Any] = {"optimizer": "adamw", "ema": 0.0, "loss": {"kind": "bce"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"preset": {"learning_rate": 4e-3}},
    "muon": {"optimizer": "muon"},
}
# What is added to either of them.
ADDED: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.99},
    "one_cycle": {"schedule": "one_cycle"},
    "clip_grad_norm 1": {"clip_grad_norm": 1.0},
    "weight_decay .2": {"weight_decay": 0.2},
    "drop_path .1": {"preset": {"drop_path": 0.1}},
    "log_count": {"loss": {"tag_weights": "log_count"}},
    "smoothing .05": {"loss": {"smoothing": 0.05}},
    "asymmetric": {"loss": {"kind": "asymmetric"}},
    "focal": {"loss": {"kind": "focal"}},
    "two_way": {"loss": {"kind": "two_way"}},
    "mixup .2": {"augment": {"mixup": 0.2}},
    "cutmix 1": {"augment": {"cutmix": 1.0}},
    "cutout .3": {"augment": {"cutout": 0.3}},
    "random_resize": {"augment": {"random_resize": True}},
    "min_crop .5": {"augment": {"min_crop": 0.5}},
    "query head": {"head": "query"},
}
VARIANTS |= {f"plain, {name}": params.merge(VARIANTS["plain"], own) for name, own in ADDED.items()}
VARIANTS |= {f"muon, {name}": params.merge(VARIANTS["muon"], own) for name, own in ADDED.items()}


def changed(p: Params, seed: int, wanted: dict[str, Any]) -> Params:
    """Return the parameters of a variant: the plain recipe, and what is `wanted` besides."""
    own = {k: v for k, v in wanted.items() if k != "preset"}
    both = params.merge(PLAIN, own)
    both |= {"validate_every": f"{p.train.epochs} epochs"}
    preset = p.preset.model_copy(update=wanted.get("preset", {}) | {"train": both})
    return p.model_copy(update={"seed": seed, "models": {p.model: preset}})


def train(p: Params) -> dict[str, float]:
    """Return the figures of one training on the test part."""
    data = ROOT / "data"
    tags, parts = dataset.read_splits(
        data / "posts.parquet",
        data / "tags.parquet",
        data / "vocabulary.csv",
        data / "split.parquet",
    )
    with tempfile.TemporaryDirectory() as folder, distributed.process_group() as group:
        training = setup.build_trainer(p, tags, parts, group, Path(folder))
        for judgement in training.train():
            weights = judgement.weights
        model = backbone.to_device(
            backbone.build_model(p.preset, len(tags), p.effective_train.head)
        )
        model.load_state_dict(weights)
        runtime = TorchRuntime(model, training.preprocess)
        predictor = SplitPredictor(group, Path(folder), (), 64, p.effective_train.workers)

        def predicted(name: str) -> PredictionStore:
            found = predictor(name, parts[name], tags, runtime, training.preprocess)
            assert found is not None
            return found.store

        limits = thresholds.per_tag(
            fit_thresholds.fit(predicted("validation"), tags, Aim()), tags, "global"
        )
        return result.evaluate(predicted("test"), tags, limits, seed=0).metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=["plain", "muon"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    p = params.load(ROOT / params.PATH)
    shown = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")
    for seed in arguments.seeds:
        for name in arguments.only:
            figures = train(changed(p, seed, VARIANTS[name]))
            row = "  ".join(f"{figure} {figures[figure]:.4f}" for figure in shown)
            print(f"{name:20} seed {seed}  {row}", flush=True)


if __name__ == "__main__":
    main()
