"""Which of several processes this one is, as `torchrun` says in the environment, and its cores."""

import os
from typing import NamedTuple

from tagger.core.errors import TaggerError


class World(NamedTuple):
    rank: int  # 0 to size - 1
    size: int  # processes, on all machines
    local_rank: int  # among those of this machine: the number of its GPU
    local_size: int

    @property
    def file_suffix(self) -> str:
        """What tells the files of this process from those of the others: `.rank0`, or nothing."""
        return f".rank{self.rank}" if self.size > 1 else ""

    @property
    def cores(self) -> int:
        """How many cores are this process's share."""
        return max(1, available_cores() // self.local_size)


def available_cores() -> int:
    """Return how many cores this machine, or whoever shares it out, leaves us."""
    return len(os.sched_getaffinity(0))


def read_world() -> World:
    """Return the place of this process. Raises TaggerError for numbers that make no sense."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    given = {name: os.environ.get(name, default) for name, default in names.items()}
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    try:
        found = World(*map(int, given.values()))
    except ValueError:
        raise TaggerError(f"{told}: not all of them are numbers. Start with torchrun.") from None
    if not (0 <= found.rank < found.size and found.local_rank >= 0 < found.local_size):
        raise TaggerError(f"{told}: there is no such process. Start with torchrun.")
    return found
