"""How a training goes from its first step to its last, and where it is."""

from dataclasses import dataclass, field

from tagger.params import Every, Train
from tagger.training.optimizer import share_of_peak

Metrics = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How many steps there are, and what is done between them."""

    recipe: Train
    per_epoch: int  # steps
    batch_size: int  # pictures of all processes
    stages: int = 0  # of the backbone, that may be frozen

    @property
    def steps(self) -> int:
        return self.recipe.epochs * self.per_epoch

    def due(self, every: Every | None, step: int) -> bool:
        """Whether something is done after so many steps."""
        if every is None or every.unit == "minute":
            return False
        length = every.number * (self.per_epoch if every.unit == "epoch" else 1)
        return int(step / length + 1e-9) > int((step - 1) / length + 1e-9)

    def judges(self, step: int) -> bool:
        """Whether the model is judged after so many steps."""
        due = self.due(self.recipe.validate_every, step)
        return due or self.keeps(step) or step == self.steps

    def keeps(self, step: int) -> bool:
        """Whether the weights after so many steps are kept for good."""
        return self.due(self.recipe.keep_every, step)

    def since_best(self, position: "Position") -> int:
        """Return how many judgements ago the best was, the first of equals."""
        scores = [self.score(figures) for figures in position.history]
        return len(scores) - 1 - scores.index(max(scores))

    def over(self, position: "Position") -> bool:
        """Whether the last step was taken, or patience has run out."""
        done = position.step >= self.steps
        patience = self.recipe.patience
        return done or bool(patience and position.history and self.since_best(position) >= patience)

    def score(self, figures: Metrics) -> float:
        """Return how good a judgement is by what is asked for; higher is better."""
        value = figures[self.recipe.best]
        return -value if self.recipe.best == "validation_loss" else value

    def share_of_peak(self, step: int) -> float:
        return share_of_peak(self.recipe.schedule, step, self.steps, self.recipe.warmup)

    def frozen(self, step: int) -> int:
        """Return how many stages of the backbone, from the input on, do not learn in a step."""
        freeze, every = self.recipe.freeze, self.recipe.unfreeze_every
        frozen = self.stages if freeze == "all" else min(freeze, self.stages)
        return max(0, frozen - step // self.per_epoch // every) if every else frozen


@dataclass
class Position:
    """Where a training is, beside what the learner holds."""

    step: int = 0  # optimizer steps taken
    per_epoch: int = 0
    rate: float = 0.0  # the learning rate
    loss: float = 0.0  # summed over the good steps since the last judgement
    norm: float = 0.0  # of the gradient, likewise
    good_steps: int = 0  # since then
    bad_steps: int = 0  # of all
    failures: dict[int, str] = field(default_factory=dict)  # row and reason
    history: list[Metrics] = field(default_factory=list)  # judgements

    @property
    def epoch(self) -> float:
        """Passes over the pictures so far."""
        return self.step / self.per_epoch

    def good(self, loss: float, norm: float, rate: float) -> None:
        """Note a step that changed the weights."""
        self.loss += loss
        self.norm += norm
        self.rate = rate
        self.good_steps += 1

    def judged(self, figures: Metrics) -> Metrics:
        """Begin anew to sum up, and return what is noted of a judgement."""
        told = {
            "step": self.step,
            "epoch": round(self.epoch, 4),
            "loss": round(self.loss / max(1, self.good_steps), 4),
            "learning_rate": float(f"{self.rate:.4g}"),
            "gradient_norm": round(self.norm / max(1, self.good_steps), 4),
        }
        told |= {name: round(value, 6) for name, value in figures.items()}
        self.history.append(told)
        self.loss = self.norm = 0.0
        self.good_steps = 0
        return told
