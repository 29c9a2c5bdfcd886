"""How a training goes from its first step to its last, and where it is."""

from dataclasses import dataclass, field

from tagger.params import Interval, TrainParams
from tagger.training.optimizer import fraction_of_peak

Metrics = dict[str, float]


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, and what is done between them."""

    params: TrainParams
    steps_per_epoch: int  # steps
    batch_size: int  # pictures of all processes
    backbone_stages: int = 0  # of the backbone, that may be frozen

    @property
    def steps(self) -> int:
        return self.params.epochs * self.steps_per_epoch

    def is_due(self, every: Interval | None, step: int) -> bool:
        """Whether something is done after so many steps."""
        if every is None or every.unit == "minute":
            return False
        length = every.number * (self.steps_per_epoch if every.unit == "epoch" else 1)
        return int(step / length + 1e-9) > int((step - 1) / length + 1e-9)

    def validates_after(self, step: int) -> bool:
        """Whether the model is judged after so many steps."""
        due = self.is_due(self.params.validate_every, step)
        return due or self.keeps_after(step) or step == self.steps

    def keeps_after(self, step: int) -> bool:
        """Whether the weights after so many steps are kept for good."""
        return self.is_due(self.params.keep_every, step)

    def validations_since_best(self, position: "Position") -> int:
        """Return how many judgements ago the best was, the first of equals."""
        scores = [self.score(figures) for figures in position.history]
        return len(scores) - 1 - scores.index(max(scores))

    def is_over(self, position: "Position") -> bool:
        """Whether the last step was taken, or patience has run out."""
        done = position.step >= self.steps
        patience = self.params.patience
        return done or bool(
            patience and position.history and self.validations_since_best(position) >= patience
        )

    def score(self, figures: Metrics) -> float:
        """Return how good a judgement is by what is asked for; higher is better."""
        value = figures[self.params.best_metric]
        return -value if self.params.best_metric == "validation_loss" else value

    def fraction_of_peak(self, step: int) -> float:
        return fraction_of_peak(self.params.schedule, step, self.steps, self.params.warmup)

    def frozen_stages(self, step: int) -> int:
        """Return how many stages of the backbone, from the input on, do not learn in a step."""
        freeze, every = self.params.freeze, self.params.unfreeze_every
        frozen = self.backbone_stages if freeze == "all" else min(freeze, self.backbone_stages)
        return max(0, frozen - step // self.steps_per_epoch // every) if every else frozen


@dataclass
class Position:
    """Where a training is, beside what the learner holds."""

    step: int = 0  # optimizer steps taken
    steps_per_epoch: int = 0
    learning_rate: float = 0.0  # the learning rate
    loss: float = 0.0  # summed over the good steps since the last judgement
    gradient_norm: float = 0.0  # of the gradient, likewise
    finite_steps: int = 0  # since then
    nonfinite_steps: int = 0  # of all
    failures: dict[int, str] = field(default_factory=dict)  # row and reason
    history: list[Metrics] = field(default_factory=list)  # judgements

    @property
    def epoch(self) -> float:
        """Passes over the pictures so far."""
        return self.step / self.steps_per_epoch

    def add_step(self, loss: float, norm: float, rate: float) -> None:
        """Note a step that changed the weights."""
        self.loss += loss
        self.gradient_norm += norm
        self.learning_rate = rate
        self.finite_steps += 1

    def add_validation(self, figures: Metrics) -> Metrics:
        """Begin anew to sum up, and return what is noted of a judgement."""
        told = {
            "step": self.step,
            "epoch": round(self.epoch, 4),
            "loss": round(self.loss / max(1, self.finite_steps), 4),
            "learning_rate": float(f"{self.learning_rate:.4g}"),
            "gradient_norm": round(self.gradient_norm / max(1, self.finite_steps), 4),
        }
        told |= {name: round(value, 6) for name, value in figures.items()}
        self.history.append(told)
        self.loss = self.gradient_norm = 0.0
        self.finite_steps = 0
        return told
