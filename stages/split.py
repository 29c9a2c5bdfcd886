"""Split the posts into training, validation and test."""

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
    all_tags = manifest.read_tags(TAGS)
    tags = vocabulary.read(VOCABULARY)
    posts = manifest.read_posts(POSTS, len(all_tags))
    labels = manifest.select_columns(posts.labels, all_tags, tags)
    splits = assign(posts, labels, p, seed)
    methods.check_split_sizes(splits, labels, SPLITS)
    manifest.write_split(posts.ids, splits, SPLIT)
    report(posts, labels, tags, splits, p, seed)


def assign(posts: Posts, labels: Labels, p: params.SplitParams, seed: int) -> SplitIndices:
    """Return the split of each post, (posts,), by the method of the parameters."""
    fractions, groups = p.fractions, posts.groups
    match p.method:
        case "stratified":
            return methods.stratified(labels, fractions, groups=groups, seed=seed, order=p.order)
        case "iterative":
            return methods.iterative(labels, fractions, groups=groups, seed=seed, order=p.order)
        case "random":
            return methods.random(labels, fractions, groups=groups, seed=seed)
        case "hash":
            return deterministic.by_hash(posts.ids, fractions, groups=groups, seed=seed)
        case "modulo":
            return deterministic.by_modulo(posts.ids, fractions, groups=groups)
        case "time":
            dates = posts.table["created_at"]
            return deterministic.by_time(dates, posts.ids, fractions, groups=groups)
        case "given":
            columns = p.id_column, p.split_column
            return deterministic.from_table(p.table, *columns, posts.ids, SPLITS)


def report(
    posts: Posts,
    labels: Labels,
    tags: list[Tag],
    splits: SplitIndices,
    p: params.SplitParams,
    seed: int,
) -> None:
    """Write and print how balanced the split is, beside a random one."""
    sizes = balance.sizes(splits, len(SPLITS))
    given = p.method == "given"
    targets = sizes / sizes.sum() if given else p.fractions
    random = methods.random(labels, targets, groups=None if given else posts.groups, seed=seed)
    ours, chance = (balance.measure(each, labels, targets) for each in (splits, random))
    numbers = balance.report(ours, chance, tags, SPLITS)
    groups = balance.group_counts(splits, posts.groups)
    files.write_json(REPORT, {"posts": len(splits), **numbers, "groups": groups})
    files.write_csv(PER_TAG, (*balance.TAGS, *SPLITS), balance.tag_rows(ours, tags))
    files.write_csv(PER_BAND, balance.BANDS, balance.band_rows(ours, chance, SPLITS))
    with files.atomic_write(PLOT) as partial:
        balance.plot(ours, chance, SPLITS).savefig(partial, format="png")
    counts = (f"{size:,} {name}" for size, name in zip(sizes, SPLITS, strict=True))
    print(f"{', '.join(counts)} -> {SPLIT}")
    for name in SPLITS:
        if missing := numbers[name]["tags_without_post"]:
            print(f"tags without a post in {name}: {missing:,} of {len(tags):,}, see {PER_TAG}")
    if groups["divided"]:
        print(
            f"groups divided between splits: {groups['divided']:,}. The model is evaluated on "
            "copies of its training images."
        )


if __name__ == "__main__":
    with errors.exit_on_error():
        p = params.load_for_stage(__doc__)
        main(p.split, p.seed)
