"""What a person may write after an option, read or refused with the reason."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tagger.core.vocabulary import CATEGORIES
from tagger.inference import embeddings, threshold_choice

T = TypeVar("T")


def explained(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return the same reader, whose reason for a ValueError is told to the user."""

    def tell(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return tell


def whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text} is not {least} or more")
        return int(text)

    return read


def whole_or_auto(least: int) -> Callable[[str], int | None]:
    """Return a reader of numbers that takes `auto` for None."""
    return lambda text: None if text == "auto" else whole(least)(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def categories(text: str) -> tuple[str, ...]:
    wanted = {threshold_choice.parse_category(name) for name in text.split(",")}
    return tuple(name for name in CATEGORIES.values() if name in wanted)


def vectors_file(text: str) -> Path:
    if Path(text).suffix not in embeddings.SUFFIXES:
        raise ArgumentTypeError(f"{text} must end in {' or '.join(embeddings.SUFFIXES)}")
    return Path(text)


def replacement(text: str) -> tuple[str, str]:
    """Return a tag and what is written for it; the tag itself may hold an =, as =_= does."""
    old, equals, new = text.rpartition("=")
    if not equals or not old:
        raise ArgumentTypeError(f"{text!r} is not of the form old=new")
    return old, new
