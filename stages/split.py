"""Part the posts into training, validation and test."""

from pathlib import Path

from tagger import errors, files, params, posts, split, vocabulary

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
SPLIT = Path("data/split.parquet")
REPORT = Path("metrics/split.json")


def main(p: params.Split, seed: int) -> None:
    seen = posts.read_tags(TAGS)
    manifest = posts.read(POSTS, len(seen))
    labels = posts.columns_of(manifest.labels, seen, vocabulary.read(VOCABULARY))
    method = split.METHODS[p.method]
    parts = method(labels, p.proportions, groups=manifest.groups, seed=seed)
    split.check(parts, labels, posts.PARTS)
    posts.write_split(manifest.ids, parts, SPLIT)
    report = split.report(parts, labels, posts.PARTS)
    files.write_json(REPORT, report)
    sizes = ", ".join(f"{report[part]['posts']:,} {part}" for part in posts.PARTS)
    print(f"{sizes} -> {SPLIT}")


if __name__ == "__main__":
    with errors.reported():
        p = params.load()
        main(p.split, p.seed)
