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
from tagger.models.head_transfer import TransferredTag
from tagger.models.predict import Predictions
from tagger.system import distributed, progress
from tagger.system.signals import stop_on_signal
from tagger.training.learner import Portion, TrainState
from tagger.training.schedule import Metrics, Position, Schedule
from tagger.training.snapshots import Snapshots
from tagger.training.throughput import Throughput
from tagger.training.validation import Validator

Weights = dict[str, Tensor]

_TOLD = 8  # pictures of a bad step
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What a training came to at a step."""

    metrics: Metrics  # that follow from seed and data alone: step, epoch, loss, ...
    throughput: Metrics
    line: str  # as a person would read it
    predictions: Predictions  # on the validation part
    weights: Weights  # those judged; empty where they are not to be kept, or by another process
    best: bool
    last: bool
    keep: bool


@dataclass
class Trainer:
    """All that takes part in a training, ready to start or to go on."""

    model: nn.Module
    state: TrainState
    split: Split
    batches: DataLoader[Any]
    preprocess: Preprocess
    augment: BatchAugmentation
    validator: Validator
    schedule: Schedule
    position: Position
    snapshots: Snapshots
    transferred_tags: Sequence[
        TransferredTag
    ] = ()  # what became of the tags of the model it starts from
    lacking: int = 0  # training pictures known to be unreadable before the first step

    @property
    def unreadable(self) -> int:
        """How many training pictures could not be read so far."""
        return self.lacking + len(self.position.failures)

    def train(self) -> Iterator[Validation]:
        """Train, and yield every judgement.

        Raises TaggerError where too many pictures cannot be read, or too many steps are bad, and
        KeyboardInterrupt, after a last snapshot, where a signal asks to stop.
        """
        pace = Throughput(self.state.group.device)
        self._freeze()
        with stop_on_signal() as asked:
            yield from self._steps(pace, asked.is_set)
        self.snapshots.wait()

    def _steps(self, pace: Throughput, asked: Callable[[], bool]) -> Iterator[Validation]:
        position, plan = self.position, self.schedule
        for batch in pace.time_waiting(progress.track(self.batches, "training")):
            if plan.frozen_stages(position.step) != plan.frozen_stages(max(0, position.step - 1)):
                self._freeze()
            snapshot, stop = self._step(batch, pace, asked())
            if plan.validates_after(position.step):
                with pace.paused():
                    judgement = self._validate(pace)
                    yield judgement
                    freezing.freeze(self.state.model, plan.frozen_stages(position.step))
                    self._save()
                pace.restart()
                if judgement.last:
                    return
            elif snapshot or stop or plan.is_due(plan.params.snapshot_every, position.step):
                self._save()
                pace.snapshot_saved()
            if stop:
                self.snapshots.wait()
                _log.info(f"stopped after step {position.step:,}: `dvc repro` goes on from there")
                raise KeyboardInterrupt

    def _freeze(self) -> None:
        frozen = self.schedule.frozen_stages(self.position.step)
        if self.schedule.backbone_stages:
            _log.info(
                f"of {self.schedule.backbone_stages} stages of the backbone the first {frozen} are frozen"
            )
        freezing.freeze(self.state.model, frozen)
        self.state.wrap()

    def _step(self, batch: Batch, pace: Throughput, asked: bool) -> tuple[bool, bool]:
        """Take one step; return whether a snapshot is due, and whether some process is to stop."""
        plan, position, group = self.schedule, self.position, self.state.group
        step = position.step
        self._note_failures(batch)
        portion = Portion(len(batch.rows), plan.batch_size, lambda *rows: self._micro(batch, *rows))
        loss, norm = self.state.gradient(portion, step)
        every = plan.params.snapshot_every
        due = every.unit == "minute" and pace.minutes_since_snapshot() >= every.number
        flags = loss.new_tensor([group.is_main and due, asked])
        told = group.all_reduce(torch.cat([torch.stack([loss, norm / group.world.size]), flags]))
        value, length, snapshot, stop = told.tolist()
        if math.isfinite(value) and math.isfinite(length):
            position.add_step(
                value, length, self.state.update(norm, plan.fraction_of_peak(step), step)
            )
        else:
            self.state.skip()
            if not (math.isfinite(value) and self.state.overflows()):
                self._log_nonfinite_step(batch, value)
        position.step += 1
        pace.step(plan.batch_size)
        if pace.minute_passed():
            line = pace.summary(plan.steps - position.step)
            _log.info(f"step {step + 1:,}/{plan.steps:,}  loss {value:.2f}  {line}")
        return bool(snapshot), bool(stop)

    def _micro(self, batch: Batch, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of some pictures of a batch on the device, augmented."""
        some = batch._replace(pixels=batch.pixels[start:end], targets=batch.targets[start:end])
        inputs, targets = loader.to_device(some, self.state.group.device, self.preprocess)
        rank = self.state.group.world.rank
        return self.augment(inputs, targets, self.position.step, rank, start)

    def _note_failures(self, batch: Batch) -> None:
        failures = self.position.failures
        failures |= batch.failures
        if batch.failures and len(failures) > self.schedule.params.max_unreadable * len(self.split):
            row, reason = next(iter(failures.items()))
            raise TaggerError(
                f"{len(failures):,} of {len(self.split):,} training pictures cannot be read, "
                f"{self.split.locations[row].path} first: {reason}. Run prepare again, or raise "
                "train.max_unreadable."
            )

    def _log_nonfinite_step(self, batch: Batch, loss: float) -> None:
        position, most = self.position, self.schedule.params.max_nonfinite_steps
        position.nonfinite_steps += 1
        shown = ", ".join(self.split.locations[row].path for row in batch.rows[:_TOLD])
        more = f" and {len(batch.rows) - _TOLD} more" if len(batch.rows) > _TOLD else ""
        _log.warning(
            f"step {position.step + 1:,}: the loss is {loss:g}, or its gradient no number; nothing "
            f"is learned from it. Pictures: {shown}{more}"
        )
        if position.nonfinite_steps > most:
            self._save()
            self.snapshots.wait()
            raise TaggerError(
                f"In {position.nonfinite_steps} steps the loss or its gradient was no number, in more "
                f"than train.max_nonfinite_steps ({most}). Lower the preset's learning_rate, or set "
                f"train.precision: fp32, and go on with train.resume_from: {self.snapshots.newest}"
            )

    def _validate(self, pace: Throughput) -> Validation:
        plan, position = self.schedule, self.position
        for others in self.state.group.all_gather(position.failures):
            position.failures |= others
        measured, rest = pace.metrics(), pace.summary(plan.steps - position.step)
        figures, predictions = self.validator(self.state.eval_model)
        highest = max((past["macro_ap"] for past in position.history), default=0.0)
        told = position.add_validation(figures)
        best, last = not plan.validations_since_best(position), plan.is_over(position)
        keep = plan.keeps_after(position.step)
        return Validation(
            told,
            measured,
            f"epoch {told['epoch']:g}/{plan.params.epochs}  loss {told['loss']:.2f}  "
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
        leads = self.state.group.is_main
        learned: Weights = distributed.full_state_dict(
            self.state.eval_model.state_dict(), needed=leads
        )
        if not leads:
            return {}
        if self.state.model is self.model:
            return learned
        (path,) = (n for n, module in self.model.named_modules() if module is self.state.model)
        rest: Weights = distributed.full_state_dict(self.model.state_dict())
        return rest | {f"{path}.{name}": value for name, value in learned.items()}

    def _save(self) -> None:
        self.snapshots.wait()  # for what the next copy overwrites
        content = {"learner": self.state.state_dict(), "position": asdict(self.position)}
        if self.state.group.is_main:
            self.snapshots.save(self.position.step, content)
