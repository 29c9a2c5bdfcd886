"""Measure how fast images become normalised tensors of 448 px, beside timm's loader.

python tests/benchmarks/input_pipeline.py --rounds 3

Decoders, milliseconds for one image on one core, bytes to (448, 448, 3) by antialiased bicubic,
and the largest and mean difference from Pillow (0 to 255), as measured with --decoders:

             Pillow  its draft       torchvision    simplejpeg     libvips          ours
JPEG         13.6    6.0 (23, 0.47)  3.8 (1, 0.00)  5.6 (23, 0.47)  7.1 (8, 0.21)    4.7 (0, 0)
PNG          31.4                    19.3 (1, 0.00)                 15.4 (9, 0.26)  16.2 (0, 0)
WebP         17.2                     6.6 (2, 0.01)                 15.5 (21, 0.53)  8.9 (0, 0)
WebP, 4 MP   59.2                    24.5 (1, 0.00)                 28.6 (15, 0.41) 32.4 (0, 0)

Ours is libjpeg-turbo (simplejpeg), libspng and libwebp (imagecodecs) at full size and Pillow's
resize, compiled. torchvision's decoder ends the process at damaged PNG files and is to be removed;
scaled decoding (draft, simplejpeg, libvips) is not exact. simplejpeg takes 1 MB, libvips 20, and
imagecodecs 80.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, cast

import measure
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

from tagger.core.location import Location

SIZE = 448
KINDS = {  # format, side in pixels, times the images are read, times as fast as timm
    "jpeg": ("JPEG", 1024, 12, 3.0),
    "png": ("PNG", 1024, 12, 2.5),
    "webp": ("WEBP", 1024, 12, 2.5),
    "webp of 4 megapixels": ("WEBP", 2000, 6, 2.0),
}
DRAWN = 24  # images of each kind
_WORKERS = 2
_BATCH = 16


def draw(folder: Path) -> None:
    """Draw images like illustrations: flat shapes, soft shading, a little grain."""
    random = np.random.default_rng(0)
    for number in range(DRAWN):
        grid = random.integers(0, 255, (8, 8, 3), np.uint8)
        flat = Image.fromarray(grid).resize((2000, 2000), Image.Resampling.NEAREST)
        soft = random.integers(0, 255, (6, 6, 3), np.uint8)
        shade = Image.fromarray(soft).resize((2000, 2000), Image.Resampling.BICUBIC)
        grain = random.normal(0, 1.5, (2000, 2000, 1))
        pixels = np.asarray(Image.blend(flat, shade, 0.5)) + grain
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).rotate(number * 7)
        for kind, (form, side, _, _) in KINDS.items():
            path = folder / kind / f"{number:03d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize((side, side)).save(path, form, quality=92)


def rate(batches: Iterable[Any], count: Callable[[Any], int]) -> float:
    """Return the images a second after the first batch, for which processes are started."""
    remaining = iter(batches)
    next(remaining)
    start, images = time.perf_counter(), 0
    for batch in remaining:
        images += count(batch)
    return images / (time.perf_counter() - start)


def ours(files: list[Path]) -> float:
    import torch
    from scipy.sparse import csr_array

    from tagger.images import dataset, decode, loader
    from tagger.images.preprocess import Preprocess

    decode.init_process()
    places = [Location(str(file), 0, file.stat().st_size) for file in files]
    part = dataset.Split(places, csr_array((len(files), 10), dtype=np.bool_))
    prepared = Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3)
    order = loader.ResumableBatchSampler(len(files), _BATCH)
    batches = loader.build_loader(dataset.ImageDataset(part, prepared), order, workers=_WORKERS)
    cpu = torch.device("cpu")
    return rate((loader.to_device(batch, cpu, prepared)[0] for batch in batches), len)


def timm(files: list[Path]) -> float:
    import torch
    from timm.data import create_loader

    class Files(torch.utils.data.Dataset[Any]):
        transform: Any = None  # set by create_loader

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return self.transform(Image.open(files[row]).convert("RGB")), 0

    batches = create_loader(
        cast(Any, Files()),
        (3, SIZE, SIZE),
        _BATCH,
        use_prefetcher=False,
        interpolation="bicubic",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        crop_pct=1.0,
        num_workers=_WORKERS,
        persistent_workers=False,
    )
    return rate(batches, lambda batch: len(batch[0]))


def pillow(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def pillow_draft(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (SIZE, SIZE))
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def torchvision(data: bytes) -> Any:
    import torch
    from torchvision.io import decode_image
    from torchvision.transforms.v2.functional import resize

    decoded = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    return resize(decoded, [SIZE, SIZE], interpolation=3, antialias=True).permute(1, 2, 0).numpy()


def simplejpeg(data: bytes) -> Any:
    from simplejpeg import decode_jpeg

    image = Image.fromarray(decode_jpeg(data, min_height=SIZE, min_width=SIZE))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def libvips(data: bytes) -> Any:
    import pyvips

    return pyvips.Image.thumbnail_buffer(data, SIZE, height=SIZE).numpy()


def this_project(data: bytes) -> Any:
    from tagger.images import decode, resize

    return resize.resize_compiled(decode.open_pixels(data), (SIZE, SIZE), "bicubic")


def show_decoders(folder: Path) -> None:
    """Print the table of the docstring; simplejpeg and pyvips[binary] must be there."""
    import torch

    from tagger.images import decode

    decode.init_process()
    torch.set_num_threads(1)
    decoders = (pillow, pillow_draft, torchvision, simplejpeg, libvips, this_project)
    print(f"{'':22}" + "".join(f"{decoder.__name__:>22}" for decoder in decoders))
    for kind in KINDS:
        cells = []
        images = [path.read_bytes() for path in sorted((folder / kind).iterdir())]
        for decoder in decoders:
            if decoder is simplejpeg and kind != "jpeg":
                cells.append("")
                continue
            seconds = []
            for data in (images[0], *images):
                start = time.perf_counter()
                pixels = decoder(data)
                seconds.append(time.perf_counter() - start)
            off = np.abs(pixels.astype(int) - pillow(images[-1]))
            cells.append(f"{median(seconds) * 1e3:.1f} ({off.max()}, {off.mean():.2f})")
        print(f"{kind:22}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def compare(folder: Path, rounds: int) -> None:
    """Print pairs in turn, each in a fresh process, and the median of their ratios."""
    for kind, (_, _, _, goal) in KINDS.items():
        ratios = []
        for _ in range(rounds):
            theirs, mine = (
                measure.run(__file__, "--part", name, kind, "--folder", folder).answer
                for name in ("timm", "ours")
            )
            ratios.append(mine / theirs)
            print(f"{kind:22} timm {theirs:6.1f}/s   ours {mine:6.1f}/s   {ratios[-1]:5.2f}")
        met = "met" if median(ratios) >= goal else "MISSED"
        print(f"{kind:22} median {median(ratios):.2f}, target {goal}: {met}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where images are kept for the next time")
    parser.add_argument("--decoders", action="store_true")
    parser.add_argument("--part", nargs=2, metavar=("PART", "KIND"))
    asked = parser.parse_args()
    if asked.part:
        name, kind = asked.part
        files = sorted((asked.folder / kind).iterdir()) * KINDS[kind][2]
        print(json.dumps({"timm": timm, "ours": ours}[name](files)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary, "images")
        if not folder.exists():
            draw(folder)
        if asked.decoders:
            show_decoders(folder)
        else:
            compare(folder, asked.rounds)


if __name__ == "__main__":
    main()
