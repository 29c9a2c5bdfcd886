"""Fixtures that tests share: real images with tags, a small tagger and its export."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

import infer
from support import clones, processes
from tagger import params
from tagger.core import calibration, errors, files, manifest, thresholds, vocabulary
from tagger.core.thresholds import ALL, Threshold
from tagger.core.vocabulary import CATEGORIES, Tag
from tagger.data import groups, ingest
from tagger.data.sources.folder import FolderSource
from tagger.data.tags import rules
from tagger.data.tags.lexicon import Lexicon
from tagger.demo import draw
from tagger.images import preprocess
from tagger.images.dataset import Split
from tagger.images.preprocess import Preprocess
from tagger.models import backbone
from tagger.params import Params, Preset

IMAGES = 24

# No deadline: other work slows a machine at times. CI repeats itself: --hypothesis-profile=ci
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def process_settings() -> None:
    """Use one thread, which is faster for small networks, and let Ctrl-C reach background jobs."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def default_params(root: Path) -> Params:
    """The parameters in the repository."""
    return params.load(root / params.PATH)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn images with sidecars and tags.csv. Copy it to change it."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    draw.draw_images(folder, images=IMAGES, size=64, seed=0)
    return folder


@pytest.fixture(scope="session")
def tags_and_split(demo: Path, default_params: Params) -> tuple[list[Tag], Split]:
    """The tags on at least three of the drawn images, and all images with these labels."""
    p = default_params.prepare
    lexicon = Lexicon(rules.read(demo))
    posts, _ = ingest.read_posts(FolderSource([demo], p.separator), lexicon, p.filters)
    posts, seen = ingest.renumber(groups.group(posts, p.groups), lexicon)
    file = demo.parent / "posts.parquet"
    manifest.write_posts(posts, file)
    posts = manifest.read_posts(file, len(seen))
    tags = [tag for tag in seen if tag.count >= 3]
    return tags, Split(
        list(manifest.locations(posts.table)), manifest.select_columns(posts.labels, seen, tags)
    )


@pytest.fixture(scope="session")
def tags(tags_and_split: tuple[list[Tag], Split]) -> list[Tag]:
    return tags_and_split[0]


@pytest.fixture(scope="session")
def split(tags_and_split: tuple[list[Tag], Split]) -> Split:
    return tags_and_split[1]


@pytest.fixture(scope="session")
def preset() -> Preset:
    """The smallest network with batch norm, which most networks have."""
    return Preset(
        backbone="test_efficientnet",
        image_size=32,
        batch_size=8,
        learning_rate=1e-2,
        layer_decay=1,
        drop_path=0,
        pretrained=False,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tags: list[Tag], preset: Preset) -> Path:
    """models/tagger as training leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("project") / "models" / "tagger"
    torch.manual_seed(0)
    model = backbone.build_model(preset, len(tags))
    for weights in model.get_classifier().parameters():  # type: ignore[operator]
        torch.nn.init.normal_(weights, std=0.5)  # else every probability is near a half
    preprocessing = backbone.build_preprocess(model, preset)
    preprocessing.write(folder / "preprocess.json")
    vocabulary.write(tags, folder / "vocabulary.csv")
    backbone.save_config(model, preprocessing, folder)
    backbone.save_weights(model.state_dict(), folder / backbone.WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> nn.Module:
    return backbone.load_model(model_folder)


@pytest.fixture(scope="module")
def preprocessing(model_folder: Path) -> Preprocess:
    return preprocess.read(model_folder / "preprocess.json")


@pytest.fixture(scope="session")
def export_folder(model_folder: Path, tags: list[Tag]) -> Path:
    """models/export as the stage writes it."""
    import export
    from tagger.export import package

    fitted = [
        Threshold(name, "", 0.5, "global" if name == ALL else "category")
        for name in (ALL, *CATEGORIES.values())
    ]
    cutoffs = np.linspace(0.3, 0.7, len(tags))
    project = model_folder.parent.parent
    thresholds.write(fitted, project / export.THRESHOLDS)
    temperatures = {row.category: 1.5 + place / 10 for place, row in enumerate(fitted)}
    calibration.write(temperatures, project / export.CALIBRATION)
    with files.atomic_write(project / export.EXPORT) as folder:
        names = package.ExportTags(tags, cutoffs, fitted)
        package.write(folder, model_folder, project / export.CALIBRATION, names, 17)
    return project / export.EXPORT


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `dvc repro` ran every stage, all committed. Copy it to change it.

    The first of pytest's processes that needs it makes it. What dvc printed is in finished.log
    beside it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, log = shared / "finished", shared / "finished.log"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not log.exists():
            clones.make_clone(folder, clones.FINISHED_PARAMS)
            output = processes.run(folder, "dvc", "repro").success_output
            clones.commit(folder)
            files.write_text(log, output)
    return folder


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the test's folder, byte for byte; return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[[str], Path]:
    """Write an image of 8 x 8 pixels in one colour below the test's folder; return its path."""

    def paint(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 30, 60)).save(path)
        return path

    return paint


@pytest.fixture(scope="session")
def large_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that takes some time to decode."""
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1)
    return path


@pytest.fixture
def image_folder(split: Split, tmp_path: Path) -> Path:
    """A folder of three images without sidecars, and one more in a subfolder."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    for place, name in zip(
        split.locations, ["a.png", "b.png", "c.png", "inner/d.png"], strict=False
    ):
        shutil.copyfile(place.path, folder / name)
    return folder


@pytest.fixture
def run_infer(
    export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Call main in an empty folder with the small export; exit codes as the program has them."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: object) -> int:
        words = [str(word) for word in arguments]
        if "--model" not in words:
            words += ["--model", str(export_folder)]
        try:
            with errors.exit_on_error():
                return infer.main(words)
        except SystemExit as ended:
            return int(ended.code or 0)

    return run
