"""Measure what a training spends beside its steps: on data, on snapshots, on labels in memory.

python tests/benchmarks/training_cost.py --folder /tmp/training
python tests/benchmarks/training_cost.py --only data --model eva02_large --batch 64 --compile

Snapshots are written while the default preset takes steps: what those lose is part of the cost.
Labels are read from tables as the stages write them, by a loader with no pictures to decode.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import measure
import numpy as np
import pyarrow as pa
import training_step
from training_step import PER_POST, ROOT, Step, named_tags, requested_params, target

from tagger.core import files, manifest, vocabulary
from tagger.images import dataset, decode, loader
from tagger.images.loader import Batch
from tagger.images.preprocess import Preprocess
from tagger.training import setup, snapshots
from tagger.training.schedule import Position
from tagger.training.train_state import TrainState
from tagger.training.trainer import Trainer
from tagger.training.validation import Validation

# isort: split
import torch

MODELS = ("mobilenetv4", "eva02_large")  # presets: the default, and one of 300 million weights
TABLES = ("posts.parquet", "tags.parquet", "vocabulary.csv", "split.parquet")
_FEW, _AT_A_TIME, _BATCH = 10_000, 1_000_000, 256  # posts
Save = Callable[[snapshots.SnapshotContent], None]
_WRITING = ((torch, "save"), (os, "fsync"), (files, "sha256_file"), (snapshots, "write"))


def drawn(count: int, tags: int) -> pa.ListArray:
    """Return the tags of so many posts, all with the same chance."""
    numbers = np.random.default_rng(0).integers(0, tags, (count, PER_POST), np.int32)
    starts = np.arange(count + 1, dtype=np.int32) * PER_POST
    return pa.ListArray.from_arrays(starts, np.sort(numbers).ravel())


class Rounds:
    """Measures the step by itself after each validation, and ends the training after some."""

    def __init__(self, trainer: Trainer, batch: Batch, asked: argparse.Namespace) -> None:
        self.trainer = trainer
        self.batch = batch
        self.asked = asked
        self.rates: list[list[float]] = []

    def log_validation(self, validation: Validation) -> None:
        position, asked = self.trainer.position, self.asked
        self.trainer.state.model.train()
        step = training_step.own_step(self.trainer, self.batch)
        reached = position.step
        seconds = training_step.seconds(step, reached, asked.steps, asked.device)
        position.step = reached
        rate, waiting = (
            validation.throughput[name] for name in ("images_per_second", "waiting_for_data")
        )
        self.rates.append([rate, len(self.batch.rows) / seconds, waiting])
        if len(self.rates) > asked.rounds:
            raise KeyboardInterrupt


def whole(asked: argparse.Namespace) -> list[list[float]]:
    """Return, per round, images a second of training and of its step alone, and its waiting."""
    every = f"{asked.steps} steps"
    p = requested_params(asked, asked.model, validate_every=every, epochs=1_000_000)
    paths = [path for path in asked.pictures.rglob("*") if path.suffix.lower() in decode.SUFFIXES]
    rows = [{"file": str(path), "offset": 0, "size": path.stat().st_size} for path in paths]
    locations = manifest.Locations(pa.Table.from_pylist(rows, manifest.POSTS_SCHEMA))
    labels = manifest.labels_from_lists(drawn(len(rows), asked.tags), asked.tags)
    split = dataset.Split(locations, labels)
    splits = {"train": split, "validation": split.head(2 * p.preset.batch_size)}
    batch = training_step.noise_batch(p, asked.tags, asked.device)
    with tempfile.TemporaryDirectory() as folder:
        tags, group = named_tags(asked.tags), training_step.single_process(asked.device)
        trainer = setup.build_trainer(p, tags, splits, group, Path(folder))
        rounds = Rounds(trainer, batch, asked)
        with suppress(KeyboardInterrupt):
            trainer.train(rounds)
        trainer.snapshots.wait()
    return rounds.rates[1:]


def written(asked: argparse.Namespace) -> list[dict[str, float]]:
    """Return the seconds of each part of a snapshot, time after time."""
    asked.size = asked.batch = None
    small = requested_params(asked, MODELS[0])
    large = requested_params(asked, asked.model, ema=training_step.DECAY)
    batch = training_step.noise_batch(small, asked.tags, asked.device)
    trainer = training_step.build_trainer(small, asked.tags, asked.device)
    step = training_step.own_step(trainer, batch)
    state = training_step.build_trainer(large, asked.tags, asked.device).state
    for weights in state.model.parameters():
        moments = {name: torch.rand_like(weights) for name in ("exp_avg", "exp_avg_sq")}
        state.optimizer.state[weights] = {"step": torch.ones(()), **moments}
    rounds = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        saved = snapshots.Snapshots(Path(folder))
        for number in range(asked.rounds):
            usual = training_step.seconds(step, 1, asked.steps, asked.device)
            rounds.append(_snapshot(state, partial(saved.save, number), step, usual))
            saved.wait()
    return rounds


def _snapshot(state: TrainState, save: Save, step: Step, usual: float) -> dict[str, float]:
    """Return the seconds of a snapshot; `slowed` is what steps lose while it is written."""
    begun = time.perf_counter()
    content = {"state": state.state_dict(), "position": asdict(Position())}
    copied = time.perf_counter()
    with _watched() as spent:
        save(content)
        del content
        saved, steps = time.perf_counter(), 0
        while "write" not in spent:
            step(1)
            steps += 1
        slowed = time.perf_counter() - saved - steps * usual
    return spent | {"copy": copied - begun, "wait": saved - copied, "slowed": slowed}


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Yield the seconds spent in each part of writing, as they come."""
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        spent[name] = time.perf_counter() - start
        return result

    with ExitStack() as patches:
        for owner, name in _WRITING:
            timing = partial(timed, name, getattr(owner, name))
            patches.enter_context(patch.object(owner, name, timing))
        yield spent


