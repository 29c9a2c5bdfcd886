"""What a person should look at after an evaluation: images, tags and labels."""

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

SHOWN = 12  # images of a gallery


@dataclass(frozen=True)
class SplitInspection:
    """The predictions of a split, with its images and labels."""

    name: str  # of the split
    store: PredictionStore
    split: Split
    tags: Sequence[Tag]
    thresholds: Floats  # (tags,)
    result: EvaluationResult
    background: Colour

    @cached_property
    def mistakes(self) -> Mistakes:
        return mistakes.find(self.store, self.thresholds)

    @cached_property
    def confusions(self) -> list[Confusion]:
        return confusions.find(self.mistakes, self.tags, self.result.counts.support)

    @cached_property
    def label_issues(self) -> LabelIssues:
        return label_issues.find(self.store)

    def label_issue_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the most certain label issues, under `label_issues.HEADER`."""
        files = [self.split.locations[row].path for row in self.store.rows.tolist()]
        ids = self.ids(range(len(self.store)))
        return label_issues.rows(self.name, self.label_issues.most_certain, ids, files, self.tags)

    def sheet(self) -> Image.Image:
        """Return a contact sheet of the first images with their predictions."""
        count = min(SHOWN, len(self.store))
        first = next((tile for _, tile in self.store.tiles()), np.empty((0, 0), np.uint16))
        scores = quantized_logits.probability_table()[first[:, :count].T].astype(np.float32)
        labels = self.store.labels[:count].toarray()
        images = [self._open(image) for image in range(count)]
        names = [tag.name for tag in self.tags]
        return contact_sheet.prediction_sheet(images, scores, labels, names, self.thresholds)

    def galleries(self) -> Iterator[Gallery]:
        """Yield the galleries of the report, whose images are opened one after the other."""
        first = list(range(min(SHOWN, len(self.store))))
        yield Gallery("Predictions", "The first images of the split.", self._gallery(first))
        loss = self.result.ranking.loss
        hardest = np.argsort(-loss, kind="stable")[:SHOWN].tolist()
        yield Gallery(
            "Highest loss",
            "The images that surprise the model most: they are hard, or their labels are wrong.",
            self._gallery(hardest, [f"loss {loss[image]:.1f}" for image in hardest]),
        )
        for hard_tag in mistakes.hard_tags(self.store, self.result.counts):
            yield self._hard_tag_gallery(hard_tag)

    def ids(self, images: Iterable[int]) -> list[str]:
        """Return the ids of images, or their paths if the split has no ids."""
        rows = self.store.rows[np.fromiter(images, np.int64)]
        if self.split.ids is None:
            return [self.split.locations[row].path for row in rows.tolist()]
        return [str(name) for name in self.split.ids.take(rows).to_pylist()]

    def _gallery(
        self, images: Sequence[int], notes: Sequence[str] | None = None
    ) -> list[GalleryImage]:
        predictions = mistakes.image_mistakes(self.store, self.mistakes, images)
        notes = notes or [""] * len(predictions)
        return [
            GalleryImage(
                self._open(prediction.image),
                caption,
                right=self._named(prediction.right),
                wrong=self._named(prediction.wrong),
                missed=self._named(prediction.missed),
                note=note,
            )
            for prediction, caption, note in zip(predictions, self.ids(images), notes, strict=True)
        ]

    def _named(self, pairs: Sequence[TagConfidence]) -> list[tuple[str, float]]:
        return [(self.tags[pair.tag].name, pair.confidence) for pair in pairs]

    def _open(self, image: int) -> Image.Image | None:
        location = self.split.locations[int(self.store.rows[image])]
        return decode.open_rgb_or_none(location, self.background)

    def _hard_tag_gallery(self, hard_tag: HardTag) -> Gallery:
        counts, name = self.result.counts, self.tags[hard_tag.tag].name
        support = counts.support[hard_tag.tag]
        precision = counts.average_precision[hard_tag.tag]
        confidences = (
            *((pair, [], [(name, pair.confidence)]) for pair in hard_tag.missed),
            *((pair, [(name, pair.confidence)], []) for pair in hard_tag.wrong),
        )
        images = [
            GalleryImage(self._open(pair.image), self.ids([pair.image])[0], [], wrong, missed)
            for pair, wrong, missed in confidences
        ]
        explanation = f"On {support:,} of {len(self.store):,} images; AP {precision:.3f}."
        return Gallery(f"Hard tag: {name}", explanation, images)
