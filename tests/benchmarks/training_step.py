"""Measure a training step beside timm's.

python tests/benchmarks/training_step.py
python tests/benchmarks/training_step.py --model eva02_large --batch 64 --tags 10000 --compile

A model is a preset of params.yaml, its weights drawn at random. timm's step is that of its
train.py: its task for many labels, its AdamW, the switches that it sets, the loss read at each
step. Both take turns in one process, on the same batch, which lies in the memory of the device.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import measure
import yaml
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parents[2] / "stages"))

from tagger import params
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.models import backbone
from tagger.params import Params
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import setup
from tagger.training.trainer import Trainer

# isort: split
import torch  # after tagger, which says how its threads wait

ROOT = Path(__file__).parents[2]
PER_POST = 30  # tags
DECAY = 0.998  # of the moving average
_WARMING = 3  # steps before any is measured
_PEAKS = {  # dense operations in bf16 a second, by NVIDIA's data sheets
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "4090": 165e12,
}

Step = Callable[[int], None]  # with a number


def requested_params(args: argparse.Namespace, model: str, **train: Any) -> Params:
    """Return params.yaml with a preset, and with what the arguments change."""
    content = yaml.safe_load((ROOT / params.PATH).read_text(encoding="utf-8"))
    precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    sizes = {"image_size": args.size, "batch_size": args.batch}
    preset = content["models"][model] | {key: value for key, value in sizes.items() if value}
    preset["pretrained"] = False
    preset["train"] = preset.get("train", {}) | {"precision": precision, "compile": args.compile}
    preset["train"] |= {"optimizer": "adamw"} | train  # timm's step uses AdamW
    content["models"][model] = preset
    return params.parse(content | {"model": model})


def single_process(device: str) -> ProcessGroup:
    return ProcessGroup(World(0, 1, 0, 1), torch.device(device))


def noise_batch(p: Params, tags: int, device: str) -> Batch:
    """Return a batch of noise in the memory of the device."""
    count, size = p.preset.batch_size, p.preset.image_size
    torch.manual_seed(0)
    pixels = torch.randn(count, 3, size, size).to(device, memory_format=torch.channels_last)
    targets = (torch.rand(count, tags) < PER_POST / tags).float().to(device)
    return Batch(list(range(count)), pixels, targets, [])


def named_tags(count: int) -> list[Tag]:
    return [Tag(number, f"tag_{number:05d}", 0, PER_POST) for number in range(count)]


def build_trainer(p: Params, tags: int, device: str) -> Trainer:
    """Return a trainer of images that do not exist, ready for its first step."""
    images = p.preset.batch_size
    split = Split([Location("none", 0, 0)] * images, csr_array((images, tags), dtype=bool))
    splits, group = {"train": split, "validation": split}, single_process(device)
    trainer = setup.build_trainer(p, named_tags(tags), splits, group, Path("none"))
    trainer.state.freeze_stages(0)
    return trainer


def own_step(trainer: Trainer, batch: Batch) -> Step:
    """Return the step of the trainer, at any position."""

    def step(number: int) -> None:
        trainer.position.step = number
        trainer.train_step(batch)

    return step


def timm(p: Params, batch: Batch, tags: int, device: str) -> Step:
    from timm.optim import create_optimizer_v2
    from timm.task import MultiLabelClassificationTask
    from timm.utils import ModelEmaV3

    preset, recipe = p.preset, p.train
    model = backbone.to_device(backbone.build_model(preset, tags), torch.device(device)).train()
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=preset.learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=preset.layer_decay if preset.layer_decay < 1 else None,
    )
    average = ModelEmaV3(model, recipe.ema, use_warmup=True) if recipe.ema else None
    summed = {"bce_sum": True}
    task = MultiLabelClassificationTask(
        model, criterion_kwargs=summed, device=torch.device(device), verbose=False
    )
    if recipe.compile:
        task.compile()

    def step(number: int) -> None:
        inputs, targets = batch.pixels, batch.targets
        with _autocast(p, device):
            loss = task(inputs, targets)["loss"]
        loss.backward()
        optimizer.step()
        loss.item()
        optimizer.zero_grad()
        if average:
            average.update(model, step=number + 1)

    return step


def _autocast(p: Params, device: str) -> AbstractContextManager[object]:
    bf16 = p.train.precision == "bf16"
    return torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()


def _switch(mine: bool, seed: int) -> None:
    """Tell torch for the whole process what we do, or what timm's train.py does."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = not mine
    torch.backends.cuda.matmul.allow_tf32 = not mine
    if mine:
        setup.make_deterministic(seed)


