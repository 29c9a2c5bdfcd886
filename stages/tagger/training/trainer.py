"""The training loop: steps, judgements between them, and snapshots to go on from."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tagger.core.errors import TaggerError
from tagger.images import loader
from tagger.images.augment import BatchAugmentation
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.images.preprocess import Preprocess
from tagger.models import freezing
from tagger.models.head_transfer import Carried
from tagger.models.predict import Predictions
from tagger.system import distributed, progress
from tagger.system.signals import stop_on_signal
from tagger.training.learner import Learner, Portion
from tagger.training.schedule import Metrics, Plan, Position
from tagger.training.snapshots import Snapshots
from tagger.training.throughput import Pace
from tagger.training.validation import Judge

Weights = dict[str, Tensor]

_TOLD = 8  # pictures of a bad step
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What a training came to at a step."""

    figures: Metrics  # that follow from seed and data alone: step, epoch, loss, ...
    pace: Metrics
    line: str  # as a person would read it
    predictions: Predictions  # on the validation part
    weights: Weights  # those judged; empty where they are not to be kept, or by another process
    best: bool
    last: bool
    keep: bool


@dataclass
class Training:
    """All that takes part in a training, ready to start or to go on."""

    model: nn.Module
    learner: Learner
    part: Split
    batches: DataLoader[Any]
    preprocess: Preprocess
    augment: BatchAugmentation
    judge: Judge
    plan: Plan
    position: Position
    snapshots: Snapshots
    carried: Sequence[Carried] = ()  # what became of the tags of the model it starts from
    lacking: int = 0  # training pictures known to be unreadable before the first step

    @property
    def left_out(self) -> int:
        """How many training pictures could not be read so far."""
        return self.lacking + len(self.position.failures)

    def run(self) -> Iterator[Judgement]:
        """Train, and yield every judgement.

        Raises TaggerError where too many pictures cannot be read, or too many steps are bad, and
        KeyboardInterrupt, after a last snapshot, where a signal asks to stop.
        """
        pace = Pace(self.learner.group.device)
        self._freeze()
        with stop_on_signal() as asked:
            yield from self._steps(pace, asked.is_set)
        self.snapshots.wait()

    def _steps(self, pace: Pace, asked: Callable[[], bool]) -> Iterator[Judgement]:
        position, plan = self.position, self.plan
        for batch in pace.timed(progress.track(self.batches, "training")):
            if plan.frozen(position.step) != plan.frozen(max(0, position.step - 1)):
                self._freeze()
            snapshot, stop = self._step(batch, pace, asked())
            if plan.judges(position.step):
                with pace.aside():
                    judgement = self._judge(pace)
                    yield judgement
                    freezing.freeze(self.learner.model, plan.frozen(position.step))
                    self._save()
                pace.restart()
                if judgement.last:
                    return
            elif snapshot or stop or plan.due(plan.recipe.snapshot_every, position.step):
                self._save()
                pace.snapshot_saved()
            if stop:
                self.snapshots.wait()
                _log.info(f"stopped after step {position.step:,}: `dvc repro` goes on from there")
                raise KeyboardInterrupt

    def _freeze(self) -> None:
        frozen = self.plan.frozen(self.position.step)
        if self.plan.stages:
            _log.info(f"of {self.plan.stages} stages of the backbone the first {frozen} are frozen")
        freezing.freeze(self.learner.model, frozen)
        self.learner.wrap()

    def _step(self, batch: Batch, pace: Pace, asked: bool) -> tuple[bool, bool]:
        """Take one step; return whether a snapshot is due, and whether some process is to stop."""
        plan, position, group = self.plan, self.position, self.learner.group
        step = position.step
        self._note_failures(batch)
        portion = Portion(len(batch.rows), plan.batch_size, lambda *rows: self._micro(batch, *rows))
        loss, norm = self.learner.gradient(portion, step)
        every = plan.recipe.snapshot_every
        due = every.unit == "minute" and pace.minutes_since_snapshot() >= every.number
        flags = loss.new_tensor([group.is_main and due, asked])
        told = group.all_reduce(torch.cat([torch.stack([loss, norm / group.world.size]), flags]))
        value, length, snapshot, stop = told.tolist()
        if math.isfinite(value) and math.isfinite(length):
            position.good(value, length, self.learner.move(norm, plan.share_of_peak(step), step))
        else:
            self.learner.give_up()
            if not (math.isfinite(value) and self.learner.overflows()):
                self._note_bad_step(batch, value)
        position.step += 1
        pace.step(plan.batch_size)
        if pace.minute_passed():
            line = pace.line(plan.steps - position.step)
            _log.info(f"step {step + 1:,}/{plan.steps:,}  loss {value:.2f}  {line}")
        return bool(snapshot), bool(stop)

    def _micro(self, batch: Batch, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of some pictures of a batch on the device, augmented."""
        some = batch._replace(pixels=batch.pixels[start:end], targets=batch.targets[start:end])
        inputs, targets = loader.to_device(some, self.learner.group.device, self.preprocess)
        rank = self.learner.group.world.rank
        return self.augment(inputs, targets, self.position.step, rank, start)

    def _note_failures(self, batch: Batch) -> None:
        failures = self.position.failures
        failures |= batch.failures
        if batch.failures and len(failures) > self.plan.recipe.max_unreadable * len(self.part):
            row, reason = next(iter(failures.items()))
            raise TaggerError(
                f"{len(failures):,} of {len(self.part):,} training pictures cannot be read, "
                f"{self.part.locations[row].path} first: {reason}. Run prepare again, or raise "
                "train.max_unreadable."
            )

    def _note_bad_step(self, batch: Batch, loss: float) -> None:
        position, most = self.position, self.plan.recipe.max_bad_steps
        position.bad_steps += 1
        shown = ", ".join(self.part.locations[row].path for row in batch.rows[:_TOLD])
        more = f" and {len(batch.rows) - _TOLD} more" if len(batch.rows) > _TOLD else ""
        _log.warning(
            f"step {position.step + 1:,}: the loss is {loss:g}, or its gradient no number; nothing "
            f"is learned from it. Pictures: {shown}{more}"
        )
        if position.bad_steps > most:
            self._save()
            self.snapshots.wait()
            raise TaggerError(
                f"In {position.bad_steps} steps the loss or its gradient was no number, in more "
                f"than train.max_bad_steps ({most}). Lower the preset's learning_rate, or set "
                f"train.precision: fp32, and go on with train.resume_from: {self.snapshots.last}"
            )

    def _judge(self, pace: Pace) -> Judgement:
        plan, position = self.plan, self.position
        for others in self.learner.group.all_gather(position.failures):
            position.failures |= others
        measured, rest = pace.figures(), pace.line(plan.steps - position.step)
        figures, predictions = self.judge(self.learner.judged)
        highest = max((past["macro_ap"] for past in position.history), default=0.0)
        told = position.judged(figures)
        best, last = not plan.since_best(position), plan.over(position)
        keep = plan.keeps(position.step)
        return Judgement(
            told,
            measured,
            f"epoch {told['epoch']:g}/{plan.recipe.epochs}  loss {told['loss']:.2f}  "
            f"macro AP {told['macro_ap']:.3f} ({told['macro_ap'] - highest:+.3f})  {rest}",
            predictions,
            self._weights() if last or keep or best else {},
            best=best,
            last=last,
            keep=keep,
        )

    def _weights(self) -> Weights:
        """Return the weights of the whole model, of which perhaps the head alone learns.

        The leading process keeps them. The others help to put them together, and get none.
        """
        leads = self.learner.group.is_main
        learned: Weights = distributed.full_state_dict(
            self.learner.judged.state_dict(), needed=leads
        )
        if not leads:
            return {}
        if self.learner.model is self.model:
            return learned
        (path,) = (n for n, module in self.model.named_modules() if module is self.learner.model)
        rest: Weights = distributed.full_state_dict(self.model.state_dict())
        return rest | {f"{path}.{name}": value for name, value in learned.items()}

    def _save(self) -> None:
        self.snapshots.wait()  # for what the next copy overwrites
        content = {"learner": self.learner.state(), "position": asdict(self.position)}
        if self.learner.group.is_main:
            self.snapshots.save(self.position.step, content)
