"""List every usable picture with its tags, and every other one with the reason."""

from collections import Counter
from pathlib import Path

from tagger import errors, files, folder, params, posts
from tagger.vocabulary import Tag, ordered

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
REPORT = Path("metrics/prepare.json")
REJECTED = Path("metrics/rejected.csv")


def main(p: params.Prepare) -> None:
    pictures, rejected = folder.read(p.folder, p.separator)
    tags = tags_of(pictures, folder.read_categories(p.folder))
    row_of = {tag.name: row for row, tag in enumerate(tags)}
    posts.write([row(picture, i, row_of) for i, picture in enumerate(pictures)], POSTS)
    posts.write_tags(tags, TAGS)
    files.write_csv(REJECTED, folder.Rejected._fields, rejected)
    files.write_json(
        REPORT,
        {
            "posts": len(pictures),
            "tags": len(tags),
            "labels": sum(tag.count for tag in tags),
            "rejected": dict(Counter(reject.reason for reject in rejected)),
        },
    )
    left_out = f", left out {len(rejected):,}: see {REJECTED}" if rejected else ""
    print(f"{len(pictures):,} posts with {len(tags):,} tags -> {POSTS}{left_out}")


def tags_of(pictures: list[folder.Picture], categories: dict[str, tuple[int, int]]) -> list[Tag]:
    """Return the tags seen, each with its category, id and count, in the vocabulary's order."""
    counts = Counter(name for picture in pictures for name in picture.tags)
    known = ((name, count, *categories.get(name, (0, -1))) for name, count in counts.items())
    tags = ordered(Tag(tag_id, name, category, count) for name, count, category, tag_id in known)
    return [
        tag._replace(tag_id=-1 - row) if tag.tag_id < 0 else tag for row, tag in enumerate(tags)
    ]


def row(picture: folder.Picture, group: int, row_of: dict[str, int]) -> dict[str, object]:
    """Return the row of posts.parquet for a picture in a file of its own."""
    return {
        "id": picture.id,
        "file": picture.file.as_posix(),
        "offset": 0,
        "size": picture.size,
        "width": picture.width,
        "height": picture.height,
        "group": group,
        "tags": [row_of[name] for name in picture.tags],
    }


if __name__ == "__main__":
    with errors.reported():
        main(params.load().prepare)