def seconds(step: Step, first: int, count: int, device: str) -> float:
    """Return how long each of so many steps takes, once one is taken."""
    step(first)
    _finish(device)
    start = time.perf_counter()
    for number in range(first + 1, first + 1 + count):
        step(number)
    _finish(device)
    return (time.perf_counter() - start) / count


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def beside(p: Params, tags: int, device: str, steps: int, rounds: int) -> dict[str, Any]:
    """Return the pictures a second of timm's step and ours in turn, and operations a picture."""
    batch = noise_batch(p, tags, device)
    contenders = [timm(p, batch, tags, device), own_step(build_trainer(p, tags, device), batch)]
    rates = []
    for turn in range(rounds + 1):
        count = steps if turn else _WARMING
        pair = []
        for mine, step in enumerate(contenders):
            _switch(bool(mine), p.seed)
            pair.append(len(batch.rows) / seconds(step, turn * (steps + 1), count, device))
        rates.append(pair)
    operations = _operations(p, tags, device) if device == "cuda" else 0
    return {"rates": rates[1:], "operations": operations}


def _operations(p: Params, tags: int, device: str) -> float:
    """Return how many operations a picture takes in products of matrices, forth and twice back.

    The way back is not counted: torch takes convolutions by channel for whole ones there.
    """
    from torch.utils.flop_counter import FlopCounterMode

    two = p.preset.model_copy(update={"batch_size": 2})
    few = p.model_copy(update={"models": {p.model: two}})
    inputs = noise_batch(few, tags, device).pixels
    model = backbone.to_device(backbone.build_model(two, tags), torch.device(device)).train()
    with FlopCounterMode(display=False) as counter, _autocast(p, device):
        model(inputs)
    return 3 * float(counter.get_total_flops()) / 2


def compare(asked: argparse.Namespace) -> None:
    p = requested_params(asked, asked.model)
    preset, what = p.preset, f"{asked.device}, {p.train.precision}, {asked.tags:,} tags"
    what += ", compiled" if asked.compile else ""
    print(f"{preset.backbone}, {preset.image_size} px, batch of {preset.batch_size}, {what}")
    for ema in (0.0, DECAY):
        got = measure.run(__file__, *sys.argv[1:], "--ema", ema).answer
        for theirs, mine in got["rates"]:
            print(f"moving average {ema:<6} timm {theirs:7.1f}/s   ours {mine:7.1f}/s", end="")
            print(f"   {mine / theirs:5.2f}")
        ratio = median(mine / theirs for theirs, mine in got["rates"])
        target(f"median {ratio:.3f} times timm's", ratio >= 1, "1")
        if asked.device == "cuda":
            name = torch.cuda.get_device_name()
            peak = next((most for device, most in _PEAKS.items() if device in name), math.nan)
            used = got["operations"] * median(rate for _, rate in got["rates"]) / peak
            print(f"{used:.0%} of the peak of {name} ({peak / 1e12:.0f} Tflop/s in bf16)")


def target(result: str, met: bool, goal: str) -> None:
    print(f"{result}; target {goal}: {'met' if met else 'MISSED'}", flush=True)


def options() -> argparse.ArgumentParser:
    """Return what both benchmarks of training are asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, help="pixels, square; else those of the preset")
    parser.add_argument("--batch", type=int, help="pictures; else those of the preset")
    parser.add_argument("--tags", type=int, default=1_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--model", default="mobilenetv4", help="a preset of params.yaml")
    parser.add_argument("--steps", type=int, default=30, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    return parser


def main() -> None:
    parser = options()
    parser.description = __doc__
    parser.add_argument("--ema", type=float, help="ours and timm's once, in this process")
    asked = parser.parse_args()
    if asked.ema is None:
        compare(asked)
        return
    p = requested_params(asked, asked.model, ema=asked.ema)
    print(json.dumps(beside(p, asked.tags, asked.device, asked.steps, asked.rounds)))


if __name__ == "__main__":
    main()
