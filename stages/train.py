"""Train the chosen preset on the training split, keeping the best and the last weights."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tagger import params
from tagger.core import errors, files, vocabulary
from tagger.core.vocabulary import Tag
from tagger.images import dataset, decode
from tagger.models import backbone, head_transfer
from tagger.system import distributed, scratch
from tagger.tracking import runs
from tagger.training import run_logger, setup
from tagger.training.run_logger import RunLogger
from tagger.training.trainer import Trainer

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
CURVE = Path("metrics/train.csv")
METRICS = Path("metrics/train.json")
TRANSFERRED_TAGS = "carried_tags.csv"

log = logging.getLogger("train")


def main(p: params.Params) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.image_folders)
    inputs = {path.stem: path for path in (POSTS, VOCABULARY, SPLIT)} | setup.starting_files(p)
    hashes = {name: files.sha256_file(files.require(path)) for name, path in inputs.items()}
    folder = scratch.stage_folder("train") / setup.fingerprint(p, hashes)
    with (
        distributed.process_group() as group,
        scratch.locked(folder) if group.is_main else nullcontext(),
    ):
        run_logger.start_log(folder / MODEL.name / run_logger.LOG if group.is_main else None)
        tags, splits = dataset.read_splits(POSTS, TAGS, VOCABULARY, SPLIT)
        images = len(splits["train"])
        log.info(f"{p.model}: {p.preset.backbone}, {images:,} images, {len(tags)} tags")
        trainer = setup.build_trainer(p, tags, splits, group, folder)
        if group.is_main:
            train_and_publish(p, trainer, tags, hashes, folder)
        else:
            trainer.train()


def train_and_publish(
    p: params.Params, trainer: Trainer, tags: Sequence[Tag], hashes: dict[str, str], folder: Path
) -> None:
    """Train with files in a scratch folder and a run in MLflow, then move the files to MODEL."""
    unfinished, run_file = folder / MODEL.name, folder / MODEL.name / "run.json"
    run_id = files.read_json(run_file)["run_id"] if run_file.exists() else None
    data = runs.data_digest(hashes)
    with runs.start(p.model, run_id=run_id, preset=p.model, data=data, **hashes) as run:
        settings = setup.settings(p)
        files.write_json(run_file, {"run_id": run.id, "params": settings, "data": hashes})
        if run_id is None:
            run.log_params(settings)
        splits = {"training": trainer.split, "validation": trainer.validator.split}
        counts = {name: split.counts() for name, split in splits.items()}
        run.log_data(p.prepare.path.stem, data, POSTS, counts)
        run.log_machine()
        write_description(trainer, tags, unfinished)
        logger = RunLogger(trainer, unfinished, CURVE, run, [tag.name for tag in tags])
        trainer.train(logger)
        best = logger.finish(MODEL)
        files.write_json(METRICS, best | {"unreadable": trainer.unreadable})
        run.log_params({"micro_batch": trainer.state.micro_batch.size or "whole"})
        snapshot = folder.with_name(f"{p.model}-{p.train.epochs}.pt")
        log.info(f"To train longer: train.resume_from={snapshot} and more train.epochs")
        files.copy_folder(unfinished, MODEL)  # after this a killed run finds everything it needs
        paths = MODEL / run_logger.LOG, MODEL / TRANSFERRED_TAGS, CURVE, METRICS, VOCABULARY
        run.log_files(*(path for path in paths if path.exists()))
        trainer.snapshots.move_newest(snapshot)
    scratch.remove_folder(folder)


def write_description(trainer: Trainer, tags: Sequence[Tag], folder: Path) -> None:
    """Write what belongs to the weights: vocabulary, preprocessing, configuration."""
    vocabulary.write(tags, folder / "vocabulary.csv")
    trainer.preprocess.write(folder / "preprocess.json")
    backbone.save_config(trainer.model, trainer.preprocess, folder)
    if trainer.transferred_tags:
        log.info(head_transfer.summarize(trainer.transferred_tags))
        table = head_transfer.table_rows(trainer.transferred_tags)
        files.write_csv(folder / TRANSFERRED_TAGS, head_transfer.HEADER, table)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__))
