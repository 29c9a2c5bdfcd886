"""What a person did that cannot work, told in one line: where, what, and the way out."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class TaggerError(Exception):
    """A mistake of the user's. Its message is all that a person sees of it."""


@contextmanager
def reported() -> Iterator[None]:
    """End the program with exit code 2 and one line on standard error, where the user erred."""
    try:
        yield
    except TaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word nearest to this one, else nothing."""
    nearest = get_close_matches(word, list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
