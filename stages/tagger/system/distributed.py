"""Distributed training: processes that `torchrun` starts, or this process alone."""

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

_MIN_SHARDED = 1 << 16  # weights of a block
_BACKENDS = "cpu:gloo,cuda:nccl"  # NCCL alone would send Python objects through GPU memory


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and their collective operations."""

    world: World
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and logs."""
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
        """Return the values of all processes, by rank."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: T) -> list[T] | None:
        """Return the values of all processes, by rank, on the main process; None on the others."""
        if self.world.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world.size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def broadcast_from_main(self, value: T) -> T:
        """Return the value of the main process."""
        return self.all_gather(value)[0]

    def wrap(self, model: nn.Module, parallel: str) -> nn.Module:
        """Return a module that computes as the model does, and sums the gradients of processes.

        parallel: `ddp`, every process holds all weights; `fsdp`, each holds shards of them, see
            `shard_model`, and the model itself is returned
        """
        learns = any(weights.requires_grad for weights in model.parameters())
        if parallel == "fsdp" or self.world.size == 1 or not learns:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)


def no_gradient_sync(network: nn.Module) -> AbstractContextManager[Any]:
    """Return the context of all micro-batches but the last: their gradients stay local."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def shard_model(model: nn.Module, group: ProcessGroup) -> None:
    """Shard the weights of each block, and the other weights, over the processes (FSDP2)."""
    if group.world.size == 1:
        return
    model.to(memory_format=torch.contiguous_format)
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 1:
            for block in module:
                if sum(weights.numel() for weights in block.parameters()) > _MIN_SHARDED:
                    fully_shard(block)
    fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    """Return whether each process holds shards: then all must compute at the same time."""
    return any(isinstance(weights, DTensor) for weights in model.parameters())


def full_state_dict(state: Any, previous: Any = None, *, needed: bool = True) -> Any:
    """Return a copy of nested tensors on the CPU, gathered from their shards.

    previous: an earlier copy, to be overwritten: allocating memory takes longer than copying
    needed: whether this process needs the copy. If not, it still takes part in gathering, and gets
        None in place of each tensor.
    """
    if isinstance(state, DTensor):
        state = state.full_tensor()
    if isinstance(state, Tensor):
        return _copy_to_cpu(state, previous) if needed else None
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


def _copy_to_cpu(values: Tensor, previous: Tensor | None) -> Tensor:
    if previous is None or previous.shape != values.shape:
        previous = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
    return previous.copy_(values.detach())


def load_full_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load full weights into a model whose weights may be sharded."""
    current = model.state_dict()
    model.load_state_dict({name: _shard_like(current.get(name), v) for name, v in state.items()})


def load_optimizer_state(optimizer: Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Load an optimizer's state of each weight; its parameter groups stay as they are.

    Raises ValueError for the state of more weights than there are.
    """
    current = optimizer.state_dict()
    weights = [weights for group in optimizer.param_groups for weights in group["params"]]
    if state and max(state) >= len(weights):
        raise ValueError(f"it knows of {max(state) + 1} weights, and there are {len(weights)}")
    shards = {
        number: {key: _shard_like(weights[number], value) for key, value in moments.items()}
        for number, moments in state.items()
    }
    optimizer.load_state_dict(current | {"state": shards})


def _shard_like(current: Tensor | None, value: Any) -> Any:
    """Return a tensor sharded as its counterpart is, or as it is if their shapes differ."""
    if isinstance(current, DTensor) and isinstance(value, Tensor) and value.shape == current.shape:
        return distribute_tensor(value.to(current.device), current.device_mesh, current.placements)
    return value


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Yield the processes that `torchrun` started, joined; or this process alone."""
    world = read_world()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", world.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world.size == 1:
        yield ProcessGroup(world, device)
        return
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    dist.init_process_group(
        _BACKENDS if cuda else "gloo", store=_store(world), rank=world.rank, world_size=world.size
    )
    try:
        yield ProcessGroup(world, device)
    finally:
        dist.destroy_process_group()


def _store(world: World) -> Any:
    """Return the store where processes find each other, without entries of earlier attempts.

    torchrun 2.14 keeps one store when it restarts them, and a process may find there the address
    of one that is gone. Machines count their attempts apart: for several of them see
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE.
    """
    store, _, _ = next(rendezvous("env://", world.rank, world.size))
    if world.local_size < world.size:
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
