"""Where a training goes on: at its own last snapshot, or at that of one with other settings."""

import logging
from pathlib import Path

from tagger.core.errors import TaggerError, one_line
from tagger.training import snapshots
from tagger.training.learner import TrainState
from tagger.training.schedule import Position, Schedule
from tagger.training.snapshots import SnapshotContent

_log = logging.getLogger(__name__)


def restore(
    state: TrainState, schedule: Schedule, own: SnapshotContent | None, folder: Path
) -> Position:
    """Bring the learner where a snapshot was made, and return where that is.

    own: the snapshot of this very training, from the folder; without one, it is that of the recipe
        to start from, if any
    Raises TaggerError for a snapshot of another model, or of another version of the code.
    """
    if own:
        try:
            found = _taken_up(state, own, folder)
        except TaggerError as error:
            raise TaggerError(f"{error} Or remove {folder} to begin anew.") from error
        _log.info(f"going on after step {found.step:,} of {schedule.steps:,}")
        return found
    start = schedule.params.resume_from
    if not start:
        return Position(steps_per_epoch=schedule.steps_per_epoch)
    epoch = _taken_up(state, snapshots.read(start), start).epoch
    step = round(epoch * schedule.steps_per_epoch)
    if step >= schedule.steps:
        raise TaggerError(
            f"train.resume_from: {start} has {epoch:g} epochs behind it. Raise train.epochs, which "
            f"is {schedule.params.epochs}."
        )
    _log.info(f"going on after {epoch:g} epochs with other settings, from {start}")
    return Position(step=step, steps_per_epoch=schedule.steps_per_epoch)


def _taken_up(learner: TrainState, content: SnapshotContent, path: Path) -> Position:
    """Bring the learner where a snapshot was made, and return where that is."""
    try:
        found = Position(**content["position"])
        learner.load_state_dict(content["learner"])
    except (KeyError, TypeError) as error:
        raise TaggerError(
            f"{path} is of another version of this code: {one_line(error)}. Go on with that one."
        ) from error
    return found
