"""Where a picture lies, and what it is laid on: known also to those that open none."""

from typing import NamedTuple, TypeAlias

Colour: TypeAlias = tuple[int, int, int]  # R, G, B, 0 to 255
WHITE: Colour = (255, 255, 255)


class Location(NamedTuple):
    """Where the bytes of a picture lie: a file of its own, or a part of a tar."""

    path: str
    offset: int  # bytes
    size: int  # bytes
