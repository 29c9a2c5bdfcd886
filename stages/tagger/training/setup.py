"""From parameters and data to a training that is ready to start, or to go on."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tagger.core import vocabulary
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.data.tags import rules
from tagger.images import loader
from tagger.images.augment import Augmentation, BatchAugmentation
from tagger.images.dataset import ImageDataset, Split
from tagger.images.loader import LabelledImages, ResumableBatchSampler
from tagger.images.preprocess import Preprocess
from tagger.models import backbone, checkpoints, freezing, head_transfer
from tagger.models.head_transfer import TransferredTag
from tagger.params import Params
from tagger.system.distributed import ProcessGroup
from tagger.training import linear_probe, losses, resume, snapshots
from tagger.training.learner import TrainState
from tagger.training.schedule import Schedule
from tagger.training.snapshots import Snapshots
from tagger.training.trainer import Trainer
from tagger.training.validation import Validator

# What decides how a training is done, and not what comes of it.
_INCIDENTAL = {"workers", "snapshot_every", "max_unreadable", "max_nonfinite_steps"}


def fingerprint(p: Params, hashes: Mapping[str, str]) -> str:
    """Return the name of a training, by everything that decides its outcome.

    hashes: of the files that it reads
    """
    recipe = p.effective_train.model_dump(mode="json", exclude=_INCIDENTAL)
    return snapshots.fingerprint([p.seed, p.preset.model_dump(), recipe, hashes])


def starting_files(p: Params) -> dict[str, Path]:
    """Return the files that a training starts from, as far as they are here, by the parameter."""
    given = p.preset.pretrained
    starts = {
        "init_from": p.effective_train.init_from,
        "resume_from": p.effective_train.resume_from,
        "pretrained": Path(given) if isinstance(given, str) else None,
    }
    found = {name: checkpoints.find_weights(start) for name, start in starts.items() if start}
    return {name: path for name, path in found.items() if path}


def settings(p: Params) -> dict[str, Any]:
    """Return what a training was asked for, as it is noted beside the model."""
    preset, recipe = p.preset.model_dump(mode="json"), p.effective_train.model_dump(mode="json")
    return {"seed": p.seed, "model": p.model, "preset": preset, "train": recipe}


def make_deterministic(seed: int) -> None:
    """Make every later choice and sum of torch follow from the seed, on the same machine."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # of what bf16 leaves in float32


def build_trainer(
    p: Params, tags: Sequence[Tag], splits: Mapping[str, Split], group: ProcessGroup, folder: Path
) -> Trainer:
    """Return a training, where its last snapshot in the folder left it, if any.

    Raises TaggerError where there is nothing to learn from, nothing left to do, or a snapshot that
    this version of the code does not know.
    """
    recipe, snapshots_folder = p.effective_train, Snapshots(folder / "snapshots")
    make_deterministic(p.seed)
    snapshot = snapshots_folder.load_newest()
    model, carried = _model(p, tags, group)
    preprocess = backbone.build_preprocess(model, p.preset, recipe.fit, recipe.background)
    backbone.check_sizes(model, recipe.augment.sizes)
    learning, learned, judged = _pictures(p, model, splits, preprocess)
    _check(p, splits["train"], learned.split, group)
    loss = losses.build_loss(recipe.loss, torch.from_numpy(learned.split.tag_counts()))
    learner = TrainState(learning, loss, p.preset, recipe, group, p.seed)
    order = ResumableBatchSampler(
        len(learned.split),
        p.preset.batch_size,
        p.seed,
        sizes=[preprocess.size, *recipe.augment.sizes],
        drop_last=True,
        rank_and_size=group.rank_and_size,
    )
    stages = (
        len(freezing.parameters_by_stage(model))
        if recipe.freeze and not recipe.cache_embeddings
        else 0
    )
    plan = Schedule(
        recipe, order.batches_per_epoch, min(p.preset.batch_size, len(learned.split)), stages
    )
    position = resume.restore(learner, plan, snapshot, snapshots_folder.folder)
    _agree(learner, plan, order, len(tags))
    order.batch_numbers = range(
        position.step, position.step if plan.is_over(position) else plan.steps
    )
    in_turn = ResumableBatchSampler(
        len(judged.split), _judged_at_a_time(p, group), rank_and_size=group.rank_and_size
    )
    build_loader = partial(
        loader.build_loader,
        workers=0 if recipe.cache_embeddings else recipe.workers,
        unlabelled=[vocabulary.category_columns(tags, category) for category in recipe.unlabelled],
    )
    return Trainer(
        model=model,
        state=learner,
        split=learned.split,
        batches=build_loader(learned, order),
        preprocess=preprocess,
        augment=_batch_augmentation(p),
        validator=Validator(judged.split, build_loader(judged, in_turn), preprocess, group),
        schedule=plan,
        position=position,
        snapshots=snapshots_folder,
        transferred_tags=carried,
        lacking=len(splits["train"]) - len(learned.split),
    )