def draw(folder: Path, count: int, tags: int) -> None:
    """Write the tables of so many posts, nearly all of them to be learned from."""
    tables = []
    for first in range(0, count, _AT_A_TIME):
        rows = np.arange(first, min(count, first + _AT_A_TIME))
        columns = {
            "id": pa.array(rows).cast(pa.string()),
            "file": [f"{row % 1000:04d}/{row}.webp" for row in rows.tolist()],
            "shard": [f"data/shards/{row % 1000:04d}.tar" for row in rows.tolist()],
            **dict.fromkeys(("offset", "size", "group"), rows),
            "tags": drawn(len(rows), tags),
        }
        left = {
            name: pa.nulls(len(rows)) for name in manifest.POSTS_SCHEMA.names if name not in columns
        }
        tables.append(
            pa.table(columns | left).select(manifest.POSTS_SCHEMA.names).cast(manifest.POSTS_SCHEMA)
        )
    manifest.write_posts(table := pa.concat_tables(tables), folder / TABLES[0])
    manifest.write_tags(named_tags(tags), folder / TABLES[1])
    vocabulary.write(named_tags(tags), folder / TABLES[2])
    parts = np.clip(np.arange(count) % 100 - 97, 0, 2).astype(np.int8)  # 98, 1 and 1 in 100
    manifest.write_split(table["id"], parts, folder / TABLES[3])


def held(folder: Path, batches: int, workers: int) -> dict[str, float]:
    """Return the memory of all processes in GB while labels are read, and two waits in seconds."""
    begun = time.perf_counter()
    part = dataset.read_splits(*(folder / name for name in TABLES))[1]["train"]
    read = time.perf_counter()
    order = loader.ResumableBatchSampler(len(part), _BATCH, 0, drop_last=True)
    next(iter(order))
    ordered = time.perf_counter()
    order.batch_numbers = range(batches)
    pictures = dataset.ImageDataset(part, Preprocess(4, (0.5,) * 3, (0.5,) * 3))
    with patch.object(decode, "open_pixels", lambda *_: np.zeros((4, 4, 3), np.uint8)):
        most = max(
            sum(map(measure._proportional, measure._family(os.getpid())))
            for number, _ in enumerate(loader.build_loader(pictures, order, workers=workers))
            if number % 250 == 0
        )
    return {"GB": most / 1e9, "read": read - begun, "order": ordered - read}


