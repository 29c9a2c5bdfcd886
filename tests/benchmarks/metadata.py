"""Draw metadata in danbooru2024's schema, and rule tables of Danbooru's size.

The tags of each category fall off as k -> 1 / (k + 10), so the commonest is on a third of the
posts. Where real metadata holds implied tags already, here the rules add them: a third more labels.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Distinct tags, and labels on a post: 100,000 and 35 together.
SIZES = {"general": (40_000, 27), "character": (20_000, 2), "copyright": (10_000, 1.5)} | {
    "artist": (29_500, 1),
    "meta": (500, 3.5),
}
ALIASES = 40_000
IMPLICATIONS = 35_000
_CHUNK = 100_000  # posts
_NUMBERS: tuple[str, ...] = (
    "uploader_id",
    "approver_id",
    "fav_count",
    "up_score",
    "down_score",
    "file_size",
)
_NUMBERS += ("tag_count", *(f"tag_count_{name}" for name in SIZES), "pixiv_id", "bit_flags")
_FLAGS: tuple[str, ...] = (
    "has_children",
    "has_active_children",
    "has_visible_children",
    "has_large",
)
_FLAGS += ("is_pending", "is_flagged")
_URLS = ("source", "file_url", "large_file_url", "preview_file_url")
_CODES = {"general": 0, "artist": 1, "copyright": 3, "character": 4, "meta": 5}
_WORDS = ("long", "hair", "blue", "red", "girl", "sword", "hat", "eyes", "open", "smile", "dress")


def names(category: str) -> list[str]:
    """Return the tags of a category, the commonest first."""
    count, words = SIZES[category][0], len(_WORDS)
    rest = f"({category})" if category in ("artist", "character") else "look"
    return [f"{_WORDS[n % words]}_{_WORDS[n // words % words]}_{n}_{rest}" for n in range(count)]


def write(path: Path, posts: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    texts = {category: pa.array(names(category)) for category in SIZES}
    writer = None
    for start in range(0, posts, _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, posts))
        table = _table(ids, texts, random)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def _table(
    ids: npt.NDArray[np.int64], texts: dict[str, pa.Array], random: np.random.Generator
) -> pa.Table:
    tags = {f"tag_string_{name}": _tags(len(ids), name, texts[name], random) for name in texts}
    parents = np.where(random.random(len(ids)) < 0.1, ids - random.integers(1, 50, len(ids)), -1)
    columns = {
        "id": ids,
        "created_at": pa.array(1_200_000_000_000_000 + ids * 60_000_000, pa.timestamp("us", "UTC")),
        "rating": np.array(list("gsqe"))[random.integers(0, 4, len(ids))],
        "score": random.integers(-5, 200, len(ids), np.int32),
        "image_width": random.integers(200, 4000, len(ids), np.int32),
        "image_height": random.integers(200, 4000, len(ids), np.int32),
        "tag_string": pc.binary_join_element_wise(*tags.values(), " "),
        **tags,
        "parent_id": pa.array(parents, mask=parents < 0),
        "md5": [f"{number:032x}" for number in ids],
        "is_deleted": random.random(len(ids)) < 0.03,
        "is_banned": random.random(len(ids)) < 0.01,
    }
    return pa.table(columns | _rest(ids, random))


def _rest(ids: npt.NDArray[np.int64], random: np.random.Generator) -> dict[str, Any]:
    """Return what else is in Danbooru's post record, which nobody here asks for."""
    count = len(ids)
    numbers = {name: random.integers(0, 1_000_000, count, np.int32) for name in _NUMBERS}
    flags = {name: random.random(count) < 0.1 for name in _FLAGS}
    urls = [f"https://cdn.example/original/{number % 256:02x}/{number:032x}.jpg" for number in ids]
    return numbers | flags | dict.fromkeys(_URLS, pa.array(urls)) | {"file_ext": ["jpg"] * count}


def _tags(posts: int, category: str, texts: pa.Array, random: np.random.Generator) -> pa.Array:
    count, per_post = SIZES[category]
    shares = np.cumsum(1 / (np.arange(count) + 10))
    lengths = random.poisson(per_post, posts)
    drawn = np.searchsorted(shares / shares[-1], random.random(lengths.sum()))
    starts = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    taken = texts.take(pa.array(np.minimum(drawn, count - 1)))
    return pc.binary_join(pa.ListArray.from_arrays(starts, taken), " ")


def write_rules(folder: Path) -> None:
    """Write tags, tag_aliases and tag_implications: the latter up to two steps deep."""
    folder.mkdir(parents=True, exist_ok=True)
    tag_categories = [(name, _CODES[category]) for category in SIZES for name in names(category)]
    tags = [(name, category, number) for number, (name, category) in enumerate(tag_categories)]
    _write(folder / "tags.csv", ("name", "category", "tag_id"), tags)
    aliases = [(f"old_{name}", name) for name, _ in tag_categories[-ALIASES:]]
    _write(folder / "tag_aliases.csv", ("alias", "tag"), aliases)
    general = names("general")
    rare = range(len(general) - IMPLICATIONS, len(general))
    implications = [(general[number], general[number // 4]) for number in rare]
    header = ("antecedent_name", "consequent_name")
    _write(folder / "tag_implications.csv", header, implications)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