def _agree(learner: TrainState, plan: Schedule, order: ResumableBatchSampler, tags: int) -> None:
    """Let processes on GPUs find together how many pictures fit at a time, if that is not given.

    A head on embeddings takes no pictures, and little room.
    """
    group, recipe = learner.group, plan.params
    alone = group.world.size == 1 or group.device.type != "cuda"
    if alone or learner.micro_batch or recipe.cache_embeddings:
        return
    side = max(order.sizes)
    pixels = torch.zeros(len(next(iter(order))), 3, side, side, device=group.device)
    learner.find_micro_batch(pixels, pixels.new_zeros(len(pixels), tags), plan.batch_size)


def _judged_at_a_time(p: Params, group: ProcessGroup) -> int:
    """Return how many pictures all processes judge together.

    Those that hold parts of the model cannot take fewer once they have begun.
    """
    if p.effective_train.parallel == "fsdp" and p.effective_train.micro_batch:
        return min(p.preset.batch_size, p.effective_train.micro_batch * group.world.size)
    return p.preset.batch_size


def _model(
    p: Params, tags: Sequence[Tag], group: ProcessGroup
) -> tuple[nn.Module, list[TransferredTag]]:
    """Return the model on the device, and what became of the tags of the one it starts from.

    It is that of the beginning also where a snapshot will take its place: weights that are not
    trained, and constants of the preprocessing, come from there.
    """
    recipe = p.effective_train
    start = False if recipe.init_from else p.preset.pretrained
    preset = p.preset.model_copy(update={"pretrained": start})
    model: Any = backbone.build_model(preset, len(tags), recipe.head)
    carried: list[TransferredTag] = []
    if recipe.init_from:
        aliases = rules.read(*p.prepare.rule_folders).current_names
        carried = head_transfer.transfer_head(
            model, recipe.init_from, preset.backbone, tags, aliases, recipe.new_tags
        )
    if recipe.gradient_checkpointing:
        backbone.enable_gradient_checkpointing(model)
    return backbone.to_device(model, group.device), carried


def _pictures(
    p: Params, model: nn.Module, parts: Mapping[str, Split], preprocess: Preprocess
) -> tuple[nn.Module, LabelledImages, LabelledImages]:
    """Return what learns, what it learns from and what it is judged on."""
    part, validation = (
        parts["train"],
        parts["validation"].evenly_spaced(p.effective_train.validate_on),
    )
    if p.effective_train.cache_embeddings:
        by = partial(
            linear_probe.embed,
            model,
            preprocess=preprocess,
            batch_size=p.preset.batch_size,
            workers=p.effective_train.workers,
        )
        head: Any = model
        return head.get_classifier(), by(part), by(validation)
    augmented = ImageDataset(part, preprocess, _augmentation(p), replace_unreadable=True)
    return model, augmented, ImageDataset(validation, preprocess)


def _check(p: Params, whole: Split, part: Split, group: ProcessGroup) -> None:
    """Raise TaggerError where the pictures, or the batch, are too few.

    part: the pictures of the whole that are known to be readable, or not yet looked at
    """
    if len(whole) - len(part) > p.effective_train.max_unreadable * len(whole):
        raise TaggerError(
            f"{len(whole) - len(part):,} of {len(whole):,} training pictures cannot be read. Run "
            "prepare again, or raise train.max_unreadable."
        )
    if len(part) < 2:
        raise TaggerError(f"Training needs at least 2 pictures, the split gives {len(part)}.")
    batch = min(p.preset.batch_size, len(part))
    if batch < 2 * group.world.size:
        raise TaggerError(
            f"A batch of {batch} pictures is too small for {group.world.size} processes: each "
            "needs 2. Raise the preset's batch_size, or start fewer."
        )


def _augmentation(p: Params) -> Augmentation:
    wanted = p.effective_train.augment
    return Augmentation(
        p.seed, wanted.min_crop, wanted.flip, wanted.random_resize, wanted.trivial_augment
    )


def _batch_augmentation(p: Params) -> BatchAugmentation:
    wanted = p.effective_train.augment
    if p.effective_train.cache_embeddings:
        return BatchAugmentation(p.seed)
    return BatchAugmentation(p.seed, wanted.mixup, wanted.cutmix, wanted.cutout)
