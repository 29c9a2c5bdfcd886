"""Measure a run and its readers in a store with many runs, beside a store with hardly any.

python tests/benchmarks/many_runs.py --runs 500

All runs are copies of one, as a training of the default preset and its judging leave it: some 60
parameters, and 200 figures at 12 steps.
"""

import argparse
import json
import os
import random
import socket
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, Popen
from typing import Any

import httpx2
import measure
from training_step import ROOT, target

from tagger import params
from tagger.training import setup
from tracking import Stopwatch

_SLOWER = 2.0  # times as long as in a store with hardly any, at most
_STEPS, _FIGURES = 12, 200  # of a run
_SETTLING = 20.0  # seconds, in which a server that answers still starts what runs beside it
_UI = ("ajax-api/2.0/mlflow/experiments/search", "ajax-api/2.0/mlflow/runs/search")
_OWNED = ("run_uuid", "run_id", "source_run_id", "source_id", "destination_id", "model_id")
_MODELS = ("logged_models", "logged_model_metrics", "logged_model_tags", "logged_model_params")
_TABLES = ("runs", "params", "tags", "metrics", "latest_metrics", *_MODELS, "inputs")


def fill(folder: Path, count: int) -> None:
    """Make a store with one run as a training and its judging leave it, and copies of it."""
    from tagger.tracking import runs

    os.environ["DVC_ROOT"] = str(folder)
    settings = setup.settings(params.load(ROOT / params.PATH))
    figures = {f"figure_{number}": 0.5 for number in range(_FIGURES)}
    with runs.start("first", preset="vit", data="0123456789ab") as run:
        run.log_params(settings)
        for step in range(_STEPS):
            run.log_metrics(figures, step=step)
        run.log_metrics({"test": {"macro_ap": 0.5}})
        for name in ("best", "last"):
            run.log_checkpoint(name, Path(name), {"figure_0": 0.5}, _STEPS - 1)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table in _TABLES:
            _copy(database, table, str(run.id), count - 1)


def _copy(database: sqlite3.Connection, table: str, run: str, times: int) -> None:
    """Copy the rows of a run so many times, each for another run, with models of its own."""
    models = "select model_id from logged_models where source_run_id = ?"
    columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
    owned = [f"{name} = ? or {name} in ({models})" for name in _OWNED if name in columns]
    values = [run, run] * len(owned)
    rows = database.execute(f"select * from {table} where {' or '.join(owned)}", values).fetchall()
    spots = ", ".join("?" * len(columns))
    for number in range(times):
        changed = [
            [_renamed(name, value, number) for name, value in zip(columns, row, strict=True)]
            for row in rows
        ]
        database.executemany(f"insert into {table} values ({spots})", changed)


def _renamed(column: str, value: Any, number: int) -> Any:
    """Return what a copy has in a column: an identity of its own, and another figure."""
    if column in (*_OWNED, "input_uuid") and value:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{value} {number}").hex
    if column in ("value", "metric_value") and isinstance(value, float):
        return random.random()
    return value


def working(folder: Path) -> dict[str, float]:
    """Return the seconds of what a run and its reader do with a store."""
    from tagger.tracking import registry, runs, store

    os.environ["DVC_ROOT"] = str(folder)
    clock = Stopwatch()
    with clock("opening the store"):
        store.connect()
    import mlflow

    figures = {f"figure_{number}": 0.5 for number in range(_FIGURES)}
    with clock("starting a run"):
        context = runs.start("another", preset="vit", data="0123456789ab")
        run = context.__enter__()
    for step in range(_STEPS):
        with clock(f"{_STEPS} times 12 figures"):
            run.log_metrics(dict(list(figures.items())[:12]), step=step)
    with clock(f"{_FIGURES} figures"):
        run.log_metrics(figures, step=_STEPS)
    with clock("two checkpoints"):
        for name in ("best", "last"):
            run.log_checkpoint(name, Path(name), {"figure_0": 0.5}, _STEPS)
    with clock("figures of a checkpoint"):
        run.log_metrics({"test": {"macro_ap": 0.5}}, checkpoint="best")
    with clock("ending a run"):
        context.__exit__(None, None, None)
    with clock("best of all runs"):
        assert registry.best_run("test.macro_ap", "0123456789ab")
    with clock("search_runs, a table of all"):
        mlflow.search_runs()
    return clock.spent


def pages(folder: Path) -> dict[str, float]:
    """Return the seconds of what the first page of `mlflow ui` asks for."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), *store]
    with Popen(command, stdout=DEVNULL, stderr=DEVNULL) as server:
        try:
            return _asked(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


def _asked(address: str) -> dict[str, float]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            httpx2.get(f"{address}/health")
            time.sleep(_SETTLING)
            break
        except httpx2.TransportError:
            time.sleep(0.2)
    asked = {"order_by": ["attributes.start_time DESC"], "max_results": 100}
    bodies = ({"max_results": 100}, asked | {"experiment_ids": ["1"]})
    took: dict[str, list[float]] = {}
    for _ in range(6):
        for path, body in zip(_UI, bodies, strict=True):
            begun = time.perf_counter()
            httpx2.post(f"{address}/{path}", json=body, timeout=60).raise_for_status()
            took.setdefault(path, []).append(time.perf_counter() - begun)
    return {f"ui: {path.split('/', 2)[2]}": median(times[1:]) for path, times in took.items()}


def show_stores(asked: argparse.Namespace) -> None:
    """Tell the seconds in a store with one run, and in one with many, in turn."""
    took: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("few", "many")]
        for folder, count in zip(folders, (1, asked.runs), strict=True):
            folder.mkdir()
            again("fill", folder, "--runs", count)
        print(f"{asked.runs} runs: {(folders[1] / 'mlflow.db').stat().st_size / 1e6:,.0f} MB")
        for _ in range(asked.rounds):
            few, many = (
                again("working", store_folder) | again("pages", store_folder)
                for store_folder in folders
            )
            for name, seconds in few.items():
                took.setdefault(name, []).append((seconds, many[name]))
    for name, pairs in took.items():
        few, many = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(more / less for less, more in pairs)
        print(f"{name:28} {few:6.3f} s   {many:6.3f} s   {ratio:5.2f}")
    rows = zip(*(pairs for name, pairs in took.items() if _of_run(name)), strict=True)
    sums = [[sum(column) for column in zip(*row, strict=True)] for row in rows]
    longer = median(many / few for few, many in sums)
    result = f"a run takes {median(more - less for less, more in sums):.2f} s longer"
    target(f"{result}, {longer:.2f} times as long", longer <= _SLOWER, f"{_SLOWER}")


def _of_run(name: str) -> bool:
    return not name.startswith(("ui", "search", "best"))


def again(part: str, folder: Path, *more: object) -> dict[str, Any]:
    """Run a part in a fresh process."""
    answer: dict[str, Any] = measure.run(__file__, "--part", part, "--folder", folder, *more).answer
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if not asked.part:
        show_stores(asked)
        return
    parts: dict[str, Callable[[], Any]] = {
        "fill": partial(fill, asked.folder, asked.runs),
        "working": partial(working, asked.folder),
        "pages": partial(pages, asked.folder),
    }
    print(json.dumps(parts[asked.part]()))


if __name__ == "__main__":
    main()
