"""Rank and number of the processes that `torchrun` starts, and the cores of each.

Apart from `distributed`, since tools that need no torch read it, too.
"""

import os
from typing import NamedTuple

from tagger.core.errors import TaggerError

_DEFAULTS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


class World(NamedTuple):
    """The place of this process among those that work together."""

    rank: int  # 0 to size - 1
    size: int  # processes, on all machines
    local_rank: int  # on this machine: the number of its GPU
    local_size: int

    @property
    def file_suffix(self) -> str:
        """Return what tells this process's files from the others': `.rank0`, or nothing."""
        return f".rank{self.rank}" if self.size > 1 else ""

    @property
    def cores(self) -> int:
        """Return the number of cores for this process."""
        return max(1, available_cores() // self.local_size)


def available_cores() -> int:
    """Return the number of cores that this program may use."""
    return len(os.sched_getaffinity(0))


def read_world() -> World:
    """Return the world by the environment. Raises TaggerError for numbers that make no sense."""
    values = {name: os.environ.get(name, default) for name, default in _DEFAULTS.items()}
    settings = ", ".join(f"{name}={value}" for name, value in values.items())
    try:
        world = World(*map(int, values.values()))
    except ValueError:
        raise TaggerError(f"{settings}: not all are numbers. Start with torchrun.") from None
    if not (0 <= world.rank < world.size and world.local_rank >= 0 < world.local_size):
        raise TaggerError(f"{settings}: there is no such process. Start with torchrun.")
    return world
