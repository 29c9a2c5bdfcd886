"""Train the chosen preset on the training part, keeping the best and the last checkpoint."""

import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tagger import backbone, dataset, errors, files, images, params, tracking, training, vocabulary
from tagger.training import Epoch

POSTS = Path("data/posts.parquet")
TAGS = Path("data/tags.parquet")
VOCABULARY = Path("data/vocabulary.csv")
SPLIT = Path("data/split.parquet")
MODEL = Path("models/tagger")
LOG = MODEL / "train.log"
BEST = MODEL / backbone.WEIGHTS
LAST = MODEL / "last.safetensors"
CURVE = Path("metrics/train.csv")
REPORT = Path("metrics/train.json")

log = logging.getLogger("train")


def main(p: params.Params) -> None:
    start_log()
    images.begin()
    training.make_deterministic(p.seed)
    tags, parts = dataset.read(POSTS, TAGS, VOCABULARY, SPLIT)
    model = backbone.to_device(backbone.build(p.preset, len(tags)))
    preprocess = backbone.preprocessing(model, p.preset, p.train.fit, p.train.background)
    backbone.check_sizes(model, p.train.sizes)
    hashes = {path.stem: files.sha256(path) for path in (POSTS, VOCABULARY, SPLIT)}
    settings = p.model_dump(include={"seed", "model", "train"}) | {"preset": p.preset.model_dump()}
    log.info(f"{p.model}: {p.preset.backbone}, {len(parts['train']):,} pictures, {len(tags)} tags")
    with tracking.run(p.model, preset=p.model, **hashes) as run:
        run.log_params(settings)
        vocabulary.write(tags, MODEL / "vocabulary.csv")
        preprocess.write(MODEL / "preprocess.json")
        backbone.save_config(model, preprocess, MODEL)
        files.write_json(MODEL / "run.json", {"run_id": run.id, "params": settings, "data": hashes})
        learning = training.epochs(model, parts, preprocess, p.preset, p.train, p.seed)
        save = partial(backbone.save_weights, model)
        history = keep(learning, save, p.train.epochs, run)
        best, last = max(history, key=lambda epoch: epoch.macro_ap), history[-1]
        run.log_checkpoint("best", BEST, best.numbers(), best.number)
        run.log_checkpoint("last", LAST, last.numbers(), last.number)
        left_out = {"left_out": len(last.failures)}
        files.write_json(REPORT, {"best_epoch": best.number} | best.numbers() | left_out)
        run.log_files(LOG, CURVE, REPORT, VOCABULARY)


def keep(
    learning: Iterator[Epoch], save: Callable[[Path], None], epochs: int, run: tracking.Run
) -> list[Epoch]:
    """Tell, track and save every epoch as it ends; return them all."""
    history: list[Epoch] = []
    best = -1.0
    for epoch in learning:
        history.append(epoch)
        log.info(epoch.line(epochs, epoch.macro_ap - max(best, 0)))
        for failure in epoch.failures:
            log.warning(f"left out {failure}")
        run.log_metrics(epoch.numbers(), step=epoch.number)
        rows = [(past.number, *past.numbers().values()) for past in history]
        files.write_csv(CURVE, ("epoch", *epoch.numbers()), rows)
        save(LAST)
        if epoch.macro_ap > best:
            best = epoch.macro_ap
            save(BEST)
    return history


def start_log() -> None:
    MODEL.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stdout),
        logging.FileHandler(LOG, "w", "utf-8"),
    ]
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    logging.captureWarnings(True)


if __name__ == "__main__":
    with errors.reported():
        main(params.load())
