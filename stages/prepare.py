"""List every usable image with its tags, and every rejected post with the reason."""

from pathlib import Path

import pyarrow as pa

from tagger import params
from tagger.core import errors, files, manifest
from tagger.core.vocabulary import Tag
from tagger.data import groups, ingest, rejected, resized_copies, sampling, sources, verify
from tagger.data.sources import Source
from tagger.data.sources.danbooru import DanbooruSource
from tagger.data.sources.folder import FolderSource
from tagger.data.sources.table import TableSource
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon
from tagger.images import decode
from tagger.system import processes, scratch

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
REPORT = Path("metrics/prepare.json")
REJECTED = Path("metrics/rejected.csv")
CHANGES = Path("metrics/tag_changes.csv")
FREQUENCY = Path("metrics/tag_frequency.csv")
PER_POST = Path("metrics/tags_per_post.csv")
SIDES = Path("metrics/sides.csv")
ASPECTS = Path("metrics/aspects.csv")
PLOT = Path("metrics/posts.png")
ACCEPTED_SHEET = Path("metrics/accepted.jpg")
REJECTED_SHEET = Path("metrics/rejected.jpg")


def main(p: params.PrepareParams) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.image_folders)
    for key, folder in p.written_folders.items():
        scratch.check_persistent(f"prepare.{key}", folder)
    with scratch.resumable_folder("prepare") as cache:
        prepare(p, cache)


def prepare(p: params.PrepareParams, cache: Path) -> None:
    """Write the usable posts. A run continues from the results that an interrupted one cached."""
    processes.prestart("prepare")  # loads what workers import while this process reads posts
    source = open_source(p)
    lexicon = Lexicon(rules.read(*p.rule_folders))
    posts, unwanted = ingest.read_posts(source, lexicon, p.filters)
    posts, duplicates = ingest.drop_duplicate_ids(posts)
    posts, over_cap = sampling.cap_posts_per_tag(posts, lexicon, p.filters)
    posts, not_drawn = sampling.draw_sample(posts, p.filters)
    posts, missing = sources.locate(posts, source)
    posts, unusable = verify.verify(posts, p, cache)
    posts, not_copied = resized_copies.copy_images(posts, p.copies)
    rejected_posts = pa.concat_tables(
        [unwanted, duplicates, over_cap, not_drawn, missing, unusable, not_copied]
    )
    rejected.require_posts(posts, rejected_posts, REJECTED)
    posts = groups.group(posts, p.groups, cache)
    posts, tags = ingest.renumber(posts, lexicon)
    manifest.write_posts(posts, POSTS)
    manifest.write_tags(tags, TAGS)
    write_reports(posts, tags, lexicon, rejected_posts, source.notes, p.folders)
    note = f", rejected {len(rejected_posts):,}: see {REJECTED}" if len(rejected_posts) else ""
    print(f"{len(posts):,} posts with {len(tags):,} tags -> {POSTS}{note}")


def open_source(p: params.PrepareParams) -> Source:
    if p.source == "folder":
        return FolderSource(p.folders, p.separator)
    if p.source == "table":
        return TableSource(p.path, p.image_folder, p.path_column, p.tag_column, p.separator)
    return DanbooruSource(p.path, p.image_folder, p.download)


def write_reports(
    posts: pa.Table,
    tags: list[Tag],
    lexicon: Lexicon,
    rejected_posts: pa.Table,
    notes: list[str],
    folders: list[Path],
) -> None:
    """Write the summary, the rejected posts, and curves and sheets of the data."""
    from tagger.data import overview
    from tagger.images.contact_sheet import caption_sheet

    rejected.write(rejected_posts, REJECTED)
    files.write_json(REPORT, overview.summarize(posts, tags, lexicon, rejected_posts, notes))
    files.write_csv(CHANGES, overview.CHANGES, overview.list_changes(lexicon))
    files.write_csv(FREQUENCY, overview.FREQUENCY, overview.tag_frequency(tags))
    files.write_csv(PER_POST, overview.PER_POST, overview.tags_per_post(posts))
    files.write_csv(SIDES, overview.SIDES, overview.count_sides(posts))
    files.write_csv(ASPECTS, overview.ASPECTS, overview.count_aspects(posts))
    with files.atomic_write(PLOT) as partial:
        overview.plot(posts, tags).savefig(partial, format="png")
    with files.atomic_write(ACCEPTED_SHEET) as partial:
        caption_sheet(overview.accepted_images(posts, tags)).save(partial, "JPEG")
    with files.atomic_write(REJECTED_SHEET) as partial:
        caption_sheet(overview.rejected_images(rejected_posts, folders)).save(partial, "JPEG")


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__).prepare)
