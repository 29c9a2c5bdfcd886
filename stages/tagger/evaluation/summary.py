"""All that is said of a judged model, in tables and on a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from typing import Any, NamedTuple, TypeAlias

from tagger.core import thresholds
from tagger.core.calibration import Temperatures
from tagger.core.colours import Colour
from tagger.core.thresholds import ALL, Aim, Policy, Threshold
from tagger.core.vocabulary import Tag
from tagger.evaluation import calibration, confusions, fit_thresholds, label_issues, result
from tagger.evaluation.bootstrap import METRICS
from tagger.evaluation.inspection import SplitInspection
from tagger.evaluation.predictions import SplitPredictions
from tagger.evaluation.report import charts
from tagger.evaluation.report.html_page import ReportContent, ReportTable
from tagger.images.dataset import Split

Row: TypeAlias = Sequence[Any]

_SHOWN = 30  # rows of a table on the page


class Rows(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Evaluation:
    """What came out on each part; tables, drawings and galleries are of the test part."""

    splits: Mapping[str, SplitInspection]  # validation, test
    unreadable: Mapping[str, Mapping[str, str]]  # of each part, picture and reason
    thresholds: Sequence[Threshold]

    @property
    def test(self) -> SplitInspection:
        return self.splits["test"]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What evaluate.json holds."""
        return {
            name: self.splits[name].result.metrics | {"unreadable": len(self.unreadable[name])}
            for name in ("test", "validation")
        }

    def summary_lines(self) -> Iterator[str]:
        """Yield what is to be told: pictures left out, and the figures of the test part."""
        for part, lost in self.unreadable.items():
            for path, reason in lost.items():
                yield f"left out of {part}: {path}: {reason}"
        test = self.metrics["test"]
        yield (
            f"test: macro AP {test['macro_ap']:.3f} over {test['tags']} tags, micro AP "
            f"{test['micro_ap']:.3f}, macro F1 {test['macro_f1']:.3f}, micro F1 "
            f"{test['micro_f1']:.3f} on {test['images']:,} pictures"
        )

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """The figures by which runs are compared: fewer, as each is a chart in MLflow."""
        found = {}
        for name, part in self.metrics.items():
            categories = {
                category: {measure: inside[measure] for measure in METRICS}
                for category, inside in part["categories"].items()
            }
            found[name] = part | {"categories": categories, "bands": {}}
        return found

    @cached_property
    def tables(self) -> dict[str, Rows]:
        """The tables that are written, by name."""
        test, tally = self.test, self.test.result.counts
        by_part = [
            zip(one.label_issues.most_certain, one.label_issue_rows(), strict=True)
            for one in self.splits.values()
        ]
        doubted = [row for _, row in merge(*by_part, key=lambda pair: -pair[0].certainty)]
        return {
            "tags": Rows(
                charts.TAG_HEADER, list(charts.tag_rows(tally, test.tags, test.thresholds))
            ),
            "categories": Rows(charts.CATEGORY_HEADER, charts.category_rows(test.result.metrics)),
            "pr_curve": Rows(charts.PR_HEADER, charts.pr_rows(tally)),
            "f1_by_threshold": Rows(charts.F1_HEADER, list(charts.f1_rows(tally))),
            "reliability": Rows(charts.RELIABILITY_HEADER, list(charts.reliability_rows(tally))),
            "confused_tags": Rows(
                confusions.HEADER, list(confusions.rows(test.confused, test.tags))
            ),
            "label_issues": Rows(label_issues.HEADER, doubted),
        }

    @cached_property
    def temperatures(self) -> Temperatures:
        """By what to divide logits, fitted on validation."""
        return calibration.fit(self.splits["validation"].result.counts, self.test.tags)

    def report_content(self, trained: Mapping[str, Any]) -> ReportContent:
        """Return what the page shows; trained: run.json of the model."""
        asked = trained["params"]
        rows = {name: table.rows for name, table in self.tables.items()}
        return ReportContent(
            title=asked["model"],
            facts={
                "Backbone": asked["preset"]["backbone"],
                "Image size": f"{asked['preset']['image_size']} px",
                "Run in MLflow": trained["run_id"] or "none",
            },
            metrics=self.metrics,
            tags=rows["tags"],
            pr=rows["pr_curve"],
            f1=rows["f1_by_threshold"],
            reliability=rows["reliability"],
            tables=list(self._further()),
            galleries=list(self.test.galleries()),
        )

    def _further(self) -> Iterator[ReportTable]:
        """Yield the smaller tables of the page."""
        common = [row for row in self.thresholds if not row.name]
        yield ReportTable(
            "Thresholds",
            "Fitted on validation, with what they reach there; those of single tags are in "
            "the table of tags.",
            ("for", "threshold", "labels", "F1", "precision", "recall", "chosen by"),
            [("all tags" if row.category == ALL else row.category, *row[2:]) for row in common],
        )
        yield self._table(
            "confused_tags",
            "Tags taken for one another",
            "Where one is missed, the other is given.",
        )
        yield self._table(
            "label_issues",
            "Labels in doubt",
            "Where the model, which has not seen these pictures, is sure of the opposite: labels "
            "that are likely missing, or wrong.",
        )
        lost = [(part, *one) for part, some in self.unreadable.items() for one in some.items()]
        if lost:
            title, told = "Unreadable pictures", "They count in no figure."
            yield ReportTable(title, told, ("part", "picture", "reason"), lost)

    def _table(self, name: str, title: str, told: str) -> ReportTable:
        header, rows = self.tables[name]
        shown = [word.replace("_", " ") for word in header]
        if len(rows) > _SHOWN:
            told += f" The first {_SHOWN} of {len(rows):,}; the rest is in {name}.csv."
        return ReportTable(title, told, shown, rows[:_SHOWN])


def evaluate(
    found: Mapping[str, SplitPredictions],
    parts: Mapping[str, Split],
    tags: Sequence[Tag],
    policy: Policy,
    seed: int,
    background: Colour,
) -> Evaluation:
    """Return what comes out on both parts, at thresholds fitted on validation."""
    aim = Aim(policy.by, policy.target)
    fitted = fit_thresholds.fit(found["validation"].store, tags, aim, seed)
    limits = thresholds.per_tag(fitted, tags, policy)
    looked = {}
    for name, (kept, _) in found.items():
        figures = result.evaluate(kept, tags, limits, seed)
        looked[name] = SplitInspection(name, kept, parts[name], tags, limits, figures, background)
    unreadable = {
        name: {parts[name].locations[row].path: reason for row, reason in failures.items()}
        for name, (_, failures) in found.items()
    }
    return Evaluation(looked, unreadable, fitted)
