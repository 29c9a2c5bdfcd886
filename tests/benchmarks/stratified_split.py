"""Measure `tagger.split.stratified` beside scikit-multilearn and iterative-stratification.

python tests/benchmarks/stratified_split.py --beside 20000x1000x20 50000x2000x30 \
    --alone 1000000x10000x30 8000000x10000x30
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

from tagger.split import balance, methods

FRACTIONS = (0.8, 0.1, 0.1)
_POSTS = 200_000  # drawn at a time
_TIMES = 7  # that ours is run on fewer than so many posts
_LARGE = 1_000_000
_FASTER = {"scikit-multilearn": 500, "iterative-stratification": 200}  # at 20,000 posts
_LIMITS = {1_000_000: (6, None), 8_000_000: (60, 5)}  # seconds, GB beyond the labels

Splits = methods.SplitIndices


def draw(path: Path, posts: int, tags: int, per_post: int) -> None:
    """Write so many tags for each post, drawn by Zipf's law, each at most once."""
    random = np.random.default_rng(0)
    edges = np.cumsum(1 / np.arange(1, tags + 1)).astype(np.float32)
    starts, indices = [np.zeros(1, np.int64)], []
    for first in range(0, posts, _POSTS):
        size = (min(_POSTS, posts - first), 2 * per_post)
        drawn = np.searchsorted(edges / edges[-1], random.random(size, np.float32)).astype(np.int32)
        order = np.argsort(drawn, axis=1, kind="stable")
        ranked = np.take_along_axis(drawn, order, axis=1)
        fresh = np.ones(size, dtype=np.bool_)
        np.put_along_axis(fresh[:, :], order[:, 1:], ranked[:, 1:] != ranked[:, :-1], axis=1)
        fresh &= np.cumsum(fresh, axis=1, dtype=np.int32) <= per_post
        indices.append(np.minimum(drawn[fresh], tags - 1))
        starts.append(starts[-1][-1] + np.cumsum(fresh.sum(axis=1)))
    np.savez(path, starts=np.concatenate(starts), tags=np.concatenate(indices), shape=(posts, tags))


def load(path: Path) -> csr_array:
    """Return the labels drawn, boolean (posts, tags)."""
    with np.load(path) as drawn:
        true = np.ones(len(drawn["tags"]), dtype=np.bool_)
        labels = csr_array((true, drawn["tags"], drawn["starts"]), shape=tuple(drawn["shape"]))
    labels.sort_indices()
    return labels


def ours(labels: csr_array) -> Splits:
    return methods.stratified(labels, FRACTIONS)


def scikit_multilearn(labels: csr_array) -> Splits:
    return methods.iterative(labels, FRACTIONS)


def iterative_stratification(labels: csr_array) -> Splits:
    """Split in two, and the smaller split in two again: the peer makes no more."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit as Peer

    dense = labels.toarray().astype(int)
    splits = np.zeros(len(dense), dtype=np.int8)
    _, rest = next(Peer(n_splits=1, test_size=0.2, random_state=0).split(dense, dense))
    halves = Peer(n_splits=1, test_size=0.5, random_state=0).split(dense[rest], dense[rest])
    for split, members in enumerate(next(halves), start=1):
        splits[rest[members]] = split
    return splits


PEERS: dict[str, Callable[[csr_array], Splits]] = {
    "ours": ours,
    "scikit-multilearn": scikit_multilearn,
    "iterative-stratification": iterative_stratification,
}


def run(name: str, path: Path) -> dict[str, Any]:
    """Run a method: its seconds, memory beyond the labels, and how balanced its splits are."""
    warnings.simplefilter("ignore")  # of old code about SciPy
    labels = load(path)
    before = _resident()
    seconds: list[float] = []
    times = _TIMES if name == "ours" and labels.shape[0] < _LARGE else 1
    while len(seconds) < times:
        start = time.perf_counter()
        splits = PEERS[name](labels)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = balance.measure(splits, labels, FRACTIONS)
    return {
        "first": seconds[0],
        "seconds": median(seconds[1:] or seconds),
        "gigabytes": (peak - before) / 1e9,
        "deviation": float(measured.deviations.mean()),
        "missing": int((measured.counts[:, measured.totals >= len(FRACTIONS)] == 0).sum()),
        "size": float(np.abs(measured.sizes / measured.sizes.sum() - FRACTIONS).max()),
        "labels": int(labels.nnz),
    }


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[1]) * resource.getpagesize()


def show(name: str, run: dict[str, Any], ratio: float | None) -> None:
    line = f"{name:26} {run['first']:8.3f} {run['seconds']:9.4f} {run['gigabytes']:6.2f}"
    quality = f"{run['deviation']:10.5f} {run['missing']:8} {run['size']:9.4%}"
    print(f"{line} {quality} {'' if ratio is None else f'{ratio:11,.0f}'}", flush=True)


def compare(path: Path, posts: int) -> None:
    """Print ours beside the peers on the same labels, and whether the targets are met."""
    ours_ = measure.run(__file__, "--part", "ours", path).answer
    show("ours", ours_, None)
    for name, factor in _FASTER.items():
        peer = measure.run(__file__, "--part", name, path).answer
        ratio = peer["seconds"] / ours_["seconds"]
        show(name, peer, ratio)
        evener = all(ours_[key] <= peer[key] for key in ("deviation", "missing", "size"))
        speed = f"{factor} times as fast: {_met(ratio >= factor)}, " if posts == 20_000 else ""
        print(f"{'':4}target: {speed}no less balanced: {_met(evener)}")


def alone(path: Path, posts: int) -> None:
    """Print ours at a size that the peers do not reach."""
    ours_ = measure.run(__file__, "--part", "ours", path).answer
    show("ours", ours_, None)
    seconds, gigabytes = _LIMITS.get(posts, (None, None))
    if seconds is not None:
        print(f"{'':4}target: {seconds} s: {_met(ours_['first'] <= seconds)}")
    if gigabytes is not None:
        met = _met(ours_["gigabytes"] <= gigabytes)
        print(f"{'':4}target: {gigabytes} GB beyond the labels: {met}")


def _met(holds: bool) -> str:
    return "met" if holds else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", nargs="*", default=[], metavar="POSTSxTAGSxPER_POST")
    parser.add_argument("--alone", nargs="*", default=[], metavar="POSTSxTAGSxPER_POST")
    parser.add_argument("--folder", type=Path, help="where labels are kept for the next time")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"))
    args = parser.parse_args()
    if args.part:
        print(json.dumps(run(args.part[0], Path(args.part[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for size in (*args.beside, *args.alone):
            path = folder / f"{size}.npz"
            posts, tags, per_post = map(int, size.split("x"))
            if not path.exists():
                draw(path, posts, tags, per_post)
            print(f"{posts:,} posts x {tags:,} tags, {per_post} a post")
            print(f"{'':26} first, s   next, s     GB  deviation  missing  size off  times as fast")
            (compare if size in args.beside else alone)(path, posts)


if __name__ == "__main__":
    main()
