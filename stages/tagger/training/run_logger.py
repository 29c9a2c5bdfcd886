"""The files of a training as it goes: log, curve and checkpoints, and its run in MLflow."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tagger.core import files
from tagger.models import backbone
from tagger.tracking.runs import TrackedRun
from tagger.training.schedule import Metrics, checkpoint_name
from tagger.training.trainer import Trainer
from tagger.training.validation import Validation

LOG = "train.log"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLogger:
    """Logs each validation of a training, and writes its checkpoints."""

    trainer: Trainer
    folder: Path  # of the unfinished model
    curve: Path  # CSV of all validations
    run: TrackedRun
    tag_names: Sequence[str]

    def log_validation(self, validation: Validation) -> None:
        _log.info(validation.summary)
        for name in validation.checkpoints:
            backbone.save_weights(validation.weights, self.folder / _file_name(name))
        self._write_curve()
        step = int(validation.metrics["step"])
        self.run.log_metrics(validation.metrics | validation.throughput, step=step)
        sheet = self.trainer.validator.contact_sheet(validation.predictions, self.tag_names)
        self.run.log_image(sheet, "validation", step)

    def finish(self, folder: Path) -> Metrics:
        """Log checkpoints, as they will be in a folder, and unreadable images; return the best."""
        position, schedule = self.trainer.position, self.trainer.schedule
        self._write_curve()  # DVC has removed it if the training was complete before this run
        for row, reason in position.failures.items():
            _log.warning(f"skipped {self.trainer.split.locations[row].path}: {reason}")
        best = max(position.history, key=schedule.score)
        checkpoints = {"best": best, "last": position.history[-1]} | {
            checkpoint_name(metrics): metrics
            for metrics in position.history
            if schedule.keeps_after(int(metrics["step"]))
        }
        for name, metrics in checkpoints.items():
            file = _file_name(name)
            sha256 = files.sha256_file(self.folder / file)
            self.run.log_checkpoint(name, folder / file, metrics, int(metrics["step"]), sha256)
        return best

    def _write_curve(self) -> None:
        history = self.trainer.position.history
        rows = [tuple(metrics.values()) for metrics in history]
        files.write_csv(self.curve, tuple(history[0]), rows)


def _file_name(checkpoint: str) -> str:
    return backbone.WEIGHTS if checkpoint == "best" else f"{checkpoint}.safetensors"


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to the current standard output: a progress bar may replace it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


class _LogFileHandler(logging.FileHandler):
    """Keeps silent while the disk is full, and writes again once there is room."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def start_log(path: Path | None) -> None:
    """Log to standard output and to a file; without a file, log warnings only."""
    handlers: list[logging.Handler] = [_StdoutHandler()]
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFileHandler(path, "a", "utf-8"))
    level = logging.INFO if path else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=handlers, force=True)
    logging.captureWarnings(True)
    for library in ("timm", "httpx", "huggingface_hub", "torch"):
        logging.getLogger(library).setLevel(logging.WARNING)
