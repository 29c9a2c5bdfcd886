"""Loops over labels, compiled where there are many."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])

# Compiling takes seconds, the first time on a machine; interpreting takes one for so many steps.
_INTERPRETED = 600_000


def fast(function: F, steps: int) -> F:
    """Return a function that does the same, compiled for many steps: it must suit numba."""
    return function if steps <= _INTERPRETED else always(function)


@cache
def always(function: F) -> F:
    """Return a function that does the same, compiled at its first call."""
    from numba import njit  # takes a while to load

    return cast(F, njit(cache=True, nogil=True)(function))
