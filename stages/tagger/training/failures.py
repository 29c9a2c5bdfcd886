"""Unreadable images and non-finite steps: recorded, logged, and refused if there are too many."""

import logging
from pathlib import Path

from tagger.core.errors import TaggerError
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.params import TrainParams
from tagger.training.schedule import Position

_LISTED = 8  # images of a skipped step
_log = logging.getLogger(__name__)


def record_unreadable(batch: Batch, position: Position, split: Split, max_fraction: float) -> None:
    """Record the unreadable images of a batch. Raises TaggerError if there are too many."""
    position.failures |= batch.failures
    if batch.failures and len(position.failures) > max_fraction * len(split):
        row, reason = next(iter(position.failures.items()))
        raise TaggerError(
            f"{len(position.failures):,} of {len(split):,} training images cannot be read, "
            f"{split.locations[row].path} first: {reason}. Run prepare again, or raise "
            "train.max_unreadable."
        )


def record_nonfinite(batch: Batch, position: Position, split: Split, loss: float) -> None:
    """Record and log a skipped step with its images."""
    position.nonfinite_steps += 1
    paths = ", ".join(split.locations[row].path for row in batch.rows[:_LISTED])
    more = f" and {len(batch.rows) - _LISTED} more" if len(batch.rows) > _LISTED else ""
    _log.warning(
        f"step {position.step + 1:,} is skipped: its loss ({loss:g}) or gradient is not finite. "
        f"Images: {paths}{more}"
    )


def too_many_nonfinite(
    position: Position, params: TrainParams, snapshot: Path | None
) -> TaggerError:
    return TaggerError(
        f"{position.nonfinite_steps} steps had a non-finite loss or gradient, more than "
        f"train.max_nonfinite_steps ({params.max_nonfinite_steps}). Lower the preset's "
        "learning_rate, or set train.precision: fp32, and resume with "
        f"train.resume_from: {snapshot}"
    )
