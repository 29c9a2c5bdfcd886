"""stages/launch.py starts a stage with a launcher, and passes on exit codes and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from tagger.core.errors import TaggerError

ROOT = Path(__file__).parents[2]
PRINT_ARGUMENTS = "import json, sys\nprint(json.dumps(sys.argv))\nraise SystemExit(7)\n"
WAIT_FOR_SIGNAL = """
import os, signal, sys

def stop(number, frame):
    print(number, flush=True)
    raise SystemExit(3)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with launch.py and room for stages beside it."""
    folder = tmp_path / "stages"
    folder.mkdir()
    shutil.copy(ROOT / "stages/launch.py", folder)
    return folder


def started(scripts: Path, name: str, launcher: str | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "stages")}
    environment.pop(launch.VARIABLE, None)
    if launcher is not None:
        environment[launch.VARIABLE] = launcher
    return subprocess.Popen(
        [sys.executable, str(scripts / "launch.py"), name],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_launch_without_launcher_runs_the_stage_with_this_python(scripts: Path) -> None:
    (scripts / "train.py").write_text(PRINT_ARGUMENTS)
    process = started(scripts, "train")
    output, _ = process.communicate()
    assert json.loads(output) == [str(scripts / "train.py")]
    assert process.returncode == 7


def test_launch_splits_the_launcher_as_a_shell_would(scripts: Path) -> None:
    (scripts / "train.py").write_text("")
    wrapper = scripts / "my launcher.py"
    wrapper.write_text(PRINT_ARGUMENTS)
    process = started(scripts, "train", f"{sys.executable} '{wrapper}' --name \"a b\" c\\ d")
    output, _ = process.communicate()
    assert json.loads(output) == [str(wrapper), "--name", "a b", "c d", str(scripts / "train.py")]
    assert process.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("launcher", [None, f"{sys.executable} -u"])
def test_signals_to_launch_reach_the_stage(
    scripts: Path, number: signal.Signals, launcher: str | None
) -> None:
    (scripts / "train.py").write_text(WAIT_FOR_SIGNAL)
    process = started(scripts, "train", launcher)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid  # no process in between
    process.send_signal(number)
    output, _ = process.communicate()
    assert int(output) == number
    assert process.returncode == 3


@pytest.mark.parametrize(
    ("name", "launcher", "message"),
    [
        ("trian", None, "launch.py takes the name of one stage: train."),
        ("train", "torchrum --standalone", "TAGGER_LAUNCH starts with 'torchrum'"),
        ("train", "torchrun 'x", "TAGGER_LAUNCH cannot be read: No closing quotation"),
    ],
)
def test_launch_reports_mistakes_in_one_line(
    scripts: Path, name: str, launcher: str | None, message: str
) -> None:
    (scripts / "train.py").write_text("")
    process = started(scripts, name, launcher)
    _, output = process.communicate()
    assert process.returncode == 2
    assert output.startswith(f"error: {message}")
    assert output.count("\n") == 1


def test_launcher_on_windows_keeps_backslashes() -> None:
    launcher = r'"C:\my tools\torchrun.exe" --log="a b" --nproc-per-node 2'
    words = [r"C:\my tools\torchrun.exe", "--log=a b", "--nproc-per-node", "2"]
    assert launch.split_launcher(launcher, windows=True) == words
    assert launch.split_launcher("  ", windows=True) == [sys.executable]
    with pytest.raises(TaggerError, match="cannot be read"):
        launch.split_launcher('"torchrun', windows=True)


def test_waiting_for_a_command_returns_its_exit_code() -> None:
    assert launch.wait_for([sys.executable, "-c", "raise SystemExit(7)"]) == 7
