"""Where the bytes of an image are. This module imports nothing heavy: `infer` needs it."""

from typing import NamedTuple


class Location(NamedTuple):
    """Where the bytes of an image are: a file of its own, or a member of a tar."""

    path: str
    offset: int  # bytes
    size: int  # bytes
