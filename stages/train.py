"""Train the chosen preset on the training part, keeping the best and the last weights."""

import logging
from collections import deque
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
REPORT = Path("metrics/train.json")
CARRIED = "carried_tags.csv"

log = logging.getLogger("train")


def main(p: params.Params) -> None:
    decode.init_process()
    scratch.link_project_folders(*p.prepare.image_folders)
    read = {path.stem: path for path in (POSTS, VOCABULARY, SPLIT)} | setup.starting_files(p)
    hashes = {name: files.sha256_file(files.require(path)) for name, path in read.items()}
    folder = scratch.stage_folder("train") / setup.fingerprint(p, hashes)
    with (
        distributed.process_group() as group,
        scratch.locked(folder) if group.is_main else nullcontext(),
    ):
        run_logger.start_log(folder / MODEL.name / run_logger.LOG if group.is_main else None)
        tags, parts = dataset.read_splits(POSTS, TAGS, VOCABULARY, SPLIT)
        pictures = len(parts["train"])
        log.info(f"{p.model}: {p.preset.backbone}, {pictures:,} pictures, {len(tags)} tags")
        training = setup.build_trainer(p, tags, parts, group, folder)
        if group.is_main:
            lead(p, training, tags, hashes, folder)
        else:
            deque(training.train(), maxlen=0)


def lead(
    p: params.Params, training: Trainer, tags: Sequence[Tag], hashes: dict[str, str], folder: Path
) -> None:
    """Run the training, and put what comes of it in its place."""
    making, begun = folder / MODEL.name, folder / MODEL.name / "run.json"
    run_id = files.read_json(begun)["run_id"] if begun.exists() else None
    data = runs.data_digest(hashes)
    with runs.start(p.model, run_id=run_id, preset=p.model, data=data, **hashes) as run:
        settings = setup.settings(p)
        files.write_json(begun, {"run_id": run.id, "params": settings, "data": hashes})
        if run_id is None:
            run.log_params(settings)
        splits = {"training": training.split, "validation": training.validator.split}
        counts = {name: split.counts() for name, split in splits.items()}
        run.log_data(p.prepare.path.stem, data, POSTS, counts)
        run.log_machine()
        vocabulary.write(tags, making / "vocabulary.csv")
        training.preprocess.write(making / "preprocess.json")
        if training.transferred_tags:
            log.info(head_transfer.summarize(training.transferred_tags))
            files.write_csv(
                making / CARRIED,
                head_transfer.HEADER,
                head_transfer.table_rows(training.transferred_tags),
            )
        backbone.save_config(training.model, training.preprocess, making)
        keeper = RunLogger(training, making, CURVE, run, [tag.name for tag in tags])
        for judgement in training.train():
            keeper.log_validation(judgement)
        best = keeper.finish(MODEL)
        files.write_json(REPORT, best | {"left_out": training.unreadable})
        run.log_params({"micro_batch": training.state.micro_batch or "whole"})
        ended = folder.with_name(f"{p.model}-{p.effective_train.epochs}.pt")
        log.info(f"To go on from here: train.resume_from={ended} with more train.epochs")
        files.copy_folder(making, MODEL)  # what is killed from here on finds all that it needs
        logged = (MODEL / run_logger.LOG, MODEL / CARRIED, CURVE, REPORT, VOCABULARY)
        run.log_files(*(path for path in logged if path.exists()))
        training.snapshots.move(ended)
    scratch.remove_folder(folder)


if __name__ == "__main__":
    with errors.exit_on_error():
        main(params.load_for_stage(__doc__))
