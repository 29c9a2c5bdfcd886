"""The position from which a training resumes: its own last snapshot, or `train.resume_from`."""

import logging
from pathlib import Path

from tagger.core.errors import TaggerError, one_line
from tagger.training import snapshots
from tagger.training.schedule import Position, Schedule
from tagger.training.snapshots import SnapshotContent
from tagger.training.train_state import TrainState

_log = logging.getLogger(__name__)


def restore(
    state: TrainState, schedule: Schedule, snapshot: SnapshotContent | None, folder: Path
) -> Position:
    """Load a snapshot into the state, and return the position at which it was taken.

    snapshot: the newest of this very training, from the folder; None: use `train.resume_from`
    Raises TaggerError if the snapshot is of another model or another version of the code.
    """
    if snapshot:
        try:
            position = _load(state, snapshot, folder)
        except TaggerError as error:
            raise TaggerError(f"{error} Or remove {folder} to start again.") from error
        _log.info(f"resuming after step {position.step:,} of {schedule.steps:,}")
        return position
    source = schedule.params.resume_from
    if not source:
        return Position(steps_per_epoch=schedule.steps_per_epoch)
    epoch = _load(state, snapshots.read(source), source).epoch
    step = round(epoch * schedule.steps_per_epoch)
    if step >= schedule.steps:
        raise TaggerError(
            f"train.resume_from: {source} was taken after {epoch:g} epochs. Raise train.epochs, "
            f"which is {schedule.params.epochs}."
        )
    _log.info(f"resuming after {epoch:g} epochs with other settings, from {source}")
    return Position(step=step, steps_per_epoch=schedule.steps_per_epoch)


def _load(state: TrainState, snapshot: SnapshotContent, path: Path) -> Position:
    try:
        position = Position(**snapshot["position"])
        state.load_state_dict(snapshot["state"])
    except (KeyError, TypeError) as error:
        raise TaggerError(
            f"{path} is of another version of this code: {one_line(error)}. Use that version."
        ) from error
    return position
