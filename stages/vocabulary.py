"""Select the tags that the model learns, in the order of its outputs."""

from pathlib import Path

from tagger import params
from tagger.core import errors, files, manifest, vocabulary
from tagger.data.tags import coverage, select
from tagger.data.tags.coverage import Coverage
from tagger.data.tags.select import Selection

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
REPORT = Path("metrics/vocabulary.json")
OUTCOMES = Path("metrics/tags_kept.csv")
DROPPED = Path("metrics/tags_dropped.csv")
PER_POST = Path("metrics/tags_left_per_post.csv")
BY_SIZE = Path("metrics/label_coverage.csv")
PLOT = Path("metrics/vocabulary.png")


def main(p: params.VocabularyParams) -> None:
    seen_tags = manifest.read_tags(TAGS)
    listed_tags = None if p.source == TAGS else vocabulary.read_selected(p.source)
    selection = select.select_tags(seen_tags, p, listed_tags)
    posts = manifest.read_posts(POSTS, len(seen_tags))
    covered = coverage.measure_coverage(selection, seen_tags, posts.labels)
    vocabulary.write(selection.kept, VOCABULARY)
    write_reports(selection, covered)
    files.write_csv(BY_SIZE, coverage.BY_SIZE_COLUMNS, coverage.coverage_by_size(seen_tags))
    print_summary(selection, covered, p.source)


def write_reports(selection: Selection, covered: Coverage) -> None:
    files.write_json(REPORT, coverage.summarize(selection, covered))
    files.write_csv(OUTCOMES, select.OUTCOME_COLUMNS, select.count_outcomes(selection))
    dropped = ((*tag, reason) for tag, reason in selection.dropped)
    files.write_csv(DROPPED, select.DROPPED_COLUMNS, dropped)
    posts_by_tag_count = enumerate(covered.posts_by_tag_count.tolist())
    files.write_csv(PER_POST, coverage.PER_POST_COLUMNS, posts_by_tag_count)
    with files.atomic_write(PLOT) as partial:
        coverage.plot(selection, covered).savefig(partial, format="png")


def print_summary(selection: Selection, covered: Coverage, source: Path) -> None:
    kept, total = len(selection.kept), len(selection.kept) + len(selection.dropped)
    fraction = coverage.label_coverage(selection)
    print(f"kept {kept:,} of {total:,} tags, {fraction:.1%} of all labels -> {VOCABULARY}")
    if unseen := selection.unseen_names:
        examples = ", ".join(unseen[:3])
        print(f"tags of {source} on no post: {len(unseen):,} ({examples}), see {REPORT}")
    if selection.unmatched_globs:
        print(f"globs that match no tag: {', '.join(selection.unmatched_globs)}")
    if without_tag := int(covered.posts_by_tag_count[0]):
        print(f"posts without a tag: {without_tag:,}")


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__).vocabulary)
