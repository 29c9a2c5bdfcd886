"""What a person should look at after an evaluation: pictures, tags and labels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from tagger.core.vocabulary import Tag
from tagger.evaluation import confusions, label_issues, mistakes, quantized_logits
from tagger.evaluation.confusions import Pair
from tagger.evaluation.label_issues import LabelIssues
from tagger.evaluation.mistakes import Mistakes, Said, Worst
from tagger.evaluation.prediction_store import PredictionStore
from tagger.evaluation.quantized_logits import Floats
from tagger.evaluation.report.html_page import Gallery, Shown
from tagger.evaluation.result import Judged
from tagger.images import contact_sheet, decode
from tagger.images.dataset import Split
from tagger.images.location import Colour

SHOWN = 12  # pictures of a gallery


@dataclass(frozen=True)
class Inspection:
    """The predictions of a part, and where to find what they are of."""

    name: str  # of the part
    scored: PredictionStore
    part: Split
    tags: Sequence[Tag]
    limits: Floats  # (tags,), the thresholds
    judged: Judged
    background: Colour

    @cached_property
    def mistakes(self) -> Mistakes:
        return mistakes.of(self.scored, self.limits)

    @cached_property
    def confused(self) -> list[Pair]:
        return confusions.pairs(self.mistakes, self.tags, self.judged.tally.support)

    @cached_property
    def doubts(self) -> LabelIssues:
        return label_issues.find(self.scored)

    def doubted(self) -> Iterator[tuple[Any, ...]]:
        """Yield the surest labels in doubt, as `doubts.HEADER` names them."""
        everything = range(len(self.scored))
        files = [self.part.locations[row].path for row in self.scored.rows.tolist()]
        ids = self.ids(everything)
        return label_issues.rows(self.name, self.doubts.surest, ids, files, self.tags)

    def sheet(self) -> Image.Image:
        """Return the first pictures with what is said of each, drawn on one sheet."""
        count = min(SHOWN, len(self.scored))
        rows = self.scored.rows[:count]
        first = next((tile for _, tile in self.scored.tiles()), np.empty((0, 0), np.uint16))
        scores = quantized_logits.probabilities()[first[:, :count].T].astype(np.float32)
        truth = self.scored.labels[:count].toarray()
        pictures = [
            decode.open_rgb_or_none(self.part.locations[row], self.background)
            for row in rows.tolist()
        ]
        return contact_sheet.prediction_sheet(
            pictures, scores, truth, [tag.name for tag in self.tags], self.limits
        )

    def galleries(self) -> Iterator[Gallery]:
        loss = self.judged.ranking.loss
        first = list(range(min(SHOWN, len(self.scored))))
        yield Gallery("Predictions", "The first pictures of the part.", self._shown(first))
        hardest = np.argsort(-loss, kind="stable")[:SHOWN].tolist()
        yield Gallery(
            "Highest loss",
            "Pictures by which the model is most surprised: hard ones, or labelled wrongly.",
            self._shown(hardest, [f"loss {loss[picture]:.1f}" for picture in hardest]),
        )
        for worst in mistakes.worst(self.scored, self.judged.tally):
            yield self._of_tag(worst)

    def ids(self, pictures: Iterable[int]) -> list[str]:
        """Return the ids of pictures, or where they lie if the part has no ids."""
        rows = self.scored.rows[np.fromiter(pictures, np.int64)]
        if self.part.ids is None:
            return [self.part.locations[row].path for row in rows.tolist()]
        return [str(name) for name in self.part.ids.take(rows).to_pylist()]

    def _shown(self, pictures: Sequence[int], notes: Sequence[str] | None = None) -> list[Shown]:
        looked = mistakes.looked(self.scored, self.mistakes, pictures)
        captions = self.ids(pictures)
        return [
            Shown(
                self._picture(one.picture),
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

    def _said(self, said: Sequence[Said]) -> list[tuple[str, float]]:
        return [(self.tags[one.tag].name, one.confidence) for one in said]

    def _picture(self, picture: int) -> Image.Image | None:
        place = self.part.locations[int(self.scored.rows[picture])]
        return decode.open_rgb_or_none(place, self.background)

    def _of_tag(self, worst: Worst) -> Gallery:
        tally, name = self.judged.tally, self.tags[worst.tag].name
        support, precision = tally.support[worst.tag], tally.average_precision[worst.tag]
        shown = [
            Shown(self._picture(seen.picture), self.ids([seen.picture])[0], [], wrong, missed)
            for seen, wrong, missed in (
                *((seen, [], [(name, seen.confidence)]) for seen in worst.missed),
                *((seen, [(name, seen.confidence)], []) for seen in worst.wrong),
            )
        ]
        told = f"On {support:,} of {len(self.scored):,} pictures; AP {precision:.3f}."
        return Gallery(f"Hard tag: {name}", told, shown)
