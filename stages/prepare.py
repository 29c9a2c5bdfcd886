"""List every usable picture with its tags, and every other one with the reason."""

from pathlib import Path

import pyarrow as pa

from tagger import params
from tagger.core import errors, files, manifest
from tagger.core.vocabulary import Tag
from tagger.data import image_steps, ingest
from tagger.data.rejected import RejectedPosts
from tagger.data.sources import Source
from tagger.data.sources.danbooru import DanbooruSource
from tagger.data.sources.folder import FolderSource
from tagger.data.sources.table import TableSource
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon
from tagger.images import decode
from tagger.system import scratch

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
REPORT = Path("metrics/prepare.json")
REJECTED = Path("metrics/rejected.csv")
CHANGES = Path("metrics/tag_changes.csv")
FREQUENCY = Path("metrics/tag_frequency.csv")
PER_POST = Path("metrics/tags_per_post.csv")
SIDES = Path("metrics/sides.csv")
ASPECTS = Path("metrics/aspects.csv")
DRAWING = Path("metrics/posts.png")
ACCEPTED_SHEET = Path("metrics/accepted.jpg")
REJECTED_SHEET = Path("metrics/rejected.jpg")


def main(p: params.PrepareParams) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.copies_and_originals)
    for name, folder in p.written_folders.items():
        scratch.check_persistent(f"prepare.{name}", folder)
    with scratch.resumable_folder("prepare") as memory:
        prepare(p, memory)


def prepare(p: params.PrepareParams, memory: Path) -> None:
    """Prepare the posts. What was found out of pictures lies in the memory for the next run."""
    left_out = RejectedPosts()
    source = source_of(p)
    lexicon = Lexicon(rules.read(*p.rule_folders))
    found = ingest.read_posts(source, lexicon, p.filters, left_out)
    found = ingest.choose(found, lexicon, p.filters, left_out)
    found = image_steps.located(found, source, left_out)
    found = image_steps.verified(found, p, left_out, memory)
    found = image_steps.copied(found, p.copies, left_out)
    found = image_steps.grouped(ingest.require(found, left_out, REJECTED), p.groups, memory)
    tags = ingest.used_tags(lexicon, ingest.count_labels(found, len(lexicon)))
    found = ingest.renumber(found, lexicon, tags)
    manifest.write_posts(found, POSTS)
    manifest.write_tags(tags, TAGS)
    report(found, tags, lexicon, left_out, source.notes, p.folders)
    some = f", left out {len(left_out):,}: see {REJECTED}" if len(left_out) else ""
    print(f"{len(found):,} posts with {len(tags):,} tags -> {POSTS}{some}")


def source_of(p: params.PrepareParams) -> Source:
    if p.source == "folder":
        return FolderSource(p.folders, p.separator)
    if p.source == "table":
        return TableSource(p.path, p.image_folder, p.path_column, p.tag_column, p.separator)
    return DanbooruSource(p.path, p.image_folder, p.download)


def report(
    found: pa.Table,
    tags: list[Tag],
    lexicon: Lexicon,
    left_out: RejectedPosts,
    notes: list[str],
    folders: list[Path],
) -> None:
    """Write the numbers, what was left out, and what the data looks like."""
    from tagger.data import overview
    from tagger.images import contact_sheet

    left_out.write(REJECTED)
    files.write_json(REPORT, overview.summarize(found, tags, lexicon, left_out, notes))
    files.write_csv(CHANGES, overview.CHANGES, overview.list_changes(lexicon))
    files.write_csv(FREQUENCY, overview.FREQUENCY, overview.tag_frequency(tags))
    files.write_csv(PER_POST, overview.PER_POST, overview.tags_per_post(found))
    files.write_csv(SIDES, overview.SIDES, overview.count_sides(found))
    files.write_csv(ASPECTS, overview.ASPECTS, overview.count_aspects(found))
    with files.atomic_write(DRAWING) as partial:
        overview.plot(found, tags).savefig(partial, format="png")
    with files.atomic_write(ACCEPTED_SHEET) as partial:
        contact_sheet.caption_sheet(overview.accepted_images(found, tags)).save(partial, "JPEG")
    with files.atomic_write(REJECTED_SHEET) as partial:
        contact_sheet.caption_sheet(overview.rejected_images(left_out.table(), folders)).save(
            partial, "JPEG"
        )


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__).prepare)
