"""Measure how fast a folder of small images is read, verified by header, and grouped.

python tests/benchmarks/prepare_images.py --images 100000 --rounds 3
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import measure
import numpy as np
from PIL import ExifTags, Image

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

import prepare
from tagger import params
from tagger.data import groups, ingest, verify
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon

_ROOT = Path(__file__).parents[2]
_SUFFIXES = (".png", ".jpg", ".webp")
_IN_FOLDER = 1_000
_TARGET = 3  # times as fast as the loop


def draw(folder: Path, count: int) -> None:
    """Draw images of 48 to 96 pixels with sidecars, a thousand to a folder."""
    random = np.random.default_rng(0)
    for number in range(count):
        side = int(random.integers(6, 13)) * 8
        blocks = random.integers(0, 255, (8, 8, 3), np.uint8)
        path = folder / f"{number // _IN_FOLDER:03d}" / f"{number:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"1girl, long_hair, tag_{number % 500}, smile, general")
        image = Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST)
        image.save(path.with_suffix(_SUFFIXES[number % len(_SUFFIXES)]))


def ours(folder: Path, parts: int | None) -> dict[str, float]:
    """Return the seconds of two steps: sidecars read, images verified and grouped."""
    below = sorted(folder.iterdir())[:parts]
    shipped = params.load(_ROOT / params.PATH).prepare
    chosen = {"path": below[0], "more_folders": below[1:], "verify": "header"}
    p = shipped.model_copy(update=chosen)
    lexicon = Lexicon(rules.read())
    source = prepare.open_source(p)
    start = time.perf_counter()
    posts, _ = ingest.read_posts(source, lexicon, p.filters)
    read = time.perf_counter()
    posts, _ = verify.verify(posts, p)
    posts = groups.group(posts, p.groups)
    end = time.perf_counter()
    return {"posts": len(posts), "sidecars": read - start, "images": end - read}


def loop(folder: Path, parts: int | None) -> dict[str, float]:
    """Return the seconds in which Pillow tells the same of each image, one after the other."""
    start = time.perf_counter()
    first: dict[bytes, int] = {}
    facts: list[tuple[tuple[int, int], bool, int]] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES):
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            size = image.size[::-1] if turned else image.size
            moves = getattr(image, "is_animated", False)
        content = hashlib.sha256(path.read_bytes()).digest()
        facts.append((size, moves, first.setdefault(content, len(facts))))
    return {"posts": len(facts), "images": time.perf_counter() - start}


PARTS: dict[str, Callable[[Path, int | None], dict[str, float]]] = {"ours": ours, "loop": loop}


def compare(folder: Path, rounds: int) -> None:
    """Run pairs in turn and print them, the median of their ratios last."""
    print("  loop, s   ours, s   with sidecars, s   ours, GB   loop / ours   with sidecars")
    ratios = []
    for _ in range(rounds):
        plain = measure.run(__file__, "--part", "loop", folder).answer
        mine = measure.run(__file__, "--part", "ours", folder)
        assert plain["posts"] == mine.answer["posts"]
        alone, whole = mine.answer["images"], sum(mine.answer.values()) - mine.answer["posts"]
        ratios.append((plain["images"] / alone, plain["images"] / whole))
        line = f"{plain['images']:9.2f} {alone:9.2f} {whole:18.2f} {mine.peak:10.2f}"
        print(f"{line} {ratios[-1][0]:13.2f} {ratios[-1][1]:15.2f}")
    alone, whole = (median(column) for column in zip(*ratios, strict=True))
    print(f"median{alone:57.2f} {whole:15.2f}")
    print(f"target: {_TARGET} times the loop: {'met' if alone >= _TARGET else 'MISSED'}\n")


def show_memory(folder: Path) -> None:
    """Print the peak for a quarter of the folder, for half and for all of it."""
    parts = len(list(folder.iterdir()))
    for part_count in (parts // 4, parts // 2, parts):
        mine = measure.run(__file__, "--part", "ours", folder, "--of", part_count)
        print(f"{mine.answer['posts']:9,} images: {mine.peak:5.2f} GB with all processes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where images are kept for the next time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", nargs=2, metavar=("PART", "FOLDER"))
    parser.add_argument("--of", type=int, metavar="FOLDERS")
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(PARTS[asked.part[0]](Path(asked.part[1]), asked.of)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary, "images")
        if not folder.exists():
            draw(folder, asked.images)
        compare(folder, asked.rounds)
        show_memory(folder)


if __name__ == "__main__":
    main()
