"""Loops over labels, compiled where there are many."""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from tagger.core import files
from tagger.system import signals

F = TypeVar("F", bound=Callable[..., object])

# Compiling takes seconds, the first time on a machine; interpreting takes one for so many steps.
_INTERPRETED = 600_000


def fast(function: F, steps: int) -> F:
    """Return a function that does the same, compiled for many steps: it must suit numba."""
    return function if steps <= _INTERPRETED else compiled(function)


@cache
def compiled(function: F) -> F:
    """Return a function that does the same, compiled at its first call on this machine.

    Where no file may be kept, at its first call in this process.
    """
    from numba import config, njit  # takes a while to load

    folder = Path(__file__).parent / "__pycache__"
    if os.access(folder, os.W_OK):
        config.CACHE_DIR = str(  # type: ignore[attr-defined]
            folder / f"compiled-{_digest(function)}"
        )
    try:
        compiled: Any = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nothing may be written here, nor at home
        compiled = njit(nogil=True)(function)
    compile_for = compiled.compile

    def uninterrupted(kinds: object) -> object:
        with signals.delay_interrupt():  # LLVM's callbacks swallow what is raised in them
            return compile_for(kinds)

    compiled.compile = uninterrupted  # which it calls for arguments of new kinds
    return cast(F, compiled)


def _digest(function: F) -> str:
    """Return a digest of the sources of a function and of those it calls.

    numba's own cache looks at the first alone: it would not see a change of the others.
    """
    used = [getattr(value, "__module__", None) or "" for value in function.__globals__.values()]
    ours = {name for name in (function.__module__, *used) if name.startswith("tagger.")}
    paths = sorted(str(sys.modules[name].__file__) for name in ours)
    return files.sha256_digest(b"".join(Path(path).read_bytes() for path in paths)).hex()[:16]
