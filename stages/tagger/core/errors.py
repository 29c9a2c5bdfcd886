"""What a person did that cannot work, told in one line: where, what, and the way out."""

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
    """A mistake of the user's. Its message is all that a person sees of it."""


class ArgumentParser(argparse.ArgumentParser):
    """Reads the command line, and tells of a mistake as everything else does, in one line."""

    def error(self, message: str) -> NoReturn:
        raise TaggerError(f"{message.rstrip('.')}. See {self.prog} --help.")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with exit code 2 and one line on standard error, where the user erred."""
    try:
        yield
    except TaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (*DISK_FULL, *PERMISSION_DENIED):
            raise
        where = f"{error.filename}: " if error.filename else ""
        way_out = "Make room" if error.errno in DISK_FULL else "Allow it"
        reason = os.strerror(error.errno)
        print(f"error: {where}{reason}. {way_out}, then run again.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def one_line(error: BaseException) -> str:
    """Return what an error of a library says, as part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word nearest to this one, else nothing."""
    nearest = get_close_matches(word, list(choices), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
