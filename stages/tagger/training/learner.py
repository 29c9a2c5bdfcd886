"""A model that learns: one optimizer step after another, and the moving average of its weights."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tagger.core.errors import TaggerError, one_line
from tagger.params import Preset, TrainParams
from tagger.system import distributed
from tagger.system.distributed import ProcessGroup
from tagger.training import optimizer
from tagger.training.losses import LossFunction

_SCALE = 2.0**10  # of the loss in fp16, at first: sums over tags are large already
_PER_WEIGHT = 4  # of what a step allocates for good: two moments, the average, a sum of gradients
_NO_MEMORY = (
    "The memory of the device does not suffice for {} pictures at a time. Lower train.micro_batch "
    "or the image_size, or set train.gradient_checkpointing: true."
)
_STATE = ("model", "average", "optimizer", "kind", "scaler", "micro_batch")
_log = logging.getLogger(__name__)

# Inputs and targets of the pictures from one row of a batch to another.
Micro = Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass
class Portion:
    """The share of a batch that this process computes."""

    pictures: int
    total: int  # pictures of all processes
    micro: Micro


class TrainState:
    """What a step changes: weights, their average, the optimizer, the scale of the loss.

    Randomness within a step follows from its number, so that there is no state of it to keep.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        preset: Preset,
        recipe: TrainParams,
        group: ProcessGroup,
        seed: int,
    ) -> None:
        self.model = model
        self.loss = loss
        self.params = recipe
        self.group = group
        self.seed = seed
        self.micro_batch = recipe.micro_batch
        self.ema = ModelEmaV3(model, recipe.ema, use_warmup=True) if recipe.ema else None
        self.precision = _precision(recipe.precision, group.device)
        self.scaler = torch.amp.GradScaler(
            group.device.type, init_scale=_SCALE, enabled=self.precision == "fp16"
        )
        if recipe.parallel == "fsdp":
            for module in {self.eval_model, model}:
                distributed.shard_model(module, group)
        self.optimizer = optimizer.build_optimizer(model, preset, recipe)
        self.shared: nn.Module = model
        self.network: Callable[[Tensor], Tensor] = model
        self.statistics = list(model.buffers())
        self._before: list[Tensor] = []  # those before the last step
        self._copy: dict[str, Any] = {}  # of the state

    def wrap(self) -> None:
        """Take note of which weights learn."""
        self.shared = self.group.wrap(self.model, self.params.parallel)
        self.network = torch.compile(self.shared) if self.params.compile else self.shared

    @property
    def eval_model(self) -> nn.Module:
        """The model whose predictions count: the average, where there is one."""
        return self.ema.module if self.ema else self.model

    def gradient(self, batch: Portion, step: int) -> tuple[Tensor, Tensor]:
        """Leave the gradient of a batch in the weights; return its loss and its length.

        The loss is this process's part of that of the whole batch. Where memory does not
        suffice, the micro-batch is halved, and the same batch computed in more pieces.
        """
        while True:
            entropy = np.random.SeedSequence([self.seed, step, self.group.world.rank])
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
            before = [values.clone() for values in self.statistics]
            try:
                loss = self._backward(batch)
            except torch.OutOfMemoryError:
                if self.group.world.size > 1:
                    raise self._no_memory(batch) from None
                self._restore(before)
                self._halve(batch)
                continue
            self.scaler.unscale_(self.optimizer)
            norm = get_total_norm([w.grad for w in self._learning() if w.grad is not None])
            self._before = before
            return loss, norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def find_micro_batch(self, inputs: Tensor, targets: Tensor, total: int) -> None:
        """Find how many pictures fit at a time, where processes must agree before they begin.

        inputs, targets: of this process's share of the largest batch
        """
        ballast = [torch.empty_like(w) for w in self._learning() for _ in range(_PER_WEIGHT)]
        before = [values.clone() for values in self.statistics]
        batch = Portion(
            len(inputs), total, lambda start, end: (inputs[start:end], targets[start:end])
        )
        while True:
            try:
                self._backward(batch)
                break
            except torch.OutOfMemoryError:
                if distributed.is_sharded(self.model):  # the others wait in the middle of the model
                    raise self._no_memory(batch) from None
                self._halve(batch)
        del ballast
        self._restore(before)
        self.optimizer.zero_grad()
        fitting = self.group.all_gather(self.micro_batch)
        self.micro_batch = min((count for count in fitting if count), default=None)

    def _backward(self, batch: Portion) -> Tensor:
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.group.device)
        pieces = _pieces(batch.pictures, self.micro_batch or batch.pictures)
        for start, end in pieces:
            inputs, targets = batch.micro(start, end)
            last = end == batch.pictures
            with nullcontext() if last else distributed.no_gradient_sync(self.shared):
                with self._autocast():
                    logits = self.network(inputs)
                loss = self.loss(logits, targets) * ((end - start) / batch.total)
                # Processes take the mean of their gradients; what is wanted is the sum.
                scaled: Any = self.scaler.scale(loss * self.group.world.size)
                scaled.backward()
            total += loss.detach()
        return total

    def update(self, norm: Tensor, share_of_peak: float, step: int) -> float:
        """Change the weights by their gradient, of a known length; return the learning rate."""
        rate = optimizer.set_learning_rate(self.optimizer, share_of_peak)
        if self.params.clip_grad_norm is not None:
            clip_grads_with_norm_(self._learning(), self.params.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model, step=step + 1)
        return rate

    def skip(self) -> None:
        """Leave all as it was before a gradient that is no number."""
        self._restore(self._before)
        self.optimizer.zero_grad()
        if self.scaler.is_enabled():
            self.scaler.update()

    def overflows(self) -> bool:
        """Whether a gradient without end is but the scale of the loss, too large for fp16."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _learning(self) -> list[nn.Parameter]:
        return [weights for weights in self.model.parameters() if weights.requires_grad]

    def _restore(self, before: list[Tensor]) -> None:
        with torch.no_grad():
            for values, old in zip(self.statistics, before, strict=True):
                values.copy_(old)

    def _halve(self, batch: Portion) -> None:
        whole = self.micro_batch or batch.pictures
        if whole < 4:
            raise self._no_memory(batch)
        self.micro_batch = (whole + 1) // 2
        self.optimizer.zero_grad()
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning(f"Memory does not suffice: {self.micro_batch} pictures at a time from now on.")

    def _no_memory(self, batch: Portion) -> TaggerError:
        return TaggerError(_NO_MEMORY.format(self.micro_batch or batch.pictures))

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.group.device.type, dtype) if dtype else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that a step changes, on the CPU, on the leading process.

        The others, too, must call it, and get no tensors. The next copy takes the place of this
        one.
        """
        tensors = {
            "model": self.model.state_dict(),
            "average": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict()["state"],
        }
        self._copy = distributed.full_state_dict(tensors, self._copy, needed=self.group.is_main)
        return self._copy | {
            "kind": self.params.optimizer,
            "scaler": self.scaler.state_dict(),
            "micro_batch": self.micro_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises TaggerError for that of another model or optimizer, KeyError for what is none.
        """
        model, average, moments, kind, scaler, micro_batch = (state[name] for name in _STATE)
        try:
            if kind != self.params.optimizer:
                raise ValueError(f"its optimizer is {kind}")
            distributed.load_full_state_dict(self.model, model)
            if self.ema:
                distributed.load_full_state_dict(self.ema.module, average or model)
            distributed.load_optimizer_state(self.optimizer, moments)
            self.scaler.load_state_dict(scaler)
        except (KeyError, ValueError, RuntimeError) as error:
            raise TaggerError(
                "The checkpoint is of another backbone, vocabulary or optimizer: "
                f"{one_line(error)[:200]}. "
                "Start from its weights by train.init_from."
            ) from error
        self.micro_batch = self.params.micro_batch or micro_batch


def _precision(wanted: str | None, device: torch.device) -> str:
    """Return the precision of the forward pass; old cards would but act as if they knew bf16."""
    if wanted or device.type != "cuda":
        return wanted or "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _pieces(pictures: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of pieces as even as can be: a batch norm refuses a single picture."""
    count = -(-pictures // most)
    ends = [pictures * (number + 1) // count for number in range(count)]
    yield from zip([0, *ends], ends, strict=False)
