"""The results of `evaluate`: its metrics, its tables and its report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from typing import Any

from tagger.core import thresholds
from tagger.core.calibration import Temperatures
from tagger.core.colours import Colour
from tagger.core.thresholds import ALL, Threshold
from tagger.core.vocabulary import Tag
from tagger.evaluation import calibration, confusions, fit_thresholds, label_issues, result
from tagger.evaluation.bootstrap import METRICS
from tagger.evaluation.inspection import SplitInspection
from tagger.evaluation.predictions import SplitPredictions
from tagger.evaluation.report import tables
from tagger.evaluation.report.html_page import ReportContent, ReportTable
from tagger.evaluation.report.tables import CsvTable
from tagger.images.dataset import Split
from tagger.params import ThresholdParams

_SHOWN = 30  # rows of a table in the report


@dataclass(frozen=True)
class Evaluation:
    """The results for both splits; tables, plots and galleries are of the test split."""

    splits: Mapping[str, SplitInspection]  # validation, test
    unreadable: Mapping[str, Mapping[str, str]]  # of each split, image and reason
    thresholds: Sequence[Threshold]

    @property
    def test(self) -> SplitInspection:
        return self.splits["test"]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of evaluate.json."""
        return {
            name: self.splits[name].result.metrics | {"unreadable": len(self.unreadable[name])}
            for name in ("test", "validation")
        }

    def summary_lines(self) -> Iterator[str]:
        """Yield what to print: skipped images, and the metrics of the test split."""
        for split, reasons in self.unreadable.items():
            for path, reason in reasons.items():
                yield f"skipped in {split}: {path}: {reason}"
        test = self.metrics["test"]
        yield (
            f"test: macro AP {test['macro_ap']:.3f} over {test['tags']} tags, micro AP "
            f"{test['micro_ap']:.3f}, macro F1 {test['macro_f1']:.3f}, micro F1 "
            f"{test['micro_f1']:.3f} on {test['images']:,} images"
        )

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """The metrics for MLflow, where each is a chart: fewer than in evaluate.json."""
        logged = {}
        for name, split in self.metrics.items():
            categories = {
                category: {metric: tree[metric] for metric in METRICS}
                for category, tree in split["categories"].items()
            }
            logged[name] = split | {"categories": categories, "bands": {}}
        return logged

    @cached_property
    def tables(self) -> dict[str, CsvTable]:
        """The tables to write, by name."""
        test, counts = self.test, self.test.result.counts
        tag_rows = tables.tag_rows(counts, test.tags, test.thresholds)
        confusion_rows = list(confusions.rows(test.confusions, test.tags))
        return {
            "tags": CsvTable(tables.TAG_HEADER, tag_rows),
            "categories": CsvTable(
                tables.CATEGORY_HEADER, tables.category_rows(test.result.metrics)
            ),
            "pr_curve": CsvTable(tables.PR_HEADER, tables.pr_rows(counts)),
            "f1_by_threshold": CsvTable(tables.F1_HEADER, tables.f1_rows(counts)),
            "reliability": CsvTable(tables.RELIABILITY_HEADER, tables.reliability_rows(counts)),
            "confusions": CsvTable(confusions.HEADER, confusion_rows),
            "label_issues": CsvTable(label_issues.HEADER, self._label_issue_rows()),
        }

    def _label_issue_rows(self) -> list[tuple[Any, ...]]:
        """Return the label issues of both splits, the most certain first."""
        by_split = [
            zip(split.label_issues.most_certain, split.label_issue_rows(), strict=True)
            for split in self.splits.values()
        ]
        return [row for _, row in merge(*by_split, key=lambda pair: -pair[0].certainty)]

    @cached_property
    def temperatures(self) -> Temperatures:
        """The temperatures, fitted on validation."""
        return calibration.fit(self.splits["validation"].result.counts, self.test.tags)

    def report_content(self, run: Mapping[str, Any]) -> ReportContent:
        """Return what the report shows; run: run.json of the model."""
        params = run["params"]
        rows = {name: table.rows for name, table in self.tables.items()}
        return ReportContent(
            title=params["model"],
            facts={
                "Backbone": params["preset"]["backbone"],
                "Image size": f"{params['preset']['image_size']} px",
                "Run in MLflow": run["run_id"] or "none",
            },
            metrics=self.metrics,
            tags=rows["tags"],
            pr=rows["pr_curve"],
            f1=rows["f1_by_threshold"],
            reliability=rows["reliability"],
            tables=list(self._report_tables()),
            galleries=list(self.test.galleries()),
        )

    def _report_tables(self) -> Iterator[ReportTable]:
        """Yield the smaller tables of the report."""
        yield self._threshold_table()
        yield self._report_table(
            "confusions",
            "Confusions",
            "The model misses the first tag and predicts the second instead.",
        )
        yield self._report_table(
            "label_issues",
            "Label issues",
            "Labels that are likely missing or wrong: the model, which was not trained on these "
            "images, is confident of the opposite.",
        )
        unreadable = [
            (split, *image) for split, images in self.unreadable.items() for image in images.items()
        ]
        if unreadable:
            header = ("split", "image", "reason")
            yield ReportTable(
                "Unreadable images", "They do not count in any metric.", header, unreadable
            )

    def _threshold_table(self) -> ReportTable:
        return ReportTable(
            "Thresholds",
            "Fitted on validation, with the metrics they reach there. The table of tags has the "
            "thresholds of single tags.",
            ("for", "threshold", "objective", "labels", "F1", "precision", "recall"),
            [
                (
                    "all tags" if row.category == ALL else row.category,
                    row.threshold,
                    thresholds.describe(row.objective, row.target),
                    *(row.support, row.f1, row.precision, row.recall),
                )
                for row in self.thresholds
                if row.kind != "tag"
            ],
        )

    def _report_table(self, name: str, title: str, explanation: str) -> ReportTable:
        header, rows = self.tables[name]
        if len(rows) > _SHOWN:
            explanation += f" The first {_SHOWN} of {len(rows):,}; all are in {name}.csv."
        titles = [column.replace("_", " ") for column in header]
        return ReportTable(title, explanation, titles, rows[:_SHOWN])


def evaluate(
    predictions: Mapping[str, SplitPredictions],
    splits: Mapping[str, Split],
    tags: Sequence[Tag],
    params: ThresholdParams,
    seed: int,
    background: Colour,
) -> Evaluation:
    """Return the results for both splits, at thresholds fitted on validation."""
    validation = predictions["validation"].store
    fitted = fit_thresholds.fit(validation, tags, params.objective, params.target, seed)
    values = thresholds.per_tag(fitted, tags, params.kind)
    inspections = {}
    for name, (store, _) in predictions.items():
        metrics = result.evaluate(store, tags, values, seed)
        inspections[name] = SplitInspection(
            name, store, splits[name], tags, values, metrics, background
        )
    unreadable = {
        name: {splits[name].locations[row].path: reason for row, reason in failures.items()}
        for name, (_, failures) in predictions.items()
    }
    return Evaluation(inspections, unreadable, fitted)
