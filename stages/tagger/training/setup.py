"""Builds a trainer from parameters and data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

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
from tagger.training.schedule import Position, Schedule
from tagger.training.snapshots import Snapshots
from tagger.training.train_state import TrainState
from tagger.training.trainer import Trainer
from tagger.training.validation import Validator

# Keys of `train` that do not change the trained model.
_WITHOUT_EFFECT = {"workers", "snapshot_every", "max_unreadable", "max_nonfinite_steps"}


def fingerprint(p: Params, hashes: Mapping[str, str]) -> str:
    """Return a name for a training made of everything that decides its outcome.

    hashes: of the files that it reads
    """
    train = p.train.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    preset = p.preset.model_dump(exclude={"train"})
    return snapshots.fingerprint([p.seed, preset, train, hashes])


def starting_files(p: Params) -> dict[str, Path]:
    """Return the local files from which a training starts, by the parameter that names them."""
    pretrained = p.preset.pretrained
    paths = {
        "init_from": p.train.init_from,
        "resume_from": p.train.resume_from,
        "pretrained": Path(pretrained) if isinstance(pretrained, str) else None,
    }
    weights = {name: checkpoints.find_weights(path) for name, path in paths.items() if path}
    return {name: path for name, path in weights.items() if path}


def settings(p: Params) -> dict[str, Any]:
    """Return the parameters of a training, to be kept beside the model."""
    preset = p.preset.model_dump(mode="json", exclude={"train"})
    train = p.train.model_dump(mode="json")
    return {"seed": p.seed, "model": p.model, "preset": preset, "train": train}


def make_deterministic(seed: int) -> None:
    """Make every later choice and sum of torch follow from the seed, on the same machine."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # for what bf16 leaves in float32


def build_trainer(
    p: Params, tags: Sequence[Tag], splits: Mapping[str, Split], group: ProcessGroup, folder: Path
) -> Trainer:
    """Return a trainer at the position of the last snapshot in the folder, if there is one.

    Raises TaggerError if there are too few images, nothing is left to do, or a snapshot is of
    another version of this code.
    """
    make_deterministic(p.seed)
    saved = Snapshots(folder / "snapshots")
    model, transferred_tags = _build_model(p, tags, group)
    preprocess = backbone.build_preprocess(model, p.preset, p.train.fit, p.train.background)
    backbone.check_sizes(model, p.train.augment.sizes)
    trained, images, validation_images = _build_datasets(p, model, splits, preprocess)
    _check_sizes(p, splits["train"], images.split, group)
    state = TrainState(trained, p.preset, p.train, group)
    schedule = _build_schedule(p, model, len(images.split))
    position = resume.restore(state, schedule, saved.load_newest(), saved.folder)
    sizes = [preprocess.size, *p.train.augment.sizes]
    train_sampler = _train_sampler(p, len(images.split), sizes, schedule, position, group)
    validation_sampler = _validation_sampler(p, len(validation_images.split), group)
    return Trainer(
        params=p.train,
        seed=p.seed,
        group=group,
        model=model,
        state=state,
        loss=losses.build_loss(p.train.loss, torch.from_numpy(images.split.tag_counts())),
        split=images.split,
        batches=_build_loader(p, tags, images, train_sampler),
        preprocess=preprocess,
        augment=_batch_augmentation(p),
        validator=Validator(
            validation_images.split,
            _build_loader(p, tags, validation_images, validation_sampler),
            preprocess,
            group,
        ),
        schedule=schedule,
        position=position,
        snapshots=saved,
        transferred_tags=transferred_tags,
        unreadable_at_start=len(splits["train"]) - len(images.split),
    )


def _build_model(
    p: Params, tags: Sequence[Tag], group: ProcessGroup
) -> tuple[nn.Module, list[TransferredTag]]:
    """Return the model on the device, and what became of the tags of `train.init_from`.

    It has its first weights also if a snapshot will replace them: weights that do not train, and
    constants of the preprocessing, come from there.
    """
    pretrained = False if p.train.init_from else p.preset.pretrained
    preset = p.preset.model_copy(update={"pretrained": pretrained})
    model: Any = backbone.build_model(preset, len(tags), p.train.head)
    transferred_tags: list[TransferredTag] = []
    if p.train.init_from:
        aliases = rules.read(*p.prepare.rule_folders).current_names
        transferred_tags = head_transfer.transfer_head(
            model, p.train.init_from, preset.backbone, tags, aliases, p.train.new_tags
        )
    if p.train.gradient_checkpointing:
        backbone.enable_gradient_checkpointing(model)
    return backbone.to_device(model, group.device), transferred_tags


