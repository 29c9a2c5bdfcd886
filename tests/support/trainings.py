"""Trainings in this process, small enough for seconds."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tagger import params
from tagger.core.vocabulary import Tag
from tagger.images.dataset import Split
from tagger.params import Params, Preset, TrainParams
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import setup
from tagger.training.trainer import Trainer
from tagger.training.validation import Validation

ROOT = Path(__file__).parents[2]
SINGLE_PROCESS = ProcessGroup(World(0, 1, 0, 1), torch.device("cpu"))
SHORT_TRAINING: dict[str, Any] = {"epochs": 2, "workers": 0, "snapshot_every": "1 epoch"}

Splits = Mapping[str, Split]
BuildTrainer = Callable[..., Trainer]


@cache
def _params_text() -> str:
    return json.dumps(yaml.safe_load((ROOT / params.PATH).read_text(encoding="utf-8")))


def params_content() -> dict[str, Any]:
    """Return a copy of params.yaml."""
    content: dict[str, Any] = json.loads(_params_text())
    return content


def train_params(**changes: Any) -> TrainParams:
    """Return `train` of params.yaml, without a preset, with some keys changed."""
    return TrainParams.model_validate(params.merge(params_content()["train"], changes))


def small_params(preset: Preset, seed: int = 0, **train: Any) -> Params:
    """Return params.yaml with a small preset, a short training, and changes of `train`."""
    content = params_content()
    content |= {"seed": seed, "model": "small", "models": {"small": preset.model_dump()}}
    content["train"] = params.merge(content["train"], SHORT_TRAINING | train)
    return params.parse(content)


def build_trainer(p: Params, tags: Sequence[Tag], splits: Splits, folder: Path) -> Trainer:
    return setup.build_trainer(p, tags, splits, SINGLE_PROCESS, folder)


class Killed(BaseException):
    pass


@dataclass
class Recorder:
    """Records validations; may be killed instead of saving the snapshot after one of them."""

    watch: Callable[[Validation], object] = lambda validation: None
    kill_at: int | None = None  # validations
    validations: list[Validation] = field(default_factory=list)

    def log_validation(self, validation: Validation) -> None:
        self.validations.append(validation)
        self.watch(validation)
        if len(self.validations) == self.kill_at:
            raise Killed


def train_to_end(
    trainer: Trainer, watch: Callable[[Validation], object] = lambda validation: None
) -> list[Validation]:
    """Return all validations of a training; watch: called after each of them."""
    recorder = Recorder(watch)
    trainer.train(recorder)
    return recorder.validations


def train_and_kill(trainer: Trainer, validations: int) -> None:
    """Stop a training after so many validations, before the snapshot that follows the last."""
    with suppress(Killed):
        trainer.train(Recorder(kill_at=validations))
    trainer.snapshots.wait()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return a copy of the weights that train, and of the statistics beside them."""
    return {name: value.clone() for name, value in trainer.state.model.state_dict().items()}


def equal_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two models are the same to the bit."""
    return first.keys() == second.keys() and not changed_names(first, second)


def changed_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@contextmanager
def torch_state_restored() -> Iterator[None]:
    """Leave the random generator and the settings of torch as they were."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        yield
    torch.use_deterministic_algorithms(deterministic)
