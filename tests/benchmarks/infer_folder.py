"""Measure infer.py on a folder of images of 1,024 px, beside what its parts allow and its peers.

python tests/benchmarks/infer_folder.py

The peers are the loops of dghs-imgutils (Pillow and ONNX Runtime, a image at a time) and of
wdtagger (Pillow, timm's transform and torch, a image at a time), on the same weights.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import input_pipeline
import measure
import numpy as np
from PIL import Image

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "stages"))

PRESETS: dict[str, tuple[str, dict[str, Any], int]] = {  # arguments of timm, pixels
    "vit": ("vit_tiny_patch16_224", {"img_size": 448}, 448),
    "mobilenet": ("mobilenetv4_conv_small", {}, 256),
}
_TAGS = 1_000
_IMAGES = 300


def make_models(folder: Path) -> None:
    """Export both networks, with weights drawn at random."""
    import timm
    import torch

    from tagger.core.vocabulary import Tag
    from tagger.export import formats, onnx_graph
    from tagger.images.preprocess import Preprocess
    from tagger.models import backbone, layouts

    torch.manual_seed(0)
    for name, (network, arguments, size) in PRESETS.items():
        model = timm.create_model(network, num_classes=_TAGS, **arguments).eval()
        target = folder / name
        target.mkdir()
        prepared = Preprocess(size, (0.5,) * 3, (0.5,) * 3)
        prepared.write(target / layouts.PREPROCESS)
        backbone.save_config(model, prepared, target)
        backbone.save_weights(model.state_dict(), target / backbone.WEIGHTS)
        tags = [Tag(number, f"tag_{number}", 0, 1) for number in range(_TAGS)]
        formats.write_selected_tags(tags, np.full(_TAGS, 0.9), target / layouts.SELECTED_TAGS)
        onnx_graph.write_model(model, target / layouts.ONNX, size=size, opset=17)


def make_images(folder: Path) -> None:
    """Draw a third each of JPEG, PNG and WebP."""
    with tempfile.TemporaryDirectory() as drawn:
        input_pipeline.draw(Path(drawn))
        for number in range(_IMAGES):
            kind = ("jpeg", "png", "webp")[number % 3]
            source = sorted(Path(drawn, kind).iterdir())[number // 3 % input_pipeline.DRAWN]
            (folder / f"{number:03d}.{kind}").write_bytes(source.read_bytes())


def made(folder: Path, images: Path) -> dict[str, float]:
    """Make models and images, in a process of its own: torch would count as memory of others."""
    make_models(folder)
    make_images(images)
    return {}


def ours(model: Path, images: Path) -> dict[str, float]:
    """Return the images a second of a whole run, by its own closing line."""
    with tempfile.TemporaryDirectory() as target:
        command = _command(images, model)
        options = ["--output", "jsonl", "--output-dir", target]
        ended = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    rate_match = re.search(r"images, ([\d,.]+) a second", ended.stderr)
    assert rate_match, ended.stderr
    return {"rate": float(rate_match[1].replace(",", ""))}


def _command(images: Path, model: Path) -> list[str]:
    script = str(_ROOT / "stages/infer.py")
    return [sys.executable, script, str(images), "--model", str(model), "--device", "cpu"]


def first(model: Path, images: Path) -> dict[str, float]:
    """Return the seconds from start to end for one image."""
    start = time.perf_counter()
    subprocess.run(_command(images / "000.jpeg", model), capture_output=True, check=True)
    return {"seconds": time.perf_counter() - start}


def decoding(model: Path, images: Path) -> dict[str, float]:
    from tagger.images import preprocess
    from tagger.inference import decoders

    prepared = preprocess.read(model / "preprocess.json")
    paths = sorted(images.iterdir())
    squares = decoders.decode_squares(
        paths, prepared, workers=2, timeout=60, stop=threading.Event()
    )
    next(squares)
    start = time.perf_counter()
    return {"rate": sum(1 for _ in squares) / (time.perf_counter() - start)}


def computing(model: Path, images: Path) -> dict[str, float]:
    from tagger.images import decode, preprocess
    from tagger.models import runtimes

    decode.init_process()
    prepared = preprocess.read(model / "preprocess.json").compiled()
    graph = runtimes.load_onnx(model / "model.onnx", prepared, runtimes.Device("cpu", threads=2))
    squares = np.zeros((8, prepared.size, prepared.size, 3), np.uint8)
    graph.run(squares, "probabilities")
    rounds = 12
    start = time.perf_counter()
    for _ in range(rounds):
        graph.run(squares, "probabilities")
    return {"rate": rounds * len(squares) / (time.perf_counter() - start)}


def imgutils(model: Path, images: Path) -> dict[str, float]:
    import onnxruntime as ort

    from tagger.images import preprocess

    prepared = preprocess.read(model / "preprocess.json")
    session = ort.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])

    def tag(path: Path) -> None:
        with Image.open(path) as image:
            inputs = prepared(image.convert("RGB"))
        session.run(["prediction"], {"input": inputs[None]})

    return _each(tag, images)


def wdtagger(model: Path, images: Path) -> dict[str, float]:
    import timm
    import torch

    data: Any = importlib.import_module("timm.data")
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    transform = data.create_transform(**data.resolve_model_data_config(network))

    def tag(path: Path) -> None:
        with Image.open(path) as image, torch.inference_mode():
            network(transform(image.convert("RGB"))[None]).sigmoid()

    return _each(tag, images)


def _each(tag: Callable[[Path], None], images: Path) -> dict[str, float]:
    paths = sorted(images.iterdir())
    tag(paths[0])
    start = time.perf_counter()
    for path in paths:
        tag(path)
    return {"rate": len(paths) / (time.perf_counter() - start)}


PARTS: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    part.__name__: part for part in (made, ours, first, decoding, computing, imgutils, wdtagger)
}


def compare(folder: Path, rounds: int) -> None:
    images = folder / "images"

    def run(part: str, name: str) -> measure.Run:
        return measure.run(__file__, "--part", part, folder / name, images)

    shares, peers = [], []
    for _ in range(rounds):
        alone = [run(part, "vit").answer["rate"] for part in ("decoding", "computing")]
        bound = 1 / sum(1 / rate for rate in alone)
        rate = run("ours", "vit").answer["rate"]
        shares.append(rate / bound)
        print(
            f"vit: decoding {alone[0]:.1f}/s, model {alone[1]:.1f}/s, together at most {bound:.1f}"
        )
        print(f"     infer.py {rate:.1f}/s, {shares[-1]:.0%}", flush=True)
    _target(f"{median(shares):.0%} of what its parts allow", median(shares) >= 0.95, "95 %")
    for _ in range(rounds):
        mine, *others = (run(part, "mobilenet") for part in ("ours", "imgutils", "wdtagger"))
        rates = [measurement.answer["rate"] for measurement in (mine, *others)]
        peers.append(rates[0] / max(rates[1:]))
        print(f"mobilenet: infer.py {rates[0]:.1f}/s, {mine.peak:.2f} GB", end="")
        print(f", imgutils' loop {rates[1]:.1f}/s, wdtagger's {rates[2]:.1f}/s", flush=True)
    _target(f"{median(peers):.2f} times the faster peer", median(peers) >= 2, "2")
    seconds = median(run("first", "mobilenet").answer["seconds"] for _ in range(5))
    _target(f"{seconds:.2f} s for one image", seconds < 1.5, "1.5 s")
    _target(f"{mine.peak:.2f} GB at the peak", mine.peak < 0.6, "0.6 GB")


def _target(result: str, met: bool, goal: str) -> None:
    print(f"{result}; target {goal}: {'met' if met else 'MISSED'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where models and images are kept")
    parser.add_argument("--part", nargs=3, metavar=("PART", "MODEL", "IMAGES"))
    asked = parser.parse_args()
    if asked.part:
        name, model, images = asked.part
        print(json.dumps(PARTS[name](Path(model), Path(images))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        if not (folder / "images").exists():
            (folder / "images").mkdir(parents=True)
            measure.run(__file__, "--part", "made", folder, folder / "images")
        compare(folder, asked.rounds)


if __name__ == "__main__":
    main()
