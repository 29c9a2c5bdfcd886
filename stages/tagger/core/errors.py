"""A user's mistake, reported in one line: where, what, and what to do."""

import argparse
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PERMISSION_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class TaggerError(Exception):
    """A user's mistake. The user sees its message alone, no traceback."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are TaggerErrors."""

    def error(self, message: str) -> NoReturn:
        raise TaggerError(f"{message.rstrip('.')}. See {self.prog} --help.")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with exit code 2 and one line on standard error after a user's mistake."""
    try:
        yield
    except TaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (*DISK_FULL, *PERMISSION_DENIED):
            raise
        path = f": {error.filename}" if error.filename else ""
        advice = "Free some space" if error.errno in DISK_FULL else "Check its owner and mode"
        print(f"error: {os.strerror(error.errno)}{path}. {advice}.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def one_line(error: BaseException) -> str:
    """Return the message of a library's error, as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice nearest to a word, or nothing."""
    nearest = get_close_matches(word, list(choices), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
