"""Part the posts into training, validation and test."""

from pathlib import Path

from tagger import params
from tagger.core import errors, files, manifest, vocabulary
from tagger.core.manifest import SPLITS, Posts
from tagger.core.vocabulary import Tag
from tagger.split import balance, deterministic, methods
from tagger.split.methods import Labels, SplitIndices

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
SPLIT = Path("data/split.parquet")
REPORT = Path("metrics/split.json")
PER_TAG = Path("metrics/split_tags.csv")
PER_BAND = Path("metrics/split_bands.csv")
PLOT = Path("metrics/split.png")


def main(p: params.SplitParams, seed: int) -> None:
    seen = manifest.read_tags(TAGS)
    tags = vocabulary.read(VOCABULARY)
    found = manifest.read_posts(POSTS, len(seen))
    labels = manifest.select_columns(found.labels, seen, tags)
    parts = allot(found, labels, p, seed)
    methods.check_split_sizes(parts, labels, SPLITS)
    manifest.write_split(found.ids, parts, SPLIT)
    report(found, labels, tags, parts, p, seed)


def allot(found: Posts, labels: Labels, p: params.SplitParams, seed: int) -> SplitIndices:
    """Return the part of each post, (posts,), by the method asked for."""
    shares, groups = p.proportions, found.groups
    match p.method:
        case "stratified":
            return methods.stratified(labels, shares, groups=groups, seed=seed, order=p.order)
        case "iterative":
            return methods.iterative(labels, shares, groups=groups, seed=seed, order=p.order)
        case "random":
            return methods.random(labels, shares, groups=groups, seed=seed)
        case "hash":
            return deterministic.by_hash(found.ids, shares, groups=groups, seed=seed)
        case "modulo":
            return deterministic.by_modulo(found.ids, shares, groups=groups)
        case "time":
            dates = found.table["created_at"]
            return deterministic.by_time(dates, found.ids, shares, groups=groups)
        case "given":
            return deterministic.from_table(p.table, p.id_column, p.split_column, found.ids, SPLITS)


def report(
    found: Posts,
    labels: Labels,
    tags: list[Tag],
    parts: SplitIndices,
    p: params.SplitParams,
    seed: int,
) -> None:
    """Write and tell how even the parts are, beside parts drawn at random."""
    sizes = balance.sizes(parts, len(SPLITS))
    wanted = sizes / sizes.sum() if p.method == "given" else p.proportions
    kept = None if p.method == "given" else found.groups
    by_chance = methods.random(labels, wanted, groups=kept, seed=seed)
    even, chance = (balance.measure(some, labels, wanted) for some in (parts, by_chance))
    numbers = balance.report(even, chance, tags, SPLITS)
    groups = balance.group_counts(parts, found.groups)
    files.write_json(REPORT, {"posts": len(parts), **numbers, "groups": groups})
    files.write_csv(PER_TAG, (*balance.TAGS, *SPLITS), balance.tag_rows(even, tags))
    files.write_csv(PER_BAND, balance.BANDS, balance.band_rows(even, chance, SPLITS))
    with files.atomic_write(PLOT) as partial:
        balance.plot(even, chance, SPLITS).savefig(partial, format="png")
    print(f"{', '.join(f'{n:,} {part}' for n, part in zip(sizes, SPLITS, strict=True))} -> {SPLIT}")
    for part in SPLITS:
        if missing := numbers[part]["tags_without_post"]:
            print(f"tags without a post in {part}: {missing:,} of {len(tags):,}, see {PER_TAG}")
    if groups["parted"]:
        print(f"groups in several parts: {groups['parted']:,}, so that a model is judged on copies")


if __name__ == "__main__":
    with errors.exit_on_error():
        p = params.load_for_stage(__doc__)
        main(p.split, p.seed)
