"""The colours that transparent or padded images are laid on."""

from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]  # R, G, B, 0 to 255
WHITE: Colour = (255, 255, 255)