def _build_datasets(
    p: Params, model: nn.Module, splits: Mapping[str, Split], preprocess: Preprocess
) -> tuple[nn.Module, LabelledImages, LabelledImages]:
    """Return what trains of the model, and the images to train and to validate on."""
    train, validation = splits["train"], splits["validation"].evenly_spaced(p.train.validate_on)
    if p.train.cache_embeddings:
        batches = {"batch_size": p.preset.batch_size, "workers": p.train.workers}
        whole_model: Any = model
        return (
            whole_model.get_classifier(),
            linear_probe.embed(model, train, preprocess, **batches),
            linear_probe.embed(model, validation, preprocess, **batches),
        )
    augment = p.train.augment
    augmentation = Augmentation(
        p.seed, augment.min_crop, augment.flip, augment.random_resize, augment.trivial_augment
    )
    images = ImageDataset(train, preprocess, augmentation, replace_unreadable=True)
    return model, images, ImageDataset(validation, preprocess)


def _check_sizes(p: Params, split: Split, readable: Split, group: ProcessGroup) -> None:
    """Raise TaggerError if there are too few images, or the batch is too small."""
    unreadable = len(split) - len(readable)
    if unreadable > p.train.max_unreadable * len(split):
        raise TaggerError(
            f"{unreadable:,} of {len(split):,} training images cannot be read. Run prepare again, "
            "or raise train.max_unreadable."
        )
    if len(readable) < 2:
        raise TaggerError(f"Training needs at least 2 images, the split has {len(readable)}.")
    batch = min(p.preset.batch_size, len(readable))
    if batch < 2 * group.world.size:
        raise TaggerError(
            f"A batch of {batch} images is too small for {group.world.size} processes: each needs "
            "2. Raise the preset's batch_size, or start fewer processes."
        )


def _build_schedule(p: Params, model: nn.Module, images: int) -> Schedule:
    """Return the schedule; a last batch that is not full is dropped, unless it is the only one."""
    freezes = p.train.freeze and not p.train.cache_embeddings
    return Schedule(
        p.train,
        steps_per_epoch=max(1, images // p.preset.batch_size),
        batch_size=min(p.preset.batch_size, images),
        backbone_stages=len(freezing.parameters_by_stage(model)) if freezes else 0,
    )


def _train_sampler(
    p: Params,
    images: int,
    sizes: Sequence[int],
    schedule: Schedule,
    position: Position,
    group: ProcessGroup,
) -> ResumableBatchSampler:
    """Return the batches from the position on, none if the training is over."""
    end = position.step if schedule.is_over(position) else schedule.steps
    return ResumableBatchSampler(
        images,
        p.preset.batch_size,
        p.seed,
        sizes=sizes,
        drop_last=True,
        batch_numbers=range(position.step, end),
        rank_and_size=group.rank_and_size,
    )


def _validation_sampler(p: Params, images: int, group: ProcessGroup) -> ResumableBatchSampler:
    batch_size = p.preset.batch_size
    if p.train.parallel == "fsdp" and p.train.micro_batch:
        # Processes that hold shards of the model cannot halve a batch that does not fit.
        batch_size = min(batch_size, p.train.micro_batch * group.world.size)
    return ResumableBatchSampler(images, batch_size, rank_and_size=group.rank_and_size)


def _build_loader(
    p: Params, tags: Sequence[Tag], images: LabelledImages, sampler: ResumableBatchSampler
) -> DataLoader[Any]:
    return loader.build_loader(
        images,
        sampler,
        workers=0 if p.train.cache_embeddings else p.train.workers,
        unlabelled=[vocabulary.category_columns(tags, name) for name in p.train.unlabelled],
    )


def _batch_augmentation(p: Params) -> BatchAugmentation:
    if p.train.cache_embeddings:  # embeddings are not mixed
        return BatchAugmentation(p.seed)
    augment = p.train.augment
    return BatchAugmentation(p.seed, augment.mixup, augment.cutmix, augment.cutout)
