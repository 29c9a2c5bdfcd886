"""Loops compiled by numba, unless they are short."""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from tagger.core import files
from tagger.system import signals

F = TypeVar("F", bound=Callable[..., object])

# Python runs so many steps in a second; loading numba takes as long, and compiling several.
_MAX_INTERPRETED = 600_000


def compiled_if_long(function: F, steps: int) -> F:
    """Return the function, compiled if it takes many steps."""
    return function if steps <= _MAX_INTERPRETED else compiled(function)


@cache
def compiled(function: F) -> F:
    """Return the function compiled at its first call on this machine.

    If no file can be written, it is compiled at the first call in each process.
    """
    from numba import config, njit  # takes a while to load

    folder = Path(__file__).parent / "__pycache__"
    if os.access(folder, os.W_OK):
        config.CACHE_DIR = str(  # type: ignore[attr-defined]
            folder / f"compiled-{_digest(function)}"
        )
    try:
        kernel: Any = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither this folder nor the home folder can be written
        kernel = njit(nogil=True)(function)
    compile_for = kernel.compile

    def uninterrupted(types: object) -> object:
        with signals.delay_interrupt():  # LLVM's callbacks swallow exceptions
            return compile_for(types)

    kernel.compile = uninterrupted  # which the kernel calls for arguments of new types
    return cast(F, kernel)


def _digest(function: F) -> str:
    """Return a digest of the sources of a function and of the functions that it calls.

    numba's own cache does not see a change of the called functions.
    """
    used = [getattr(value, "__module__", None) or "" for value in function.__globals__.values()]
    ours = {name for name in (function.__module__, *used) if name.startswith("tagger.")}
    paths = sorted(str(sys.modules[name].__file__) for name in ours)
    return files.sha256_digest(b"".join(Path(path).read_bytes() for path in paths)).hex()[:16]
