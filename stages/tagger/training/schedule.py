"""The schedule of a training and the position in it."""

from dataclasses import dataclass, field

from tagger.params import Interval, TrainParams
from tagger.training.optimizer import fraction_of_peak

Metrics = dict[str, float]


@dataclass(frozen=True)
class Schedule:
    """The number of steps, and what happens after each of them."""

    params: TrainParams
    steps_per_epoch: int
    batch_size: int  # images of all processes
    backbone_stages: int = 0  # stages that may be frozen

    @property
    def steps(self) -> int:
        return self.params.epochs * self.steps_per_epoch

    def is_due(self, interval: Interval | None, step: int) -> bool:
        """Whether an interval in epochs or steps ends after this many steps."""
        if interval is None or interval.unit == "minute":
            return False
        length = interval.number * (self.steps_per_epoch if interval.unit == "epoch" else 1)
        return int(step / length + 1e-9) > int((step - 1) / length + 1e-9)

    def validates_after(self, step: int) -> bool:
        """Whether the model is validated after this many steps."""
        due = self.is_due(self.params.validate_every, step)
        return due or self.keeps_after(step) or step == self.steps

    def keeps_after(self, step: int) -> bool:
        """Whether the weights after this many steps are kept in a checkpoint of their own."""
        return self.is_due(self.params.keep_every, step)

    def checkpoints(self, position: "Position") -> list[str]:
        """Return the names of the checkpoints to write after the last validation."""
        due = {
            "best": self.validations_since_best(position) == 0,
            "last": self.is_over(position),
            checkpoint_name(position.history[-1]): self.keeps_after(position.step),
        }
        return [name for name, is_due in due.items() if is_due]

    def validations_since_best(self, position: "Position") -> int:
        """Return how many validations ago the best one was, the first among equals."""
        scores = [self.score(metrics) for metrics in position.history]
        return len(scores) - 1 - scores.index(max(scores))

    def is_over(self, position: "Position") -> bool:
        """Whether the last step was taken, or patience has run out."""
        if position.step >= self.steps:
            return True
        patience = self.params.patience
        return bool(
            patience and position.history and self.validations_since_best(position) >= patience
        )

    def score(self, metrics: Metrics) -> float:
        """Return `train.best_metric` so that higher is better."""
        value = metrics[self.params.best_metric]
        return -value if self.params.best_metric == "validation_loss" else value

    def fraction_of_peak(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of its peak."""
        return fraction_of_peak(self.params.schedule, step, self.steps, self.params.warmup)

    def frozen_stages(self, step: int) -> int:
        """Return how many stages of the backbone, from the input on, are frozen in a step."""
        freeze, every = self.params.freeze, self.params.unfreeze_every
        frozen = self.backbone_stages if freeze == "all" else min(freeze, self.backbone_stages)
        return max(0, frozen - step // self.steps_per_epoch // every) if every else frozen

    def unfreezes_before(self, step: int) -> bool:
        """Whether fewer stages are frozen in a step than in the one before."""
        return self.frozen_stages(step) != self.frozen_stages(max(0, step - 1))


@dataclass
class Position:
    """How far a training is: all of its state that is no tensor."""

    step: int = 0  # optimizer steps taken, skipped ones included
    steps_per_epoch: int = 0
    learning_rate: float = 0.0
    loss: float = 0.0  # summed over the finite steps since the last validation
    gradient_norm: float = 0.0  # summed likewise
    finite_steps: int = 0  # since the last validation
    nonfinite_steps: int = 0  # since the beginning
    failures: dict[int, str] = field(default_factory=dict)  # row and reason
    history: list[Metrics] = field(default_factory=list)  # of all validations

    @property
    def epoch(self) -> float:
        """Passes over the images so far."""
        return self.step / self.steps_per_epoch

    def add_step(self, loss: float, gradient_norm: float, learning_rate: float) -> None:
        """Record a step that changed the weights."""
        self.loss += loss
        self.gradient_norm += gradient_norm
        self.learning_rate = learning_rate
        self.finite_steps += 1

    def add_validation(self, metrics: Metrics) -> Metrics:
        """Record a validation with the means since the one before; return the whole record."""
        steps = max(1, self.finite_steps)
        record = {
            "step": self.step,
            "epoch": round(self.epoch, 4),
            "loss": round(self.loss / steps, 4),
            "learning_rate": float(f"{self.learning_rate:.4g}"),
            "gradient_norm": round(self.gradient_norm / steps, 4),
        }
        record |= {name: round(value, 6) for name, value in metrics.items()}
        self.history.append(record)
        self.loss = self.gradient_norm = 0.0
        self.finite_steps = 0
        return record


def checkpoint_name(metrics: Metrics) -> str:
    """Return the name of a checkpoint that is kept for good: `epoch-2`, `epoch-2.5`."""
    return f"epoch-{metrics['epoch']:g}"
