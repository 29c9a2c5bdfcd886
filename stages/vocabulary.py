"""Decide which tags the model learns, and in which order."""

from pathlib import Path

from tagger import params
from tagger.core import errors, files, manifest, vocabulary
from tagger.data.tags import coverage, select

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
REPORT = Path("metrics/vocabulary.json")
OUTCOME = Path("metrics/tags_kept.csv")
DROPPED = Path("metrics/tags_dropped.csv")
PER_POST = Path("metrics/tags_left_per_post.csv")
BY_SIZE = Path("metrics/label_coverage.csv")
DRAWING = Path("metrics/vocabulary.png")


def main(p: params.VocabularyParams) -> None:
    seen = manifest.read_tags(TAGS)
    listed = None if p.source == TAGS else vocabulary.read_selected(p.source)
    found = select.select_tags(seen, p, listed)
    covered = coverage.measure_coverage(found, seen, manifest.read_posts(POSTS, len(seen)).labels)
    vocabulary.write(found.kept, VOCABULARY)
    files.write_json(REPORT, coverage.summarize(found, covered))
    files.write_csv(OUTCOME, select.OUTCOME_COLUMNS, select.count_outcomes(found))
    files.write_csv(DROPPED, select.DROPPED_COLUMNS, ((*tag, why) for tag, why in found.dropped))
    files.write_csv(
        PER_POST, coverage.PER_POST_COLUMNS, enumerate(covered.posts_by_tag_count.tolist())
    )
    files.write_csv(BY_SIZE, coverage.BY_SIZE_COLUMNS, coverage.coverage_by_size(seen))
    with files.atomic_write(DRAWING) as partial:
        coverage.plot(found, covered).savefig(partial, format="png")
    tell(found, covered, p.source)


def tell(found: select.Selection, covered: coverage.Coverage, source: Path) -> None:
    of_all = len(found.kept) + len(found.dropped)
    share = coverage.label_coverage(found)
    print(f"kept {len(found.kept):,} of {of_all:,} tags, {share:.1%} of all labels -> {VOCABULARY}")
    if found.unseen_names:
        some = ", ".join(found.unseen_names[:3])
        print(f"tags of {source} on no post: {len(found.unseen_names):,} ({some}), see {REPORT}")
    if found.unmatched_globs:
        print(f"globs that match no tag: {', '.join(found.unmatched_globs)}")
    if bare := int(covered.posts_by_tag_count[0]):
        print(f"posts left with no tag: {bare:,}")


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__).vocabulary)
