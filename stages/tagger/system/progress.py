"""A progress bar on a terminal, silence elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import track as rich_track

T = TypeVar("T")


class Sized(Protocol):
    def __len__(self) -> int: ...


S = TypeVar("S", bound=Sized)


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """Return the items and show how many were taken. `total` is needed if they have no length."""
    hidden = not sys.stdout.isatty()
    return rich_track(items, description, total, transient=True, disable=hidden)


def track_rows(blocks: Iterable[S], total: int, description: str) -> Iterator[S]:
    """Yield the blocks and show how many of `total` rows they held, the rate and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(description, total=total, rate="")
        for block in blocks:
            yield block
            progress.advance(task, len(block))
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:,.0f}/s" if speed else "")
