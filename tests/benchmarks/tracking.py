"""Measure what tracking costs a training.

python tests/benchmarks/tracking.py --minutes 5.2

A training tracks what that of the default preset does: the judgements of metrics/train.csv with
their sheets of pictures, both checkpoints, its files. Needs what `dvc repro` leaves.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
from training_step import ROOT, target

from tagger import params
from tagger.core import files
from tagger.images import contact_sheet, dataset, decode
from tagger.training import setup

SAMPLING_SECONDS = 10  # MLflow takes a sample of the system metrics so often
_SHARE = 0.01  # of the minutes of a training, at most


class Clock:
    """Seconds by name, added up."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0) + time.perf_counter() - begun


def training(folder: Path, minutes: float) -> dict[str, float]:
    """Return the seconds that a training spends on tracking, by what it does."""
    p, clock = params.load(ROOT / params.PATH), Clock()
    tables = [ROOT / "data" / f"{name}.parquet" for name in ("posts", "tags", "split")]
    known = ROOT / "data/vocabulary.csv"
    os.chdir(ROOT)  # the pictures are named from there
    tags, parts = dataset.read_splits(tables[0], tables[1], known, tables[2])
    part = parts["validation"]
    pictures = [decode.open_rgb(part.locations[row], (255, 255, 255)) for row in range(8)]
    scores = np.random.default_rng(0).random((8, len(tags)), np.float32)
    truth, names = part.labels[:8].toarray(), [tag.name for tag in tags]
    os.environ["DVC_ROOT"] = str(folder)
    with clock("import"):
        from tagger.tracking import runs
    with clock("connect"):
        opened = runs.start(p.model, preset=p.model, data="0123456789ab")
        run = opened.__enter__()
    with clock("parameters, data, packages"):
        run.log_params(setup.settings(p))
        counts = {"training": parts["train"].counts(), "validation": part.counts()}
        run.log_data("demo", "0123456789ab", tables[0], counts)
        run.log_machine()
    rows = files.read_csv(ROOT / "metrics/train.csv")
    for row in rows:
        figures = {key: float(value) for key, value in row.items()}
        step = int(figures["step"])
        with clock("figures"):
            run.log_metrics(figures | dict.fromkeys("abcd", 1.0), step=step)
        with clock("sheets drawn"):
            drawn = contact_sheet.prediction_sheet(pictures, scores, truth, names, columns=4)
        with clock("sheets"):
            run.log_image(drawn, "validation", step)
    with clock("checkpoints"):
        for file in ("model.safetensors", "last.safetensors"):
            path = ROOT / "models/tagger" / file
            run.log_checkpoint(path.stem, path, figures, step, files.sha256_file(path))
    kept = ("models/tagger/train.log", "metrics/train.csv", "metrics/train.json")
    with clock("files"):
        run.log_files(known, *(ROOT / name for name in kept))
    with clock("load of the machine"):
        seconds = _sample(str(run.id)) * minutes * 60 / SAMPLING_SECONDS
    clock.spent["load of the machine"] = seconds  # beside the training, not in its way
    with clock("end"):
        opened.__exit__(None, None, None)
    return clock.spent


def _sample(run_id: str) -> float:
    """Return the seconds of one look at the load, and of writing it down."""
    module: Any = import_module("mlflow.system_metrics.system_metrics_monitor")
    monitor = module.SystemMetricsMonitor(run_id)
    looks, writes = [], []
    for _ in range(10):
        begun = time.perf_counter()
        monitor.collect_metrics()
        monitor.mlflow_logger.client.get_run(run_id)
        looked = time.perf_counter()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
        looks.append(looked - begun)
        writes.append(time.perf_counter() - looked)
    return median(looks) + median(writes) / float(monitor.samples_before_logging)


def show_training(asked: argparse.Namespace) -> None:
    """Tell the seconds of each part, in a new store and in one that is there."""
    with tempfile.TemporaryDirectory() as folder:
        first = again(folder)
        rounds = [again(folder) for _ in range(asked.rounds)]
    took = {name: median(one[name] for one in rounds) for name in first}
    for name, seconds in took.items():
        print(f"{name:28} {seconds:6.2f} s   {seconds / asked.minutes / 60:.2%}")
    print(f"{'connect, in a new store':28} {first['connect']:6.2f} s, once for each project")
    share = sum(took.values()) / asked.minutes / 60
    calls = share - took["import"] / asked.minutes / 60
    print(f"without the import {calls:.2%} of {asked.minutes} minutes")
    target(f"in all {share:.2%} of {asked.minutes} minutes", share < _SHARE, f"{_SHARE:.0%}")


def again(folder: str) -> dict[str, float]:
    """Track a training in a fresh process; return the seconds of each part."""
    answer: dict[str, float] = measure.run(__file__, *sys.argv[1:], "--part", folder).answer
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.2, help="that the training takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part")
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(training(Path(asked.part), asked.minutes)))
    else:
        show_training(asked)


if __name__ == "__main__":
    main()
