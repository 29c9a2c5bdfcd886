"""The state of a training: weights, their moving average, optimizer, scale of the loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from tagger.core.errors import TaggerError, one_line
from tagger.models import freezing
from tagger.params import Preset, TrainParams
from tagger.system import distributed
from tagger.system.distributed import ProcessGroup
from tagger.system.memory import MicroBatch
from tagger.training import optimizer

_LOSS_SCALE = 2.0**10  # in fp16, at first: sums over tags are large already
_OUT_OF_MEMORY = (
    "Lower train.micro_batch or the image_size, or set train.gradient_checkpointing: true."
)
_KEYS = ("model", "ema", "optimizer", "optimizer_name", "scaler", "micro_batch")


class TrainState:
    """Everything that an optimizer step changes, and the network that computes it.

    `seed_torch` starts each step, so that there is no random generator to keep.
    """

    def __init__(
        self, model: nn.Module, preset: Preset, params: TrainParams, group: ProcessGroup
    ) -> None:
        self.model = model
        self.params = params
        self.group = group
        self.ema = ModelEmaV3(model, params.ema, use_warmup=True) if params.ema else None
        self.precision = choose_precision(params.precision, group.device)
        self.scaler = torch.amp.GradScaler(
            group.device.type, init_scale=_LOSS_SCALE, enabled=self.precision == "fp16"
        )
        if params.parallel == "fsdp":
            for module in {self.eval_model, model}:
                distributed.shard_model(module, group)
        self.optimizer = optimizer.build_optimizer(model, preset, params)
        self.micro_batch = MicroBatch(
            _OUT_OF_MEMORY, params.micro_batch, minimum=2, can_halve=group.world.size == 1
        )
        self.parallel: nn.Module = model  # averages the gradients of all processes
        self.network: Callable[[Tensor], Tensor] = model  # the same, compiled if asked for
        self._buffers = list(model.buffers())
        self._copy: dict[str, Any] = {}  # of the tensors, on the CPU

    @property
    def eval_model(self) -> nn.Module:
        """The model to validate and keep: the moving average if there is one."""
        return self.ema.module if self.ema else self.model

    def freeze_stages(self, frozen: int) -> None:
        """Freeze the first stages of the backbone, and let all others train."""
        freezing.freeze(self.model, frozen)
        self.parallel = self.group.wrap(self.model, self.params.parallel)
        self.network = torch.compile(self.parallel) if self.params.compile else self.parallel

    def no_gradient_sync(self) -> AbstractContextManager[Any]:
        """Return the context of all micro-batches but the last: processes average once a step."""
        return distributed.no_gradient_sync(self.parallel)

    def autocast(self) -> AbstractContextManager[object]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.group.device.type, dtype) if dtype else nullcontext()

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [weights for weights in self.model.parameters() if weights.requires_grad]

    def gradient_norm(self) -> Tensor:
        """Return the L2 norm of the whole gradient, the same in every process."""
        norm = get_total_norm([w.grad for w in self.trainable_parameters() if w.grad is not None])
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def copy_buffers(self) -> list[Tensor]:
        """Return a copy of the running statistics, which a forward pass changes."""
        return [values.clone() for values in self._buffers]

    @torch.no_grad()
    def restore_buffers(self, copies: list[Tensor]) -> None:
        for values, copy in zip(self._buffers, copies, strict=True):
            values.copy_(copy)

    def full_weights(self, whole_model: nn.Module) -> dict[str, Tensor]:
        """Return the weights of the whole model, of which perhaps only the head trains.

        All processes must call it; those that are not the main one get nothing.
        """
        needed = self.group.is_main
        trained: dict[str, Tensor] = distributed.full_state_dict(
            self.eval_model.state_dict(), needed=needed
        )
        if not needed:
            return {}
        if self.model is whole_model:
            return trained
        (prefix,) = (name for name, module in whole_model.named_modules() if module is self.model)
        rest: dict[str, Tensor] = distributed.full_state_dict(whole_model.state_dict())
        return rest | {f"{prefix}.{name}": values for name, values in trained.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state on the CPU, to be written by the main process.

        All processes must call it; the others get no tensors. The next copy overwrites this one.
        """
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict()["state"],
        }
        self._copy = distributed.full_state_dict(tensors, self._copy, needed=self.group.is_main)
        return self._copy | {
            "optimizer_name": self.params.optimizer,
            "scaler": self.scaler.state_dict(),
            "micro_batch": self.micro_batch.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state.

        Raises TaggerError if it is of another model or optimizer, KeyError if a key is missing.
        """
        model, ema, moments, optimizer_name, scaler, micro_batch = (state[key] for key in _KEYS)
        try:
            if optimizer_name != self.params.optimizer:
                raise ValueError(f"its optimizer is {optimizer_name}")
            distributed.load_full_state_dict(self.model, model)
            if self.ema:
                distributed.load_full_state_dict(self.ema.module, ema or model)
            distributed.load_optimizer_state(self.optimizer, moments)
            self.scaler.load_state_dict(scaler)
        except (KeyError, ValueError, RuntimeError) as error:
            raise TaggerError(
                "The snapshot is of another backbone, vocabulary or optimizer: "
                f"{one_line(error)[:200]}. Start from its weights with train.init_from."
            ) from error
        self.micro_batch.size = self.params.micro_batch or micro_batch


def choose_precision(requested: str | None, device: torch.device) -> str:
    """Return the precision of the forward pass: bf16 only on cards that compute in it natively."""
    if requested or device.type != "cuda":
        return requested or "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def seed_torch(seed: int, step: int, rank: int) -> None:
    """Make what a step draws follow from the seed, the step and the process alone."""
    entropy = np.random.SeedSequence([seed, step, rank])
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
