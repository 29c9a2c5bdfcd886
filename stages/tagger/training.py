"""The training loop: one epoch after another, each told as it ends."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tagger import dataset, losses, metrics, progress
from tagger.augment import Augmentation, BatchAugmentation
from tagger.dataset import Order, Part, Pictures
from tagger.errors import TaggerError
from tagger.params import Preset, Train
from tagger.predict import predict
from tagger.preprocess import Preprocess

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training pictures came to."""

    number: int  # from 1
    loss: float  # mean over the pictures, in nats
    learning_rate: float  # at the end of the epoch
    macro_ap: float  # on validation
    micro_ap: float
    pictures_per_second: float
    seconds_left: float
    failures: list[str]  # pictures left out, with the reason

    def numbers(self) -> dict[str, float]:
        """Return what is plotted, rounded to what is meant by it."""
        return {
            "loss": round(self.loss, 4),
            "learning_rate": float(f"{self.learning_rate:.4g}"),
            "macro_ap": round(self.macro_ap, 6),
            "micro_ap": round(self.micro_ap, 6),
        }

    def line(self, epochs: int, gain: float) -> str:
        """Return the epoch as a person would read it; `gain` is that over the best before."""
        left = self.seconds_left
        return (
            f"epoch {self.number}/{epochs}  loss {self.loss:.2f}  "
            f"macro AP {self.macro_ap:.3f} ({gain:+.3f})  "
            f"{self.pictures_per_second:,.0f} pictures/s  "
            + (f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        )


def make_deterministic(seed: int) -> None:
    """Make every later choice and sum of torch follow from the seed, on the same machine."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def epochs(
    model: nn.Module,
    parts: dict[str, Part],
    preprocess: Preprocess,
    preset: Preset,
    recipe: Train,
    seed: int,
) -> Iterator[Epoch]:
    """Train the model where it lies, and yield after every epoch.

    Raises TaggerError where there is nothing to learn from, or the loss is no number.
    """
    part, device = parts["train"], next(model.parameters()).device
    if len(part) < 2:
        raise TaggerError(f"Training needs at least 2 pictures, the split gives {len(part)}.")
    sizes = [preprocess.size, *recipe.sizes]
    order = Order(len(part), preset.batch_size, seed, sizes=sizes, whole=True)
    pictures = Pictures(part, preprocess, augmentation_of(recipe, seed), replacing=True)
    batches = dataset.loader(pictures, order, workers=recipe.workers)
    optimizer = optimizer_of(model, preset, recipe)
    schedule = schedule_of(optimizer, recipe.epochs * len(batches), recipe.warmup)
    step = partial(
        _step, model, optimizer, schedule, loss_of(recipe), _autocast(device, recipe.precision)
    )
    started = time.monotonic()
    for number in range(1, recipe.epochs + 1):
        order.epoch = number
        begun = time.monotonic()
        inputs = _inputs(batches, order, preprocess, recipe, device)
        model.train()
        loss, seen, failures = _train_epoch(inputs, step, part, recipe.max_unreadable)
        rate = seen / (time.monotonic() - begun)
        judged = predict(
            model,
            parts["validation"],
            preprocess,
            batch_size=preset.batch_size,
            workers=recipe.workers,
        )
        yield Epoch(
            number=number,
            loss=loss,
            learning_rate=max(map(float, schedule.get_last_lr())),
            macro_ap=metrics.macro_ap(judged.scores, judged.truth),
            micro_ap=metrics.micro_ap(judged.scores, judged.truth),
            pictures_per_second=rate,
            seconds_left=(time.monotonic() - started) / number * (recipe.epochs - number),
            failures=[f"{part.places[row].path}: {why}" for row, why in failures.items()],
        )


def _inputs(
    batches: DataLoader[Any],
    order: Order,
    preprocess: Preprocess,
    recipe: Train,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, list[dataset.Failure]]]:
    """Yield pixels and targets of an epoch on the device, and what could not be read."""
    augment = BatchAugmentation(order.seed or 0, recipe.mixup, recipe.cutout)
    for number, batch in enumerate(progress.track(batches, "training")):
        pixels, targets = dataset.to_device(batch, device, preprocess)
        yield *augment(pixels, targets, order.epoch, number), batch.failures


def _train_epoch(
    inputs: Iterable[tuple[Tensor, Tensor, list[dataset.Failure]]],
    step: Callable[..., float],
    part: Part,
    max_unreadable: float,
) -> tuple[float, int, dict[int, str]]:
    """Return the mean loss, the pictures seen, and the reason for each that cannot be read."""
    total, seen = 0.0, 0
    failures: dict[int, str] = {}
    for pixels, targets, failed in inputs:
        failures |= failed
        if len(failures) > max_unreadable * len(part):
            row, reason = next(iter(failures.items()))
            raise TaggerError(
                f"{len(failures):,} of {len(part):,} training pictures cannot be read, "
                f"{part.places[row].path} first: {reason}. Run prepare again, or raise "
                "train.max_unreadable."
            )
        if len(pixels) > 1:  # batch norm needs two
            total += step(pixels, targets) * len(pixels)
            seen += len(pixels)
    return total / max(seen, 1), seen, failures


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
    loss_function: Loss,
    autocast: AbstractContextManager[object],
    pixels: Tensor,
    targets: Tensor,
) -> float:
    with autocast:
        logits = model(pixels)
    loss = loss_function(logits, targets)
    value = loss.item()
    if not math.isfinite(value):
        raise TaggerError(
            f"The loss is {value} after {schedule.last_epoch:,} steps. "
            "Lower the preset's learning_rate, or set train.precision to fp32."
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    schedule.step()
    return value


def loss_of(recipe: Train) -> Loss:
    if recipe.loss == "bce":
        return losses.binary_cross_entropy
    return partial(
        losses.asymmetric_loss,
        gamma_negative=recipe.gamma_negative,
        gamma_positive=recipe.gamma_positive,
        clip=recipe.clip,
    )


def augmentation_of(recipe: Train, seed: int) -> Augmentation:
    return Augmentation(
        seed, recipe.min_crop, recipe.flip, recipe.random_resize, recipe.trivial_augment
    )


def optimizer_of(model: nn.Module, preset: Preset, recipe: Train) -> Optimizer:
    """Return AdamW with layer-wise learning rates, without decay on norms and biases."""
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=preset.learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=preset.layer_decay if preset.layer_decay < 1 else None,
    )
    for group in optimizer.param_groups:  # which only timm's own schedulers would do
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


def schedule_of(optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Return a learning rate that rises for a share of the steps, then falls as a cosine."""
    rising = max(1, round(warmup * steps))

    def share_of_peak(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / max(1, steps - rising)))

    return LambdaLR(optimizer, share_of_peak)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    if device.type == "cuda" and precision == "bf16":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
