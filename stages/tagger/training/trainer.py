"""The training loop: optimizer steps, validations between them, and snapshots to resume from."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.utils.data import DataLoader

from tagger.images import loader
from tagger.images.augment import BatchAugmentation
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.images.preprocess import Preprocess
from tagger.models import freezing
from tagger.models.head_transfer import TransferredTag
from tagger.params import TrainParams
from tagger.system import distributed, progress
from tagger.system.distributed import ProcessGroup
from tagger.system.signals import stop_on_signal
from tagger.training import failures, optimizer
from tagger.training.losses import LossFunction
from tagger.training.micro_batch import black_batch, split_batch
from tagger.training.schedule import Position, Schedule
from tagger.training.snapshots import Snapshots
from tagger.training.throughput import Throughput
from tagger.training.train_state import TrainState, seed_torch
from tagger.training.validation import Validation, ValidationLogger, Validator

_TENSORS_PER_WEIGHT = 4  # that a step allocates for good: two moments, EMA, a sum of gradients
_log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Everything that takes part in a training, ready to start or to resume."""

    params: TrainParams
    seed: int
    group: ProcessGroup
    model: nn.Module  # the whole model; `state.model` is what trains of it
    state: TrainState
    loss: LossFunction
    split: Split  # the readable training images, as far as that is known
    batches: DataLoader[Any]  # from the position on, to the end
    preprocess: Preprocess
    augment: BatchAugmentation
    validator: Validator
    schedule: Schedule
    position: Position
    snapshots: Snapshots
    transferred_tags: Sequence[TransferredTag] = ()
    unreadable_at_start: int = 0  # training images found unreadable before the first step
    throughput: Throughput = field(init=False)

    def __post_init__(self) -> None:
        self.throughput = Throughput(self.group.device)

    def train(self, logger: ValidationLogger | None = None) -> None:
        """Train until the last step, or until patience runs out.

        logger: of the main process; None in the others

        Raises TaggerError if too many images are unreadable or too many steps are not finite, and
        KeyboardInterrupt, after a last snapshot, if a signal asks to stop.
        """
        if self.state.micro_batch.size is None and self.computes_in_step():
            self.find_micro_batch()
        self.freeze_stages()
        self.throughput = Throughput(self.group.device)
        with stop_on_signal() as signalled:
            for batch in self.throughput.time_waiting(progress.track(self.batches, "training")):
                if self.schedule.unfreezes_before(self.position.step):
                    self.freeze_stages()
                self.train_step(batch)
                stopped = self.group.any(signalled.is_set())
                if self.schedule.validates_after(self.position.step):
                    self.validate(logger)
                    self.save_snapshot()
                    self.throughput.restart()
                    if self.schedule.is_over(self.position):
                        break
                elif stopped or self.snapshot_is_due():
                    self.save_snapshot()
                if stopped:
                    self.snapshots.wait()
                    _log.info(f"stopped after step {self.position.step:,}; `dvc repro` resumes")
                    raise KeyboardInterrupt
        self.snapshots.wait()

    def train_step(self, batch: Batch) -> None:
        """Take one optimizer step on a batch, or skip it if its loss or gradient is not finite."""
        step, state = self.position.step, self.state
        failures.record_unreadable(batch, self.position, self.split, self.params.max_unreadable)
        buffers = state.copy_buffers()
        loss = self.accumulate_in_memory(batch, buffers)
        state.scaler.unscale_(state.optimizer)
        norm = state.gradient_norm()
        loss_value, norm_value = torch.stack([self.group.all_reduce(loss), norm]).tolist()
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            fraction = self.schedule.fraction_of_peak(step)
            learning_rate = optimizer.set_learning_rate(state.optimizer, fraction)
            if (largest_norm := self.params.clip_grad_norm) is not None:
                clip_grads_with_norm_(state.trainable_parameters(), largest_norm, norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            if state.ema:
                state.ema.update(state.model, step=step + 1)
            self.position.add_step(loss_value, norm_value, learning_rate)
        else:
            state.restore_buffers(buffers)
            self.skip_step(batch, loss_value)
        self.position.step += 1
        self.throughput.add_step(self.schedule.batch_size)
        if self.throughput.minute_passed():
            left = self.throughput.summary(self.schedule.steps - self.position.step)
            _log.info(f"step {step + 1:,}/{self.schedule.steps:,}  loss {loss_value:.2f}  {left}")

    def accumulate(self, batch: Batch) -> Tensor:
        """Compute the gradient of a batch in micro-batches; return the loss.

        The loss is this process's part of the mean over the batch of all processes.
        """
        step, rank = self.position.step, self.group.world.rank
        seed_torch(self.seed, step, rank)
        self.state.optimizer.zero_grad()
        total = torch.zeros((), device=self.group.device)
        for start, micro_batch in split_batch(batch, self.state.micro_batch.size):
            inputs, targets = loader.to_device(micro_batch, self.group.device, self.preprocess)
            inputs, targets = self.augment(inputs, targets, step, rank, start)
            last = start + len(micro_batch.rows) == len(batch.rows)
            with nullcontext() if last else self.state.no_gradient_sync():
                with self.state.autocast():
                    logits = self.state.network(inputs)
                fraction = len(micro_batch.rows) / self.schedule.batch_size
                loss = self.loss(logits, targets) * fraction
                # The processes average their gradients, and the gradient is their sum.
                scaled: Any = self.state.scaler.scale(loss * self.group.world.size)
                scaled.backward()
            total += loss.detach()
        return total

    def accumulate_in_memory(self, batch: Batch, buffers: list[Tensor]) -> Tensor:
        """Accumulate a batch, again with half the micro-batch if memory does not suffice.

        buffers: a copy of those before the batch
        """
        micro_batch = self.state.micro_batch
        while True:
            try:
                return self.accumulate(batch)
            except torch.OutOfMemoryError:
                pass
            self.state.restore_buffers(buffers)
            self.state.optimizer.zero_grad()
            micro_batch.halve(micro_batch.size or len(batch.rows))

    def skip_step(self, batch: Batch, loss: float) -> None:
        """Discard a gradient, and record the step unless only the scale of fp16 was too large.

        Raises TaggerError, after a snapshot, if more than `train.max_nonfinite_steps` are recorded.
        """
        scaler = self.state.scaler
        self.state.optimizer.zero_grad()
        if scaler.is_enabled():
            scaler.update()
            if math.isfinite(loss) and scaler.get_scale() > 1:
                return
        failures.record_nonfinite(batch, self.position, self.split, loss)
        if self.position.nonfinite_steps > self.params.max_nonfinite_steps:
            self.save_snapshot()
            self.snapshots.wait()
            raise failures.too_many_nonfinite(self.position, self.params, self.snapshots.newest)

    def validate(self, logger: ValidationLogger | None) -> None:
        """Validate the model, and give the metrics and the weights to keep to the logger."""
        position, schedule = self.position, self.schedule
        for unreadable in self.group.all_gather(position.failures):
            position.failures |= unreadable
        throughput = self.throughput.metrics()
        time_left = self.throughput.summary(schedule.steps - position.step)
        best_ap = max((record["macro_ap"] for record in position.history), default=0.0)
        metrics, predictions = self.validator(self.state.eval_model)
        record = position.add_validation(metrics)
        summary = (
            f"epoch {record['epoch']:g}/{self.params.epochs}  loss {record['loss']:.2f}  "
            f"macro AP {record['macro_ap']:.3f} ({record['macro_ap'] - best_ap:+.3f})  {time_left}"
        )
        checkpoints = schedule.checkpoints(position)
        weights = self.state.full_weights(self.model) if checkpoints else {}
        if logger:
            logger.log_validation(
                Validation(record, throughput, summary, predictions, checkpoints, weights)
            )
        freezing.freeze(self.state.model, schedule.frozen_stages(position.step))

    def save_snapshot(self) -> None:
        """Copy the state of all processes, and write it while training continues."""
        self.snapshots.wait()  # for the copy that the next one overwrites
        content = {"state": self.state.state_dict(), "position": asdict(self.position)}
        if self.group.is_main:
            self.snapshots.save(self.position.step, content)

    def snapshot_is_due(self) -> bool:
        every = self.params.snapshot_every
        if every.unit == "minute":  # by the clock of the main process
            late = self.snapshots.minutes_since_save() >= every.number
            return self.group.any(self.group.is_main and late)
        return self.schedule.is_due(every, self.position.step)

    def freeze_stages(self) -> None:
        """Freeze the stages of the backbone that the schedule freezes now."""
        frozen = self.schedule.frozen_stages(self.position.step)
        if stages := self.schedule.backbone_stages:
            _log.info(f"{frozen} of {stages} stages of the backbone are frozen")
        self.state.freeze_stages(frozen)

    def computes_in_step(self) -> bool:
        """Whether processes on GPUs compute images together, so that none can halve a batch."""
        on_gpus = self.group.world.size > 1 and self.group.device.type == "cuda"
        return on_gpus and not self.params.cache_embeddings

    def find_micro_batch(self) -> None:
        """Set the micro-batch to what fits into memory in every process, by a black batch."""
        micro_batch, (rank, size) = self.state.micro_batch, self.group.rank_and_size
        images = len(range(rank, self.schedule.batch_size, size))
        side = max(self.preprocess.size, *self.params.augment.sizes, 1)
        batch = black_batch(images, side, self.split.labels.shape[1])
        weights = self.state.trainable_parameters()
        ballast = [torch.empty_like(w) for w in weights for _ in range(_TENSORS_PER_WEIGHT)]
        buffers = self.state.copy_buffers()
        micro_batch.can_halve = not distributed.is_sharded(self.state.model)
        self.accumulate_in_memory(batch, buffers)
        micro_batch.can_halve = size == 1
        del ballast
        self.state.restore_buffers(buffers)
        self.state.optimizer.zero_grad()
        sizes = self.group.all_gather(micro_batch.size)
        micro_batch.size = min((size for size in sizes if size), default=None)

    @property
    def unreadable(self) -> int:
        """The number of training images found unreadable so far."""
        return self.unreadable_at_start + len(self.position.failures)