def show_whole(asked: argparse.Namespace) -> None:
    shares = []
    for rate, alone, waiting in again("whole").answer:
        shares.append(rate / alone)
        comparison = (
            f"its step alone {alone:7.1f}/s   {shares[-1]:5.2f}   {waiting:.1%} waiting for data"
        )
        print(f"training {rate:7.1f}/s   {comparison}")
    share = median(shares)
    target(f"{asked.model}: median {share:.2f} times the step alone", share >= 0.9, "0.9")


def show_snapshots(model: str) -> None:
    run = again("written", "--model", model)
    took = {name: median(snapshot[name] for snapshot in run.answer) for name in run.answer[0]}
    blocked = took["copy"] + took["wait"] + max(0.0, took["write"] - 60)
    parts = ", ".join(f"{name} {took[name]:.3f}" for name in ("save", "fsync", "sha256_file"))
    print(f"{model}: {run.peak:.1f} GB of memory, training stops for {blocked:.3f} s", end="")
    print(f" and loses {took['slowed']:.3f} s to the writer", end="")
    print(f", which takes {took['write']:.3f} s: {parts}")
    share = (blocked + max(0.0, took["slowed"])) / 60
    target(f"{model}: {share:.2%} of a minute", share < 0.02, "2 %")


def show_labels(asked: argparse.Namespace) -> None:
    for count in (_FEW, asked.posts):
        if not (asked.folder and (asked.folder / f"{count}x{asked.labels}").exists()):
            again("drawn", "--posts", count)
    few, many = (again("held", "--posts", count) for count in (_FEW, asked.posts))
    more = many.answer["GB"] - few.answer["GB"]
    print(f"{asked.posts:,} posts are read in {many.answer['read']:.1f} s", end="")
    print(f", {many.peak - few.peak:.2f} GB at the peak", end="")
    print(f"; the first batch of an epoch takes {many.answer['order']:.2f} s")
    target(f"{more:.2f} GB of labels and places, all processes together", more < 2, "2 GB")


def again(part: str, *more: object) -> measure.Run:
    """Run a part in a fresh process, with what this one is asked."""
    return measure.run(__file__, *sys.argv[1:], "--part", part, *more)


def main() -> None:
    parser = training_step.options()
    parser.description = __doc__
    parser.add_argument("--pictures", type=Path, default=ROOT / "data/demo", help="to train on")
    parser.add_argument("--posts", type=int, default=8_000_000)
    parser.add_argument("--labels", type=int, default=10_000, help="tags of those posts")
    parser.add_argument("--batches", type=int, default=4_000, help="of those posts")
    parser.add_argument("--workers", type=int, default=4, help="that read those posts")
    parser.add_argument("--folder", type=Path, help="where those posts are kept")
    parser.add_argument("--only", choices=["data", "snapshots", "labels"])
    parser.add_argument("--part")
    asked = parser.parse_args()
    if asked.part:
        decode.init_process()
        tables = asked.folder / f"{asked.posts}x{asked.labels}"
        parts: dict[str, Callable[[], Any]] = {
            "whole": partial(whole, asked),
            "written": partial(written, asked),
            "drawn": partial(draw, tables, asked.posts, asked.labels),
            "held": partial(held, tables, asked.batches, asked.workers),
        }
        print(json.dumps(parts[asked.part]()))
        return
    with tempfile.TemporaryDirectory() as temporary:
        sys.argv += [] if asked.folder else ["--folder", temporary]
        (asked.folder or Path(temporary)).mkdir(parents=True, exist_ok=True)
        if asked.only in (None, "data"):
            show_whole(asked)
        for model in MODELS if asked.only in (None, "snapshots") else ():
            show_snapshots(model)
        if asked.only in (None, "labels"):
            show_labels(asked)


if __name__ == "__main__":
    main()
