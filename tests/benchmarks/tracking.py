"""Measure what tracking costs a training.

python tests/benchmarks/tracking.py --minutes 5.2

It logs what a training of the default preset logs: the validations of metrics/train.csv with their
contact sheets, both checkpoints, its files. Run `dvc repro` first.
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
_MAX_FRACTION = 0.01  # of the minutes of a training


class Stopwatch:
    """Sums seconds by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0) + time.perf_counter() - started


def training(folder: Path, minutes: float) -> dict[str, float]:
    """Return the seconds that a training spends on tracking, by action."""
    p, clock = params.load(ROOT / params.PATH), Stopwatch()
    tables = [ROOT / "data" / f"{name}.parquet" for name in ("posts", "tags", "split")]
    vocabulary = ROOT / "data/vocabulary.csv"
    os.chdir(ROOT)  # paths of images are relative to it
    tags, splits = dataset.read_splits(tables[0], tables[1], vocabulary, tables[2])
    validation = splits["validation"]
    images = [decode.open_rgb(validation.locations[row], (255, 255, 255)) for row in range(8)]
    scores = np.random.default_rng(0).random((8, len(tags)), np.float32)
    truth, names = validation.labels[:8].toarray(), [tag.name for tag in tags]
    os.environ["DVC_ROOT"] = str(folder)
    with clock("import"):
        from tagger.tracking import runs
    with clock("connect"):
        context = runs.start(p.model, preset=p.model, data="0123456789ab")
        run = context.__enter__()
    with clock("parameters, data, packages"):
        run.log_params(setup.settings(p))
        counts = {"training": splits["train"].counts(), "validation": validation.counts()}
        run.log_data("demo", "0123456789ab", tables[0], counts)
        run.log_machine()
    rows = files.read_csv(ROOT / "metrics/train.csv")
    for row in rows:
        metrics = {key: float(value) for key, value in row.items()}
        step = int(metrics["step"])
        with clock("metrics"):
            run.log_metrics(metrics | dict.fromkeys("abcd", 1.0), step=step)
        with clock("contact sheets drawn"):
            sheet = contact_sheet.prediction_sheet(images, scores, truth, names, columns=4)
        with clock("contact sheets"):
            run.log_image(sheet, "validation", step)
    with clock("checkpoints"):
        for file in ("model.safetensors", "last.safetensors"):
            path = ROOT / "models/tagger" / file
            run.log_checkpoint(path.stem, path, metrics, step, files.sha256_file(path))
    names_of_files = ("models/tagger/train.log", "metrics/train.csv", "metrics/train.json")
    with clock("files"):
        run.log_files(vocabulary, *(ROOT / name for name in names_of_files))
    with clock("system metrics"):
        seconds = _sample(str(run.id)) * minutes * 60 / SAMPLING_SECONDS
    clock.spent["system metrics"] = seconds  # in a thread of its own
    with clock("end"):
        context.__exit__(None, None, None)
    return clock.spent


def _sample(run_id: str) -> float:
    """Return the seconds of one sample of the system metrics, logging included."""
    module: Any = import_module("mlflow.system_metrics.system_metrics_monitor")
    monitor = module.SystemMetricsMonitor(run_id)
    samples, writes = [], []
    for _ in range(10):
        started = time.perf_counter()
        monitor.collect_metrics()
        monitor.mlflow_logger.client.get_run(run_id)
        sampled = time.perf_counter()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
        samples.append(sampled - started)
        writes.append(time.perf_counter() - sampled)
    return median(samples) + median(writes) / float(monitor.samples_before_logging)


def print_training(args: argparse.Namespace) -> None:
    """Print the seconds of each action, in a new store and in an existing one."""
    with tempfile.TemporaryDirectory() as folder:
        first = again(folder)
        rounds = [again(folder) for _ in range(args.rounds)]
    took = {name: median(round_[name] for round_ in rounds) for name in first}
    for name, seconds in took.items():
        print(f"{name:28} {seconds:6.2f} s   {seconds / args.minutes / 60:.2%}")
    print(f"{'connect, in a new store':28} {first['connect']:6.2f} s, once for each project")
    fraction = sum(took.values()) / args.minutes / 60
    calls = fraction - took["import"] / args.minutes / 60
    print(f"without the import {calls:.2%} of {args.minutes} minutes")
    target(
        f"in all {fraction:.2%} of {args.minutes} minutes",
        fraction < _MAX_FRACTION,
        f"{_MAX_FRACTION:.0%}",
    )


def again(folder: str) -> dict[str, float]:
    """Track a training in a fresh process; return the seconds of each part."""
    answer: dict[str, float] = measure.run(__file__, *sys.argv[1:], "--part", folder).answer
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.2, help="that the training takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(training(Path(args.part), args.minutes)))
    else:
        print_training(args)


if __name__ == "__main__":
    main()
