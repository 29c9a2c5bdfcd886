"""Measure metadata -> manifest against counting the same tags by plain means.

python tests/benchmarks/prepare_metadata.py --posts 1000000 --posts 8000000
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import measure
import metadata
import pyarrow as pa
import pyarrow.parquet as pq

_ROOT = Path(__file__).parents[2]
_SIMPLE = 200_000  # posts, at most, for what is slow
_MILLION = 1_000_000


def ours(posts: Path, folder: Path) -> int:
    """Write the manifest; return how many posts it has. Pictures are not looked at."""
    import prepare
    from tagger import params
    from tagger.core import manifest
    from tagger.data import groups, ingest, rejected
    from tagger.data.tags import rules
    from tagger.data.tags.lexicon import Lexicon

    shipped = params.load(_ROOT / params.PATH).prepare
    filter_values = {
        "min_tags": 10,
        "min_score": 0,
        "excluded_tags": ["*_sword_9*"],
        "keep_deleted": False,
    }
    filters = shipped.filters.model_copy(update=filter_values)
    source = prepare.open_source(shipped.model_copy(update={"source": "danbooru", "path": posts}))
    lexicon = Lexicon(rules.read(folder / "rules"))
    table, unwanted = ingest.read_posts(source, lexicon, filters)
    table, duplicates = ingest.drop_duplicate_ids(table)
    table, tags = ingest.renumber(groups.group(table, shipped.groups), lexicon)
    manifest.write_posts(table, folder / "posts.parquet")
    manifest.write_tags(tags, folder / "tags.parquet")
    rejected_posts = pa.concat_tables([unwanted, duplicates])
    rejected.write(rejected_posts, folder / "rejected.csv")
    return len(table) + len(rejected_posts)


def iterrows(posts: Path, folder: Path) -> int:
    """Count the tags of each category in pandas, a row at a time."""
    batch = next(pq.ParquetFile(posts).iter_batches(_SIMPLE))
    counts = {f"tag_string_{category}": Counter[str]() for category in metadata.SIZES}
    for _, post in batch.to_pandas().iterrows():
        for column, counter in counts.items():
            counter.update(post[column].split())
    return len(batch)


def duckdb(posts: Path, folder: Path) -> int:
    tags = "SELECT unnest(string_split(tag_string, ' ')) AS tag FROM read_parquet(?)"
    query = f"SELECT tag, count(*) FROM ({tags}) GROUP BY tag"
    importlib.import_module("duckdb").execute(query, [str(posts)]).fetchall()
    return int(pq.ParquetFile(posts).metadata.num_rows)


def polars(posts: Path, folder: Path) -> int:
    frame = importlib.import_module("polars")
    tags = frame.scan_parquet(posts).select(frame.col("tag_string").str.split(" ").explode())
    tags.group_by("tag_string").len().collect(engine="streaming")
    return int(pq.ParquetFile(posts).metadata.num_rows)


PARTS: dict[str, Callable[[Path, Path], int]] = {
    part.__name__: part for part in (ours, duckdb, polars, iterrows)
}
MODULES = {"ours": "prepare", "iterrows": "pandas"}  # loaded before the clock starts


def compare(posts: int, folder: Path) -> tuple[float, float, dict[str, float]]:
    """Print a line for each part; return ours in seconds and GB, and its ratios to the others."""
    path = folder / f"{posts}.parquet"
    if not path.exists():
        metadata.write(path, posts)
    runs = {part: measure.run(__file__, "--part", part, path, folder) for part in PARTS}
    each = {part: run.answer["seconds"] / run.answer["posts"] for part, run in runs.items()}
    print(f"\n{posts:,} posts       seconds    µs a post   peak GB   time, ours = 1")
    for part, run in runs.items():
        seconds = f"{each[part] * posts:9.1f}{'*' if run.answer['posts'] < posts else ' '}"
        ratio = each[part] / each["ours"]
        print(f"{part:14} {seconds:>12} {each[part] * 1e6:12.1f} {run.peak:9.2f} {ratio:12.2f}")
    return each["ours"] * posts, runs["ours"].peak, {p: s / each["ours"] for p, s in each.items()}


def judge(sizes: list[int], folder: Path) -> None:
    measurements = {posts: compare(posts, folder) for posts in sizes}
    print(f"\n* from {_SIMPLE:,} posts; seconds without imports; memory with everything\n")
    most, least = max(sizes), min(sizes)
    seconds, peak, ratios = measurements[most]
    of_million = [measurements[size][0] / size * _MILLION for size in (least, most)]
    flat = of_million[1] <= 1.25 * of_million[0]
    plain = 1 / min(ratios["duckdb"], ratios["polars"])
    share = most / (8 * _MILLION)
    for target, value, met in (
        ("8 million posts: 120 s", f"{seconds / share:.0f} s", seconds <= 120 * share),
        ("8 million posts: 6 GB", f"{peak:.2f} GB of {most:,}", peak <= 6),
        ("time per million flat", "{:.1f} -> {:.1f} s".format(*of_million), flat),
        ("iterrows: 8 times ours", f"{ratios['iterrows']:.1f}", ratios["iterrows"] >= 8),
        ("ours: 6 plain counts", f"{plain:.1f}", plain <= 6),
    ):
        print(f"{target:24} {value:>22}   {'met' if met else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, action="append", help="again for further sizes")
    parser.add_argument("--folder", type=Path, help="where metadata is kept for the next time")
    parser.add_argument("--part", nargs=3, metavar=("PART", "METADATA", "FOLDER"))
    asked = parser.parse_args()
    if asked.part:
        part, posts, folder = asked.part
        sys.path.insert(0, str(_ROOT / "stages"))
        importlib.import_module(MODULES.get(part, part))
        start = time.perf_counter()
        posts = PARTS[part](Path(posts), Path(folder))
        print(json.dumps({"seconds": time.perf_counter() - start, "posts": posts}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        metadata.write_rules(folder / "rules")
        judge(asked.posts or [1_000_000], folder)


if __name__ == "__main__":
    main()
