"""What each part of the training recipe is worth, on the demonstration set.

    python tests/benchmarks/recipe.py [--seeds 0 1 2] [--only NAME ...]

Needs what `dvc repro` leaves in data/. Every variant is trained whole by the default preset, and
its last weights are evaluated on the test split; thresholds are fitted on validation.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

from tagger import params
from tagger.core import thresholds
from tagger.evaluation import fit_thresholds, result
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.predictions import SplitPredictor
from tagger.images import dataset
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


def variant_params(seed: int, changes: dict[str, Any]) -> Params:
    """Return params.yaml with the plain recipe and the changes of a variant."""
    content = yaml.safe_load((ROOT / params.PATH).read_text(encoding="utf-8"))
    train = params.merge(PLAIN, {key: value for key, value in changes.items() if key != "preset"})
    train["validate_every"] = f"{content['train']['epochs']} epochs"
    preset = content["models"][content["model"]]
    preset |= changes.get("preset", {}) | {"train": train}
    return params.parse(content | {"seed": seed})


def train(p: Params) -> dict[str, float]:
    """Return the metrics of one training on the test split."""
    data = ROOT / "data"
    tags, splits = dataset.read_splits(
        data / "posts.parquet",
        data / "tags.parquet",
        data / "vocabulary.csv",
        data / "split.parquet",
    )
    with tempfile.TemporaryDirectory() as folder, distributed.process_group() as group:
        trainer = setup.build_trainer(p, tags, splits, group, Path(folder))
        trainer.train()
        runtime = TorchRuntime(trainer.state.eval_model, trainer.preprocess)
        predictor = SplitPredictor(group, Path(folder), (), 64, p.train.workers)

        def predicted(name: str) -> PredictionStore:
            predictions = predictor(name, splits[name], tags, runtime, trainer.preprocess)
            assert predictions is not None
            return predictions.store

        limits = thresholds.per_tag(
            fit_thresholds.fit(predicted("validation"), tags), tags, "global"
        )
        return result.evaluate(predicted("test"), tags, limits, seed=0).metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=["plain", "muon"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shown = ("macro_ap", "micro_ap", "macro_f1", "micro_f1")
    for seed in arguments.seeds:
        for name in arguments.only:
            figures = train(variant_params(seed, VARIANTS[name]))
            row = "  ".join(f"{figure} {figures[figure]:.4f}" for figure in shown)
            print(f"{name:20} seed {seed}  {row}", flush=True)


if __name__ == "__main__":
    main()
