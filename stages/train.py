"""Train the chosen preset on the training part, keeping the best and the last weights."""

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tagger import errors, files, parallel, params, scratch, tracking, vocabulary
from tagger.imaging import dataset, images
from tagger.network import backbone, carry
from tagger.training import keeping, setup
from tagger.training.keeping import Keeper
from tagger.training.loop import Training
from tagger.vocabulary import Tag

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
    images.begin()
    scratch.reach(*p.prepare.picture_folders)
    read = {path.stem: path for path in (POSTS, VOCABULARY, SPLIT)} | setup.starting_points(p)
    hashes = {name: files.sha256(files.require(path)) for name, path in read.items()}
    folder = scratch.of("train") / setup.fingerprint(p, hashes)
    with parallel.group() as group, scratch.alone(folder) if group.leads else nullcontext():
        keeping.start_log(folder / MODEL.name / keeping.LOG if group.leads else None)
        tags, parts = dataset.read(POSTS, TAGS, VOCABULARY, SPLIT)
        pictures = len(parts["train"])
        log.info(f"{p.model}: {p.preset.backbone}, {pictures:,} pictures, {len(tags)} tags")
        training = setup.training(p, tags, parts, group, folder)
        if group.leads:
            lead(p, training, tags, hashes, folder)
        else:
            deque(training.run(), maxlen=0)


def lead(
    p: params.Params, training: Training, tags: Sequence[Tag], hashes: dict[str, str], folder: Path
) -> None:
    """Run the training, and put what comes of it in its place."""
    making, begun = folder / MODEL.name, folder / MODEL.name / "run.json"
    run_id = files.read_json(begun)["run_id"] if begun.exists() else None
    data = tracking.digest(hashes)
    with tracking.run(p.model, run_id=run_id, preset=p.model, data=data, **hashes) as run:
        settings = setup.settings(p)
        files.write_json(begun, {"run_id": run.id, "params": settings, "data": hashes})
        if run_id is None:
            run.log_params(settings)
        used = {"training": training.part, "validation": training.judge.part}
        run.log_data(p.prepare.path.stem, data, POSTS, **used)
        run.log_machine()
        vocabulary.write(tags, making / "vocabulary.csv")
        training.preprocess.write(making / "preprocess.json")
        if training.carried:
            log.info(carry.summary(training.carried))
            files.write_csv(making / CARRIED, carry.HEADER, carry.rows(training.carried))
        backbone.save_config(training.model, training.preprocess, making)
        keeper = Keeper(training, making, CURVE, run, [tag.name for tag in tags])
        for judgement in training.run():
            keeper.keep(judgement)
        best = keeper.finish(MODEL)
        files.write_json(REPORT, best | {"left_out": training.left_out})
        run.log_params({"micro_batch": training.learner.micro_batch or "whole"})
        ended = folder.with_name(f"{p.model}-{p.recipe.epochs}.pt")
        log.info(f"To go on from here: train.resume_from={ended} with more train.epochs")
        files.copy(making, MODEL)  # what is killed from here on finds all that it needs
        logged = (MODEL / keeping.LOG, MODEL / CARRIED, CURVE, REPORT, VOCABULARY)
        run.log_files(*(path for path in logged if path.exists()))
        training.snapshots.move(ended)
    scratch.forget(folder)


if __name__ == "__main__":
    with errors.reported():
        main(params.of_stage(__doc__))
