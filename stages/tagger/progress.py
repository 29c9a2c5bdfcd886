"""A progress bar where someone watches, silence elsewhere."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], description: str) -> Iterable[T]:
    return rich_track(items, description, transient=True, disable=not sys.stdout.isatty())
