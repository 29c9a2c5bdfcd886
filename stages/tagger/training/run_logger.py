"""What a training leaves behind as it goes: weights, curves, a log, a run in MLflow."""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tagger.core import files
from tagger.models import backbone
from tagger.tracking.runs import TrackedRun
from tagger.training.schedule import Metrics
from tagger.training.trainer import Trainer, Validation

BEST_WEIGHTS, LAST_WEIGHTS = backbone.WEIGHTS, "last.safetensors"
LOG = "train.log"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLogger:
    """Tells, tracks and saves every judgement of a training."""

    training: Trainer
    folder: Path  # of the model in the making
    curve: Path  # CSV of all judgements
    run: TrackedRun
    names: Sequence[str]  # of the tags

    def log_validation(self, judgement: Validation) -> None:
        _log.info(judgement.line)
        wanted = {
            BEST_WEIGHTS: judgement.best,
            LAST_WEIGHTS: judgement.last,
            _kept(judgement.metrics): judgement.keep,
        }
        for name in (name for name, is_wanted in wanted.items() if is_wanted):
            backbone.save_weights(judgement.weights, self.folder / name)
        self._write_curve()
        step = int(judgement.metrics["step"])
        self.run.log_metrics(judgement.metrics | judgement.throughput, step=step)
        sheet = self.training.validator.contact_sheet(judgement.predictions, self.names)
        self.run.log_image(sheet, "validation", step)

    def finish(self, folder: Path) -> Metrics:
        """Track the weights, which will lie in a folder; return the best judgement."""
        self._write_curve()  # which DVC has removed, where all but the end was done
        position = self.training.position
        for row, reason in position.failures.items():
            _log.warning(f"left out {self.training.split.locations[row].path}: {reason}")
        for name, file, figures in self._checkpoints():
            step, sha256 = int(figures["step"]), files.sha256_file(self.folder / file)
            self.run.log_checkpoint(name, folder / file, figures, step, sha256)
        return self._best()

    def _write_curve(self) -> None:
        history = self.training.position.history
        files.write_csv(self.curve, tuple(history[0]), [tuple(one.values()) for one in history])

    def _best(self) -> Metrics:
        return max(self.training.position.history, key=self.training.schedule.score)

    def _checkpoints(self) -> Iterator[tuple[str, str, Metrics]]:
        """Yield name, file and judgement of all weights that were kept."""
        history = self.training.position.history
        yield "best", BEST_WEIGHTS, self._best()
        yield "last", LAST_WEIGHTS, history[-1]
        for figures in history:
            if self.training.schedule.keeps_after(int(figures["step"])):
                yield Path(_kept(figures)).stem, _kept(figures), figures


def _kept(figures: Metrics) -> str:
    return f"epoch-{figures['epoch']:g}.safetensors"


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to standard output as it is at the time: a progress bar may stand in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


class _LogFileHandler(logging.FileHandler):
    """Writes what a full disk does not take once there is room; until then it says nothing."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def start_log(path: Path | None) -> None:
    """Tell what happens, and write it to a file; without one, tell of warnings alone."""
    handlers: list[logging.Handler] = [_StdoutHandler()]
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFileHandler(path, "a", "utf-8"))
    level = logging.INFO if path else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=handlers, force=True)
    logging.captureWarnings(True)
    for library in ("timm", "httpx", "huggingface_hub", "torch"):
        logging.getLogger(library).setLevel(logging.WARNING)
