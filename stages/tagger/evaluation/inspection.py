"""What a person should look at after an evaluation: pictures, tags and labels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from tagger.core.arrays import Floats
from tagger.core.colours import Colour
from tagger.core.vocabulary import Tag
from tagger.evaluation import confusions, label_issues, mistakes, quantized_logits
from tagger.evaluation.confusions import Confusion
from tagger.evaluation.label_issues import LabelIssues
from tagger.evaluation.mistakes import HardTag, Mistakes, TagConfidence
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.report.html_page import Gallery, GalleryImage
from tagger.evaluation.result import EvaluationResult
from tagger.images import contact_sheet, decode
from tagger.images.dataset import Split

SHOWN = 12  # pictures of a gallery


@dataclass(frozen=True)
class SplitInspection:
    """The predictions of a part, and where to find what they are of."""

    name: str  # of the part
    store: PredictionStore
    split: Split
    tags: Sequence[Tag]
    thresholds: Floats  # (tags,), the thresholds
    result: EvaluationResult
    background: Colour

    @cached_property
    def mistakes(self) -> Mistakes:
        return mistakes.find(self.store, self.thresholds)

    @cached_property
    def confused(self) -> list[Confusion]:
        return confusions.find(self.mistakes, self.tags, self.result.counts.support)

    @cached_property
    def label_issues(self) -> LabelIssues:
        return label_issues.find(self.store)

    def label_issue_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the surest labels in doubt, as `doubts.HEADER` names them."""
        everything = range(len(self.store))
        files = [self.split.locations[row].path for row in self.store.rows.tolist()]
        ids = self.ids(everything)
        return label_issues.rows(self.name, self.label_issues.most_certain, ids, files, self.tags)

    def sheet(self) -> Image.Image:
        """Return the first pictures with what is said of each, drawn on one sheet."""
        count = min(SHOWN, len(self.store))
        rows = self.store.rows[:count]
        first = next((tile for _, tile in self.store.tiles()), np.empty((0, 0), np.uint16))
        scores = quantized_logits.probability_table()[first[:, :count].T].astype(np.float32)
        truth = self.store.labels[:count].toarray()
        pictures = [
            decode.open_rgb_or_none(self.split.locations[row], self.background)
            for row in rows.tolist()
        ]
        return contact_sheet.prediction_sheet(
            pictures, scores, truth, [tag.name for tag in self.tags], self.thresholds
        )

    def galleries(self) -> Iterator[Gallery]:
        loss = self.result.ranking.loss
        first = list(range(min(SHOWN, len(self.store))))
        yield Gallery("Predictions", "The first pictures of the part.", self._shown(first))
        hardest = np.argsort(-loss, kind="stable")[:SHOWN].tolist()
        yield Gallery(
            "Highest loss",
            "Pictures by which the model is most surprised: hard ones, or labelled wrongly.",
            self._shown(hardest, [f"loss {loss[picture]:.1f}" for picture in hardest]),
        )
        for worst in mistakes.hard_tags(self.store, self.result.counts):
            yield self._of_tag(worst)

    def ids(self, pictures: Iterable[int]) -> list[str]:
        """Return the ids of pictures, or where they lie if the part has no ids."""
        rows = self.store.rows[np.fromiter(pictures, np.int64)]
        if self.split.ids is None:
            return [self.split.locations[row].path for row in rows.tolist()]
        return [str(name) for name in self.split.ids.take(rows).to_pylist()]

    def _shown(
        self, pictures: Sequence[int], notes: Sequence[str] | None = None
    ) -> list[GalleryImage]:
        looked = mistakes.image_mistakes(self.store, self.mistakes, pictures)
        captions = self.ids(pictures)
        return [
            GalleryImage(
                self._picture(one.image),
                caption,
                right=self._said(one.right),
                wrong=self._said(one.wrong),
                missed=self._said(one.missed),
                note=note,
            )
            for one, caption, note in zip(
                looked, captions, notes or [""] * len(looked), strict=True
            )
        ]

    def _said(self, said: Sequence[TagConfidence]) -> list[tuple[str, float]]:
        return [(self.tags[one.tag].name, one.confidence) for one in said]

    def _picture(self, picture: int) -> Image.Image | None:
        place = self.split.locations[int(self.store.rows[picture])]
        return decode.open_rgb_or_none(place, self.background)

    def _of_tag(self, worst: HardTag) -> Gallery:
        tally, name = self.result.counts, self.tags[worst.tag].name
        support, precision = tally.support[worst.tag], tally.average_precision[worst.tag]
        shown = [
            GalleryImage(self._picture(seen.image), self.ids([seen.image])[0], [], wrong, missed)
            for seen, wrong, missed in (
                *((seen, [], [(name, seen.confidence)]) for seen in worst.missed),
                *((seen, [(name, seen.confidence)], []) for seen in worst.wrong),
            )
        ]
        told = f"On {support:,} of {len(self.store):,} pictures; AP {precision:.3f}."
        return Gallery(f"Hard tag: {name}", told, shown)
