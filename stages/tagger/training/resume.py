"""Where a training goes on: at its own last snapshot, or at that of one with other settings."""

import logging
from pathlib import Path

from tagger.core.errors import TaggerError, one_line
from tagger.training import snapshots
from tagger.training.learner import Learner
from tagger.training.schedule import Plan, Position
from tagger.training.snapshots import Content

_log = logging.getLogger(__name__)


def position(learner: Learner, plan: Plan, own: Content | None, folder: Path) -> Position:
    """Bring the learner where a snapshot was made, and return where that is.

    own: the snapshot of this very training, from the folder; without one, it is that of the recipe
        to start from, if any
    Raises TaggerError for a snapshot of another model, or of another version of the code.
    """
    if own:
        try:
            found = _taken_up(learner, own, folder)
        except TaggerError as error:
            raise TaggerError(f"{error} Or remove {folder} to begin anew.") from error
        _log.info(f"going on after step {found.step:,} of {plan.steps:,}")
        return found
    start = plan.recipe.resume_from
    if not start:
        return Position(per_epoch=plan.per_epoch)
    epoch = _taken_up(learner, snapshots.read(start), start).epoch
    step = round(epoch * plan.per_epoch)
    if step >= plan.steps:
        raise TaggerError(
            f"train.resume_from: {start} has {epoch:g} epochs behind it. Raise train.epochs, which "
            f"is {plan.recipe.epochs}."
        )
    _log.info(f"going on after {epoch:g} epochs with other settings, from {start}")
    return Position(step=step, per_epoch=plan.per_epoch)


def _taken_up(learner: Learner, content: Content, path: Path) -> Position:
    """Bring the learner where a snapshot was made, and return where that is."""
    try:
        found = Position(**content["position"])
        learner.load(content["learner"])
    except (KeyError, TypeError) as error:
        raise TaggerError(
            f"{path} is of another version of this code: {one_line(error)}. Go on with that one."
        ) from error
    return found
