"""Types of command-line arguments: each reads a text, or refuses it with the reason."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tagger.core.vocabulary import CATEGORIES
from tagger.inference import embeddings, threshold_choice

T = TypeVar("T")


def with_reason(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the same type, whose ValueError is shown to the user."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse_argument


def integer(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < minimum:
            raise ArgumentTypeError(f"{text} is not {minimum} or more")
        return int(text)

    return parse


def integer_or_auto(minimum: int) -> Callable[[str], int | None]:
    """Return a type of integers that takes `auto` for None."""
    return lambda text: None if text == "auto" else integer(minimum)(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def categories(text: str) -> tuple[str, ...]:
    names = {threshold_choice.parse_category(name) for name in text.split(",")}
    return tuple(name for name in CATEGORIES.values() if name in names)


def embeddings_file(text: str) -> Path:
    if Path(text).suffix not in embeddings.SUFFIXES:
        raise ArgumentTypeError(f"{text} must end in {' or '.join(embeddings.SUFFIXES)}")
    return Path(text)


def replacement(text: str) -> tuple[str, str]:
    """Return a tag and its replacement; the tag itself may hold an =, as =_= does."""
    old, equals, new = text.rpartition("=")
    if not equals or not old:
        raise ArgumentTypeError(f"{text!r} is not of the form old=new")
    return old, new
