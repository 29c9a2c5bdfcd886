"""Start a stage with the launcher that TAGGER_LAUNCH names, or with this Python if it names none.

TAGGER_LAUNCH="torchrun --nproc-per-node 2" python stages/launch.py train
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tagger.core import errors
from tagger.core.errors import TaggerError

VARIABLE = "TAGGER_LAUNCH"
WINDOWS = os.name == "nt"


def main(arguments: Sequence[str]) -> int:
    """Run `<launcher> stages/NAME.py` and return its exit code. Linux and macOS do not return."""
    command = [*split_launcher(os.environ.get(VARIABLE, ""), windows=WINDOWS), path_of(arguments)]
    try:
        if WINDOWS:
            return wait_for(command)
        sys.stdout.flush()
        os.execvp(command[0], command)  # the stage takes over this process, and gets its signals
    except FileNotFoundError:
        raise TaggerError(
            f"{VARIABLE} starts with {command[0]!r}, which is not installed. Correct or unset it."
        ) from None


def path_of(arguments: Sequence[str]) -> str:
    """Return the path of the script of the stage named on the command line."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.name != Path(__file__).name)
    if len(arguments) != 1 or arguments[0] not in names:
        raise TaggerError(f"launch.py takes the name of one stage: {', '.join(names)}.")
    return str(folder / f"{arguments[0]}.py")


def split_launcher(launcher: str, *, windows: bool) -> list[str]:
    """Return the words of a launcher's command line; this Python if the line is empty.

    windows: backslashes separate folders instead of quoting the next character
    """
    lexer = shlex.shlex(launcher, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if windows:
        lexer.escape = ""
    try:
        return list(lexer) or [sys.executable]
    except ValueError as error:
        raise TaggerError(f"{VARIABLE} cannot be read: {error}. Correct or unset it.") from None


def wait_for(command: Sequence[str]) -> int:
    """Run a command and return its exit code. Ctrl-C is left to the command, which gets it too."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    with errors.exit_on_error():
        raise SystemExit(main(sys.argv[1:]))
