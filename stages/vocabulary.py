"""Decide which tags the model learns, and in which order."""

from pathlib import Path

from tagger import errors, files, params, posts, vocabulary

TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
REPORT = Path("metrics/vocabulary.json")


def main(p: params.Vocabulary) -> None:
    seen = posts.read_tags(TAGS)
    unknown: list[str] = []
    if p.source == TAGS:
        tags = vocabulary.select(seen, min_count=p.min_count)
    else:
        wanted = vocabulary.read_selected(p.source, min_count=p.min_count)
        tags, unknown = vocabulary.match(wanted, seen)
    vocabulary.write(tags, VOCABULARY)
    labels = sum(tag.count for tag in tags)
    coverage = labels / sum(tag.count for tag in seen)
    files.write_json(
        REPORT,
        {"seen": len(seen), "kept": len(tags), "label_coverage": round(coverage, 6)}
        | {"categories": vocabulary.count_categories(tags), "without_post": unknown},
    )
    print(f"kept {len(tags):,} of {len(seen):,} tags, {coverage:.1%} of all labels -> {VOCABULARY}")
    if unknown:
        print(f"{len(unknown):,} tags of {p.source} are on no post, {unknown[0]} first: {REPORT}")


if __name__ == "__main__":
    with errors.reported():
        main(params.load().vocabulary)
