"""Several processes that train one model, as `torchrun` starts them; nothing of it when alone."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tagger.system.world import World, read_world

T = TypeVar("T")

_WORTH_PARTING = 1 << 16  # weights of a block
_BACKENDS = "cpu:gloo,cuda:nccl"  # NCCL alone would take what is told through GPU memory, too


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and what they tell each other."""

    world: World
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.world.rank == 0

    @property
    def rank_and_size(self) -> tuple[int, int]:
        return self.world.rank, self.world.size

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.world.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor([int(flag)])).item())

    def all_gather(self, value: T) -> list[T]:
        """Return what each process has, by rank."""
        if self.world.size == 1:
            return [value]
        every: list[Any] = [None] * self.world.size
        dist.all_gather_object(every, value)
        return every

    def gather_on_main(self, value: T) -> list[T] | None:
        """Return what each process has, by rank, on the leading one."""
        if self.world.size == 1:
            return [value]
        every: list[Any] | None = [None] * self.world.size if self.is_main else None
        dist.gather_object(value, every)
        return every

    def broadcast_from_main(self, value: T) -> T:
        """Return what the leading process has."""
        return self.all_gather(value)[0]

    def wrap(self, model: nn.Module, parallel: str) -> nn.Module:
        """Return what computes as the model does, and brings gradients together.

        how: `ddp`, every process holds all weights; `fsdp`, each a part of them, see `part`
        """
        if (
            parallel == "fsdp"
            or self.world.size == 1
            or not any(w.requires_grad for w in model.parameters())
        ):
            return model
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None
        )


def no_gradient_sync(network: nn.Module) -> AbstractContextManager[Any]:
    """Return the context of all micro-batches but the last, whose gradients are only added up."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def shard_model(model: nn.Module, group: ProcessGroup) -> None:
    """Part the weights of each block, and of what is around the blocks, among the processes."""
    if group.world.size == 1:
        return
    model.to(memory_format=torch.contiguous_format)
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 1:
            for block in module:
                if sum(weights.numel() for weights in block.parameters()) > _WORTH_PARTING:
                    fully_shard(block)
    fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds but a part of the weights: all must compute at the same time."""
    return any(isinstance(weights, DTensor) for weights in model.parameters())


def full_state_dict(state: Any, previous: Any = None, *, needed: bool = True) -> Any:
    """Return a copy of nested tensors on the CPU, put together where they are in parts.

    kept: an earlier copy of the same, to be overwritten: new memory takes longer than the copying
    wanted: whether this process needs the copy; one that does not helps to put together what the
        others want, and gets None in place of each tensor
    """
    if isinstance(state, DTensor):
        state = state.full_tensor()
    if isinstance(state, Tensor):
        return _copied(state, previous) if needed else None
    if isinstance(state, dict):
        earlier = previous or {}
        return {
            k: full_state_dict(value, earlier.get(k), needed=needed) for k, value in state.items()
        }
    if isinstance(state, list | tuple):
        pairs = zip_longest(state, (previous or ())[: len(state)])
        return type(state)(
            [full_state_dict(value, earlier, needed=needed) for value, earlier in pairs]
        )
    return state


def _copied(values: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None or kept.shape != values.shape:
        kept = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
    return kept.copy_(values.detach())


def load_full_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole weights into a model, of which each process may hold a part."""
    own = model.state_dict()
    model.load_state_dict({name: _like(own.get(name), value) for name, value in state.items()})


def load_optimizer_state(optimizer: Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Load what an optimizer knows of each weight; its groups stay as they were made."""
    current = optimizer.state_dict()
    weights = [weights for group in optimizer.param_groups for weights in group["params"]]
    if state and max(state) >= len(weights):
        raise ValueError(f"it knows of {max(state) + 1} weights, and there are {len(weights)}")
    parts = {
        number: {key: _like(weights[number], value) for key, value in known.items()}
        for number, known in state.items()
    }
    optimizer.load_state_dict(current | {"state": parts})


def _like(own: Tensor | None, value: Any) -> Any:
    """Return a whole tensor in parts, where its counterpart is; another shape or kind as it is."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Yield the processes that `torchrun` started, joined; or this one alone."""
    place = read_world()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", place.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if place.size == 1:
        yield ProcessGroup(place, device)
        return
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    dist.init_process_group(
        _BACKENDS if cuda else "gloo", store=_store(place), rank=place.rank, world_size=place.size
    )
    try:
        yield ProcessGroup(place, device)
    finally:
        dist.destroy_process_group()


def _store(place: World) -> Any:
    """Return where processes find each other, without what those of an earlier attempt left.

    torchrun 2.14 keeps one store when it restarts them, and a process may find there the address
    of one that is gone. Machines count their attempts apart: for several of them see
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE.
    """
    store, _, _ = next(rendezvous("env://", place.rank, place.size))
    if place.local_size < place.size:
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
