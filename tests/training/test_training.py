"""Training learns, repeats itself to the bit, bears what goes wrong, and stops where it must."""

import itertools
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, log_loss
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from support.trainings import (
    SINGLE_PROCESS,
    Splits,
    build_trainer,
    changed_names,
    equal_weights,
    make_project,
    small_params,
    torch_state_restored,
    train_to_end,
    weights,
)
from tagger.core import files, manifest, vocabulary
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.core.vocabulary import Tag
from tagger.images import decode, loader
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.models import backbone
from tagger.params import Params, Preset
from tagger.system import distributed
from tagger.system.distributed import ProcessGroup
from tagger.system.world import World
from tagger.training import learner, setup, snapshots
from tagger.training.learner import Portion
from tagger.training.optimizer import fraction_of_peak
from tagger.training.trainer import Trainer, Validation

Starter = Callable[..., Trainer]

SUM = torch.nn.BCEWithLogitsLoss(reduction="none")


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    with torch_state_restored():
        yield


@pytest.fixture
def parts(split: Split) -> dict[str, Split]:
    return {"train": split, "validation": split.head(8)}


@pytest.fixture
def vit(preset: Preset) -> Preset:
    """The smallest network without batch norm: a picture does not feel the others."""
    return preset.model_copy(update={"backbone": "test_vit", "learning_rate": 1e-3})


@pytest.fixture
def begin(
    default_params: Params, preset: Preset, tags: list[Tag], parts: Splits, tmp_path: Path
) -> Starter:
    """Start a training: of `preset`, in a folder named `at`, with keys of `train`."""
    default, given = preset, parts

    def begin(
        preset: Preset = default, parts: Splits = given, at: str = "a", seed: int = 0, **recipe: Any
    ) -> Trainer:
        return build_trainer(
            small_params(default_params, preset, seed, **recipe), tags, parts, tmp_path / at
        )

    return begin


def curve(judgements: list[Validation], name: str = "loss") -> list[float]:
    return [judgement.metrics[name] for judgement in judgements]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# It learns


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "bce"},
        {"kind": "bce", "reduction": "mean", "smoothing": 0.1, "tag_weights": "log_count"},
        {"kind": "asymmetric"},
        {"kind": "focal"},
        {"kind": "two_way"},
    ],
    ids=lambda loss: " ".join(map(str, loss.values())),
)
def test_training_on_real_pictures_lowers_the_loss(begin: Starter, loss: dict[str, Any]) -> None:
    history = train_to_end(begin(epochs=8, loss=loss))
    assert curve(history, "epoch") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curve(history, "step") == [3, 6, 9, 12, 15, 18, 21, 24]
    assert curve(history)[-1] < 0.9 * curve(history)[0]
    # by chance, macro AP is the share of the positives
    assert curve(history, "macro_ap")[-1] > curve(history, "macro_ap")[0] + 0.05
    assert [judgement.last for judgement in history] == [False] * 7 + [True]


def test_a_query_head_trains(begin: Starter, vit: Preset) -> None:
    training = begin(vit, epochs=8, head="query")
    before = weights(training)
    history = train_to_end(training)
    assert curve(history)[-1] < 0.85 * curve(history)[0]
    moved = changed_names(before, weights(training))
    assert {"decoder.queries", "decoder.weight", "backbone.patch_embed.proj.weight"} <= moved


# It repeats itself


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_model_to_the_bit(
    begin: Starter, preset: Preset, workers: int
) -> None:
    dropping = preset.model_copy(update={"drop_path": 0.2})
    random = {"ema": 0.9, "augment": {"mixup": 0.4, "cutmix": 1.0, "cutout": 0.2}}
    one, other = (
        train_to_end(begin(dropping, at=at, workers=count, **random))
        for at, count in (("one", 0), ("other", workers))
    )
    assert [judgement.metrics for judgement in one] == [judgement.metrics for judgement in other]
    assert equal_weights(one[-1].weights, other[-1].weights)


def test_what_torch_has_drawn_before_does_not_matter(begin: Starter, preset: Preset) -> None:
    dropping = preset.model_copy(update={"drop_path": 0.2})
    models = []
    for seed in (1, 2):
        training = begin(dropping, at=str(seed), epochs=1)
        torch.manual_seed(seed)
        models.append(train_to_end(training)[-1].weights)
    assert equal_weights(*models)


def test_another_seed_gives_another_order_and_other_weights(begin: Starter) -> None:
    one, other = (begin(seed=seed, at=str(seed)) for seed in (0, 1))
    assert next(iter(one.batches)).rows != next(iter(other.batches)).rows
    assert changed_names(weights(one), weights(other)) >= {"conv_stem.weight", "classifier.weight"}


def test_every_step_drops_other_paths(begin: Starter, vit: Preset) -> None:
    dropping = begin(vit.model_copy(update={"drop_path": 0.5}))
    batch = first(dropping)
    gradients = [gradient_of(dropping, batch, step=step) for step in (0, 0, 1)]
    assert equal_weights(*gradients[:2])
    assert not equal_weights(*gradients[1:])


# The moving average


def test_the_average_is_timms_and_is_what_is_judged_and_kept(begin: Starter) -> None:
    training = begin(ema=0.9, validate_every="1 step", keep_every="1 step")
    reference = ModelEmaV3(training.state.model, 0.9, use_warmup=True)
    for number, judgement in enumerate(training.train(), 1):
        reference.update(training.state.model, step=number)
        assert equal_weights(judgement.weights, reference.module.state_dict())
        figures, _ = training.validator(reference.module)
        assert figures == pytest.approx(
            {name: judgement.metrics[name] for name in figures}, abs=1e-6
        )
    assert number == 6
    assert not equal_weights(judgement.weights, weights(training))
    kept = training.snapshots.load_newest()
    assert kept is not None
    assert equal_weights(kept["learner"]["average"], judgement.weights)
    assert equal_weights(kept["learner"]["model"], weights(training))


def test_without_an_average_the_weights_are_those_that_learn(begin: Starter) -> None:
    training = begin()
    assert equal_weights(train_to_end(training)[-1].weights, weights(training))


# One gradient, however it is computed


def first(training: Trainer) -> Batch:
    batch = next(iter(training.batches))
    assert isinstance(batch, Batch)
    return batch


def gradient_of(training: Trainer, batch: Batch, *, step: int = 0) -> dict[str, Tensor]:
    """Return the gradient of a batch, as training computes it."""
    inputs, targets = loader.to_device(batch, SINGLE_PROCESS.device, training.preprocess)
    training.state.model.train()
    training.state.wrap()
    pictures = len(batch.rows)
    portion = Portion(
        pictures, pictures, lambda *rows: (inputs[slice(*rows)], targets[slice(*rows)])
    )
    loss, norm = training.state.gradient(portion, step)
    found = {
        name: weights.grad.clone()
        for name, weights in training.state.model.named_parameters()
        if weights.grad is not None
    }
    length = math.sqrt(sum(float(values.double().square().sum()) for values in found.values()))
    assert float(norm) == pytest.approx(length, rel=1e-5)
    return found | {"loss": loss.detach().clone(), "norm": norm.clone()}


def near(one: dict[str, Tensor], other: dict[str, Tensor], share: float) -> bool:
    """Whether no gradient is off by more than a share of the length of its tensor."""
    return one.keys() == other.keys() and all(
        float((one[name] - other[name]).norm()) <= share * max(1e-6, float(one[name].norm()))
        for name in one
    )


def by_hand(training: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of the plain loss, by autograd alone."""
    inputs, targets = loader.to_device(batch, SINGLE_PROCESS.device, training.preprocess)
    model = training.state.model.train()
    loss = (SUM(model(inputs), targets.clamp(min=0)) * (targets >= 0)).sum() / len(inputs)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    found = dict(zip(named, gradients, strict=True))
    return found | {"loss": loss.detach(), "norm": length}


@pytest.mark.parametrize("size", [None, 2, 3, 8])
@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(
    begin: Starter, vit: Preset, size: int | None, kind: str
) -> None:
    loss = {"reduction": kind}
    whole = begin(vit, loss=loss, at="whole")
    batch = first(whole)
    expected = gradient_of(whole, batch)
    if kind == "sum":
        assert near(expected, by_hand(whole, batch), 1e-5)
    in_pieces = begin(vit, loss=loss, micro_batch=size or "auto", at="pieces")
    pieces: list[int] = []
    in_pieces.state.model.register_forward_pre_hook(lambda _, given: pieces.append(len(given[0])))
    assert near(gradient_of(in_pieces, batch), expected, 1e-5)
    assert sorted(pieces) == {None: [8], 2: [2] * 4, 3: [2, 3, 3], 8: [8]}[size]


@pytest.mark.parametrize("head", ["linear", "query"])
def test_computing_twice_to_save_memory_gives_the_same_gradient(
    begin: Starter, vit: Preset, head: str
) -> None:
    dropping = vit.model_copy(update={"drop_path": 0.3})
    plain = begin(dropping, at="plain", head=head)
    twice = begin(dropping, at="twice", head=head, gradient_checkpointing=True)
    passed = [0, 0]
    for number, training in enumerate((plain, twice)):
        for module in training.state.model.modules():
            if type(module).__name__ == "Mlp":

                def count(*_: Any, number: int = number) -> None:
                    passed[number] += 1

                module.register_forward_pre_hook(count)
    batch = first(plain)
    assert near(gradient_of(twice, batch), gradient_of(plain, batch), 1e-6)
    assert passed[1] == 2 * passed[0] > 0


def test_a_longer_gradient_is_shortened(begin: Starter) -> None:
    lengths, moves = [], []
    for bound in (None, 0.5, 1e6):
        training = begin(
            at=str(bound), clip_grad_norm=bound, optimizer="sgd", weight_decay=0, epochs=1
        )
        before = [weights.detach().clone() for weights in training.model.parameters()]
        batch = first(training)
        norm = gradient_of(training, batch)["norm"]
        training.state.update(norm, 1.0, 0)
        after = training.model.parameters()
        differences = [a.detach() - b for a, b in zip(after, before, strict=True)]
        lengths.append(float(norm))
        moves.append(float(torch.cat([one.flatten() for one in differences]).norm()))
    assert lengths[0] == lengths[1] == lengths[2] > 1
    assert moves[2] == pytest.approx(moves[0], rel=1e-6)
    assert moves[1] == pytest.approx(moves[0] * 0.5 / lengths[0], rel=1e-4)


# Fewer bits


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_the_whole(begin: Starter, vit: Preset, precision: str) -> None:
    whole = train_to_end(begin(vit, at="whole", epochs=4))
    training = begin(vit, at="half", epochs=4, precision=precision)
    dtypes = set()
    training.model.blocks[3].attn.qkv.register_forward_hook(  # type: ignore[index, union-attr]
        lambda module, _, made: dtypes.add(made.dtype) if module.training else None
    )
    half = train_to_end(training)
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert {values.dtype for values in weights(training).values()} == {torch.float32}
    assert all(values.isfinite().all() for values in half[-1].weights.values())
    assert curve(half) == pytest.approx(curve(whole), rel=0.02)
    assert curve(half) != curve(whole)
    assert training.position.nonfinite_steps == 0


def test_the_scale_of_the_loss_in_fp16_goes_on_where_it_was(begin: Starter) -> None:
    training = begin(precision="fp16")
    training.state.scaler.load_state_dict(training.state.scaler.state_dict() | {"scale": 2.0**60})
    train_to_end(training)
    scaler = training.state.scaler.state_dict()
    assert scaler["scale"] == 2.0**54  # six steps too large, none of them a bad one
    assert training.position.nonfinite_steps == 0
    kept = training.snapshots.load_newest()
    assert kept is not None and kept["learner"]["scaler"] == scaler
    again = begin(precision="fp16")
    assert again.state.scaler.state_dict() == scaler


@pytest.mark.parametrize(("real", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_card_that_only_acts_as_if_it_knew_bf16_computes_in_fp16(
    monkeypatch: pytest.MonkeyPatch, real: bool, expected: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or real

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert learner._precision(None, torch.device("cuda")) == expected
    assert learner._precision("bf16", torch.device("cuda")) == "bf16"
    assert learner._precision(None, torch.device("cpu")) == "fp32"


# Too little memory, known before the first step


def cramped(training: Trainer, room: int) -> list[int]:
    """Give a training room for so many pictures; return what will have been tried."""
    tried: list[int] = []

    def network(inputs: Tensor) -> Tensor:
        tried.append(len(inputs))
        if len(inputs) > room:
            raise torch.OutOfMemoryError("no room")
        logits: Tensor = training.model(inputs)
        return logits

    training.state.network = network
    return tried


def test_a_rehearsal_finds_how_many_pictures_fit_unless_others_wait_for_them(
    begin: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for in_parts in (False, True):
        training = begin(at=str(in_parts))
        tried = cramped(training, 3)
        before = weights(training)
        inputs, targets = torch.zeros(8, 3, 32, 32), torch.zeros(8, training.split.labels.shape[1])
        monkeypatch.setattr(distributed, "in_parts", lambda model, in_parts=in_parts: in_parts)
        if in_parts:
            with pytest.raises(
                TaggerError, match=r"\A.* 8 pictures at a time\. Lower train\.micro_"
            ):
                training.state.find_micro_batch(inputs, targets, 8)
            assert tried == [8]
        else:
            training.state.find_micro_batch(inputs, targets, 8)
            assert (tried, training.state.micro_batch) == ([8, 4, 2, 2, 2, 2], 2)
            assert equal_weights(before, weights(training))


def test_a_head_on_embeddings_needs_no_rehearsal(begin: Starter) -> None:
    training = begin(**HEAD)
    order: Any = training.batches.batch_sampler
    training.state.group = ProcessGroup(World(0, 2, 0, 2), torch.device("cuda"))
    setup._agree(training.state, training.schedule, order, 3)  # would take pictures to CUDA


# What is no number


def lasting(training: Trainer, bad: set[int]) -> None:
    """Make the loss no number in some steps, counted from 1."""
    usual = training.state.loss

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        wrong = training.position.step + 1 in bad
        return usual(logits, targets) * (math.nan if wrong else 1.0)

    training.state.loss = loss


def test_a_step_whose_loss_is_no_number_is_told_and_changes_nothing(
    begin: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    training = begin(epochs=2, ema=0.9, keep_every="1 step")
    lasting(training, {3})
    states, losses, rows = [], [], [batch.rows for batch in training.batches]
    for judgement in training.train():
        states.append(weights(training))
        losses.append(judgement.metrics["loss"])
        if judgement.metrics["step"] == 2:
            average = judgement.weights
        if judgement.metrics["step"] == 3:
            assert equal_weights(judgement.weights, average)
    assert equal_weights(states[1], states[2])
    assert [not equal_weights(*pair) for pair in itertools.pairwise(states)] == [True, False] + [
        True
    ] * 3
    assert losses[2] == 0  # of no good step
    assert training.position.nonfinite_steps == 1
    (told,) = warned(caplog)
    assert told.startswith("step 3: the loss is nan, or its gradient no number; nothing is learned")
    names = [training.split.locations[row].path for row in rows[2]]
    assert told.endswith(f"Pictures: {', '.join(names)}")


def test_a_gradient_that_is_no_number_changes_nothing_either(
    begin: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    training = begin(epochs=1, keep_every="1 step")
    some: Any = next(training.model.parameters())
    handle = some.register_hook(lambda slope: slope * math.inf)
    before = weights(training)
    running = training.train()
    next(running)
    assert equal_weights(before, weights(training))
    handle.remove()
    next(running)
    assert not equal_weights(before, weights(training))
    assert len(warned(caplog)) == training.position.nonfinite_steps == 1


def test_of_a_large_bad_batch_a_few_pictures_are_told(
    begin: Starter, preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    training = begin(preset.model_copy(update={"batch_size": 12}), epochs=1)
    lasting(training, {1})
    train_to_end(training)
    (told,) = warned(caplog)
    assert told.endswith(" and 4 more")
    assert told.count(".png") == 8


def test_too_many_bad_steps_stop_with_a_snapshot_to_go_on_from(
    begin: Starter, preset: Preset
) -> None:
    training = begin(epochs=3, max_nonfinite_steps=2)
    lasting(training, {3, 4, 5})
    with pytest.raises(
        TaggerError, match=r"^In 3 steps .* no number, in more than .* \(2\)\. Lower"
    ) as stopped:
        train_to_end(training)
    assert training.position.step == 4  # the fifth is not done
    path = Path(str(stopped.value).split("train.resume_from: ")[1])
    content = snapshots.read(path)
    assert content["position"]["step"] == 4
    assert equal_weights(content["learner"]["model"], weights(training))
    calmer = preset.model_copy(update={"learning_rate": 1e-3})
    going_on = begin(calmer, at="b", epochs=3, resume_from=path)
    assert going_on.position.step == 4
    assert equal_weights(weights(going_on), weights(training))
    assert train_to_end(going_on)[-1].metrics["epoch"] == 3


def test_a_learning_rate_beyond_reason_ends_in_the_way_out(begin: Starter, preset: Preset) -> None:
    wild = preset.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(TaggerError, match=r"Lower the preset's learning_rate"):
        train_to_end(begin(wild, epochs=3, optimizer="sgd", max_nonfinite_steps=3))


# Memory


class Memory:
    """A device that holds so many pictures and no more: the middle of the network fails."""

    def __init__(self, training: Trainer, pictures: int) -> None:
        self.tried: list[int] = []
        self.pictures = pictures
        model: Any = training.model
        model.blocks[2].register_forward_hook(self)

    def __call__(self, module: nn.Module, given: Any, made: Tensor) -> None:
        if module.training:
            self.tried.append(len(made))
            if len(made) > self.pictures:
                raise torch.OutOfMemoryError("CUDA out of memory.")


def test_where_memory_does_not_suffice_the_same_batch_is_computed_in_pieces(
    begin: Starter, preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    dropping = preset.model_copy(update={"drop_path": 0.2})
    by_itself = begin(dropping, at="a", ema=0.9, augment={"mixup": 0.4})
    memory = Memory(by_itself, 3)
    found = train_to_end(by_itself)
    assert memory.tried == [8, 4] + [2] * 4 * 6
    assert [line.split(": ")[1][:20] for line in warned(caplog)] == [
        "4 pictures at a time",
        "2 pictures at a time",
    ]
    set_by_hand = begin(dropping, at="b", ema=0.9, augment={"mixup": 0.4}, micro_batch=2)
    expected = train_to_end(set_by_hand)
    assert [one.metrics for one in found] == [one.metrics for one in expected]
    assert equal_weights(found[-1].weights, expected[-1].weights)
    assert equal_weights(weights(by_itself), weights(set_by_hand))
    assert by_itself.state.micro_batch == 2
    again = begin(dropping, at="a", ema=0.9, augment={"mixup": 0.4})
    assert again.state.micro_batch == 2


def test_a_device_too_small_for_two_pictures_stops_with_the_way_out(begin: Starter) -> None:
    training = begin()
    Memory(training, 1)
    with pytest.raises(TaggerError, match=r"not suffice for 2 pictures .*gradient_checkpointing"):
        train_to_end(training)


# What is judged, kept, and when it ends


def test_patience_ends_a_training_that_gets_no_better_and_it_stays_ended(
    begin: Starter, preset: Preset
) -> None:
    still = preset.model_copy(update={"backbone": "test_vit", "learning_rate": 1e-30})
    history = train_to_end(begin(still, epochs=9, patience=2))
    assert curve(history, "epoch") == [1, 2, 3]
    assert [judgement.best for judgement in history] == [True, False, False]
    assert [judgement.last for judgement in history] == [False, False, True]
    again = begin(still, epochs=9, patience=2)  # killed before the stage was done
    assert again.position.step == 9
    assert train_to_end(again) == []


@pytest.mark.parametrize("criterion", ["macro_ap", "micro_ap", "validation_loss"])
def test_the_best_is_chosen_by_what_is_asked_for(begin: Starter, criterion: str) -> None:
    history = train_to_end(begin(epochs=3, validate_every="1 step", best_metric=criterion))
    values = np.array(curve(history, criterion))
    if criterion == "validation_loss":
        values = -values
    new_heights = [
        number == 0 or value > values[:number].max() for number, value in enumerate(values)
    ]
    assert [judgement.best for judgement in history] == new_heights
    assert 1 < sum(new_heights) < 9
    for judgement in history:
        assert bool(judgement.weights) == (judgement.best or judgement.last)


@pytest.mark.parametrize(
    ("validate", "keep", "judged", "kept"),
    [
        ("1 epoch", None, [3, 6, 9, 12], []),
        ("2 epochs", "4 steps", [4, 6, 8, 12], [4, 8, 12]),
        ("0.5 epochs", "3 epochs", [2, 3, 5, 6, 8, 9, 11, 12], [9]),
        ("5 steps", None, [5, 10, 12], []),
        ("99 epochs", None, [12], []),
    ],
)
def test_validations_and_kept_weights_come_when_asked_for(
    begin: Starter, validate: str, keep: str | None, judged: list[int], kept: list[int]
) -> None:
    history = train_to_end(begin(epochs=4, validate_every=validate, keep_every=keep))
    assert curve(history, "step") == judged
    assert [one.metrics["step"] for one in history if one.keep] == kept
    assert all(one.weights for one in history if one.keep)


def test_validation_takes_pictures_from_the_whole_part(begin: Starter, split: Split) -> None:
    training = begin(validate_on=3, epochs=1, parts={"train": split, "validation": split})
    (judgement,) = training.train()
    assert [place.path for place in training.validator.split.locations] == [
        split.locations[row].path for row in (0, 11, 23)
    ]
    assert len(judgement.predictions.scores) == 3
    sheet = training.validator.contact_sheet(judgement.predictions, ["a"] * split.labels.shape[1])
    assert min(sheet.size) > 32


def test_a_judgement_is_told_as_a_person_would(begin: Starter) -> None:
    one, two = train_to_end(begin())
    number = r"[\d,.]+"
    told = rf"epoch {{}}/2  loss {number}  macro AP 0\.\d{{3}} \([+-]0\.\d{{3}}\)  "
    rest = rf"{number} pictures/s  \d+% waiting for data  {number} s left"
    for line, epoch in ((one.line, 1), (two.line, 2)):
        assert re.fullmatch(told.replace("{}", str(epoch)).replace("{{", "{") + rest, line), line
    gain = two.metrics["macro_ap"] - one.metrics["macro_ap"]
    assert f"({gain:+.3f})" in two.line
    assert two.line.endswith("  0 s left")


# Pictures


def missing(part: Split, rows: range | list[int], folder: Path) -> Split:
    """Return a part of which some pictures are not there."""
    places = list(part.locations)
    for row in rows:
        places[row] = Location(str(folder / f"gone{row}.png"), 0, 8)
    return Split(places, part.labels)


def test_unreadable_pictures_are_replaced_and_told(
    begin: Starter, parts: Splits, tmp_path: Path
) -> None:
    lacking = {"train": missing(parts["train"], [3], tmp_path), "validation": parts["validation"]}
    training = begin(parts=lacking, max_unreadable=1 / 24)
    batches = list(training.batches)
    rows = sorted(row for batch in batches[:3] for row in batch.rows)
    assert rows == sorted([*range(3), 4, *range(4, 24)])
    (judgement, _) = training.train()
    assert judgement.metrics["step"] == 3
    assert training.position.failures.keys() == {3}
    assert "No such file" in training.position.failures[3]
    kept = training.snapshots.load_newest()
    assert kept is not None and kept["position"]["failures"] == training.position.failures


@pytest.mark.parametrize("gone", [2, 24])
def test_more_unreadable_pictures_than_allowed_stop_the_training(
    begin: Starter, parts: Splits, tmp_path: Path, gone: int
) -> None:
    lacking = {
        "train": missing(parts["train"], range(gone), tmp_path),
        "validation": parts["validation"],
    }
    with pytest.raises(
        TaggerError,
        match=r"of 24 training pictures cannot be read, .*gone\d+\.png first: .*No such",
    ):
        train_to_end(begin(parts=lacking, max_unreadable=1 / 24))


@pytest.mark.parametrize("gone", [1, 8])
def test_unreadable_validation_pictures_are_left_out(
    begin: Starter, parts: Splits, tmp_path: Path, gone: int
) -> None:
    lacking = {
        "train": parts["train"],
        "validation": missing(parts["validation"], range(gone), tmp_path),
    }
    (judgement,) = train_to_end(begin(parts=lacking, epochs=1))
    assert judgement.predictions.rows == list(range(gone, 8))
    assert math.isfinite(judgement.metrics["validation_loss"])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_are_refused(begin: Starter, parts: Splits, count: int) -> None:
    few = {"train": parts["train"].head(count), "validation": parts["validation"]}
    with pytest.raises(TaggerError, match=rf"at least 2 pictures, the split gives {count}\."):
        begin(parts=few)


@pytest.mark.parametrize(("size", "steps"), [(2, 12), (5, 4), (24, 1), (1000, 1)])
def test_any_batch_size_trains_and_a_last_batch_that_is_not_full_is_left_out(
    begin: Starter, preset: Preset, size: int, steps: int
) -> None:
    training = begin(preset.model_copy(update={"batch_size": size}), epochs=1)
    assert [len(batch.rows) for batch in training.batches] == [min(size, 24)] * steps
    before = weights(training)
    (judgement,) = train_to_end(training)
    assert judgement.metrics["step"] == steps
    assert 0 < judgement.metrics["loss"] < 2 * len(before["classifier.bias"])
    assert not equal_weights(before, weights(training))


def test_no_validation_pictures_are_no_obstacle(begin: Starter, parts: Splits) -> None:
    empty = {"train": parts["train"], "validation": parts["validation"].head(0)}
    (judgement,) = train_to_end(begin(parts=empty, epochs=1))
    assert judgement.metrics["macro_ap"] == 0
    assert judgement.weights


# Unlabelled ratings


def without(part: Split, columns: list[int], rows: slice) -> Split:
    labels = part.labels.toarray()
    labels[rows, columns] = False
    return Split(part.locations, type(part.labels)(labels))


@pytest.fixture
def rating(tags: list[Tag]) -> list[int]:
    columns = [column for column, tag in enumerate(tags) if tag.category == 9]
    assert columns
    return columns


def test_pictures_without_a_rating_are_unlabelled_in_it_alone(
    begin: Starter, parts: Splits, rating: list[int]
) -> None:
    some = {**parts, "train": without(parts["train"], rating, slice(10))}
    for batch in begin(parts=some).batches:
        for row, targets in zip(batch.rows, batch.targets.tolist(), strict=True):
            expected = some["train"].labels.toarray()[row].astype(int)
            if row < 10:
                expected[rating] = -1
            assert targets == expected.tolist()


@pytest.mark.parametrize("kind", ["bce", "asymmetric", "two_way"])
@pytest.mark.parametrize("unlabelled", [["rating"], []])
def test_what_is_unlabelled_moves_nothing(
    begin: Starter, parts: Splits, rating: list[int], unlabelled: list[str], kind: str
) -> None:
    none = {**parts, "train": without(parts["train"], rating, slice(None))}
    training = begin(
        parts=none, unlabelled=unlabelled, weight_decay=0, epochs=1, loss={"kind": kind}
    )
    before = weights(training)["classifier.weight"]
    train_to_end(training)
    moved = (weights(training)["classifier.weight"] != before).any(dim=1)
    assert moved[rating].any() == (not unlabelled)
    assert moved.sum() > len(rating)


def test_what_is_unlabelled_is_not_judged(
    begin: Starter, parts: Splits, rating: list[int], split: Split
) -> None:
    """A rating said of a picture that has none makes no difference, as in the evaluation."""
    some = {**parts, "validation": without(split, rating, slice(10))}
    training = begin(parts=some, epochs=1)
    figures, told = training.validator(training.state.eval_model)
    known = np.ones(told.truth.shape, np.bool_)
    known[np.ix_(range(10), rating)] = False
    assert np.array_equal(told.known, known)
    has = (told.truth & known).any(axis=0)
    precisions = [
        average_precision_score(told.truth[known[:, tag], tag], told.scores[known[:, tag], tag])
        for tag in np.flatnonzero(has)
    ]
    assert figures["macro_ap"] == pytest.approx(np.mean(precisions))
    micro = average_precision_score(told.truth[known], told.scores[known])
    assert figures["micro_ap"] == pytest.approx(micro)
    loss = log_loss(told.truth[known], told.scores[known], normalize=False, labels=[False, True])
    assert figures["validation_loss"] == pytest.approx(loss / len(split), rel=1e-5)


# What learns


STAGES = ["conv_stem.|bn1.", "blocks.0.", "blocks.1.", "blocks.2.", "blocks.3."]
STAGES += ["blocks.4.|conv_head.|bn2."]


def moving(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[int]:
    """Return which stages of `test_efficientnet` differ anywhere; the head is stage 6."""
    places = [tuple(stage.split("|")) for stage in STAGES] + [("classifier.",)]
    names = changed_names(one, other)
    assert all(any(name.startswith(place) for place in places) for name in one)
    return [n for n, place in enumerate(places) if any(name.startswith(place) for name in names)]


@pytest.mark.parametrize(
    ("freeze", "every", "by_epoch"),
    [
        (0, None, [[0, 1, 2, 3, 4, 5, 6]] * 3),
        (2, None, [[2, 3, 4, 5, 6]] * 3),
        ("all", None, [[6]] * 3),
        (99, None, [[6]] * 3),
        ("all", 1, [[6], [5, 6], [4, 5, 6]]),
        (2, 2, [[2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]),
    ],
)
def test_what_is_frozen_keeps_weights_and_statistics(
    begin: Starter, freeze: str | int, every: int | None, by_epoch: list[list[int]]
) -> None:
    training = begin(epochs=3, freeze=freeze, unfreeze_every=every)
    states = [weights(training)]
    states += [weights(training) for _ in training.train()]
    assert [moving(*pair) for pair in itertools.pairwise(states)] == by_epoch


def test_what_is_frozen_drops_nothing_out(begin: Starter, vit: Preset) -> None:
    training = begin(vit.model_copy(update={"drop_path": 0.5}), freeze="all", epochs=1)
    given: list[Tensor] = []
    made: list[Tensor] = []
    model: Any = training.model
    handles = [
        model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])),
        model.blocks.register_forward_hook(lambda *called: made.append(called[2].detach())),
    ]
    train_to_end(training)
    assert len(given) == 3 + 1  # steps, and a validation
    for handle in handles[:1]:
        handle.remove()
    model.eval()
    with torch.no_grad():
        for inputs, expected in zip(given, list(made), strict=True):
            model.forward_features(inputs)
            assert torch.equal(made.pop(), expected)


def embeddings(model: Any, part: Split, training: Trainer) -> Tensor:
    """Return what the head sees of each picture, (pictures, features)."""
    prepared = training.preprocess
    squares = np.stack([prepared.to_square(decode.open_rgb(place)) for place in part.locations])
    with torch.inference_mode():
        inputs = torch.from_numpy(prepared.normalise(squares))
        made: Tensor = model.eval().forward_head(model.forward_features(inputs), pre_logits=True)
    return made.clone()


HEAD = {"freeze": "all", "cache_embeddings": True}


def test_a_head_on_kept_embeddings_is_one_trained_by_hand(
    begin: Starter, preset: Preset, split: Split, tags: list[Tag]
) -> None:
    training = begin(epochs=3, optimizer="adamw", **HEAD, augment={"mixup": 0.5})
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    seen = embeddings(training.model, split, training)
    head = nn.Linear(seen.shape[1], len(tags))
    head.load_state_dict({kind: before[f"classifier.{kind}"] for kind in ("weight", "bias")})
    groups: list[dict[str, Any]] = [
        {"params": [head.bias], "weight_decay": 0.0},
        {"params": [head.weight]},
    ]
    adamw: Any = torch.optim.AdamW(groups, weight_decay=0.05)
    truth = torch.from_numpy(split.labels.toarray()).float()
    order = loader.ResumableBatchSampler(24, 8, 0, drop_last=True, batch_numbers=range(9))
    for step, keys in enumerate(order):
        rows = [key.row for key in keys]
        loss = SUM(head(seen[rows]), truth[rows]).sum() / len(rows)
        adamw.zero_grad()
        loss.backward()
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * fraction_of_peak("cosine", step, 9, 0.15)
        adamw.step()
    history = train_to_end(training)
    after = history[-1].weights
    assert changed_names(before, after) == {"classifier.weight", "classifier.bias"}
    assert torch.allclose(after["classifier.weight"], head.weight, atol=1e-5)
    assert torch.allclose(after["classifier.bias"], head.bias, atol=1e-5)
    assert curve(history)[-1] < curve(history)[0]
    whole: Any = backbone.build_model(preset, len(tags))
    whole.load_state_dict(after)
    scores = whole.get_classifier()(embeddings(whole, split.head(8), training)).sigmoid()
    assert np.allclose(scores.detach(), history[-1].predictions.scores, atol=1e-5)


def test_pictures_without_embeddings_are_counted_and_no_stages_are_told(
    begin: Starter, parts: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = {**parts, "train": missing(parts["train"], [3, 5], tmp_path)}
    with caplog.at_level(logging.INFO):
        training = begin(parts=lacking, max_unreadable=0.1, epochs=1, **HEAD)
        train_to_end(training)
    assert training.unreadable == 2
    assert training.position.failures == {}
    assert not [one for one in caplog.messages if "stages of the backbone" in one]


def test_a_backbone_that_cannot_compute_twice_is_told(begin: Starter, preset: Preset) -> None:
    other = preset.model_copy(update={"backbone": "dla46_c"})
    with pytest.raises(TaggerError, match=r"\Atrain\.gradient_checkpointing: [^\n]*\Z"):
        begin(other, gradient_checkpointing=True)
    begin(other)


def drawn_otherwise(folder: Path, preset: Preset, tags: list[Tag]) -> Path:
    """Write a weights file of a backbone that no training of these tests begins with."""
    torch.manual_seed(99)
    backbone.save_weights(
        backbone.build_model(preset, len(tags)).state_dict(), folder / "old.safetensors"
    )
    return folder / "old.safetensors"


def test_a_head_on_embeddings_goes_on_with_the_backbone_it_began_with(
    begin: Starter, preset: Preset, tags: list[Tag], tmp_path: Path
) -> None:
    file = drawn_otherwise(tmp_path, preset, tags)
    pretrained = preset.model_copy(update={"pretrained": str(file)})
    recipe = {**HEAD, "snapshot_every": "1 step"}
    whole_training = begin(pretrained, at="whole", **recipe)
    whole = train_to_end(whole_training)
    assert torch.equal(whole[-1].weights["conv_stem.weight"], load_file(file)["conv_stem.weight"])
    killed = begin(pretrained, at="killed", **recipe)
    running = killed.train()
    next(running), next(running)
    killed.snapshots.wait()
    again = begin(pretrained, at="killed", **recipe)
    assert again.position.step == 5
    rest = train_to_end(again)
    assert [one.metrics for one in rest] == [whole[-1].metrics]
    assert equal_weights(rest[-1].weights, whole[-1].weights)
    assert whole_training.snapshots.newest is not None
    longer = recipe | {"epochs": 3, "resume_from": whole_training.snapshots.newest}
    later = train_to_end(begin(pretrained, at="later", **longer))
    assert changed_names(later[-1].weights, whole[-1].weights) == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.timeout(200)
def test_the_stage_starts_from_a_tagger_with_other_tags(
    default_params: Params,
    demo: Path,
    preset: Preset,
    model_folder: Path,
    tags: list[Tag],
    tmp_path: Path,
) -> None:
    """With a rate that moves nothing, what the old and the new model share is the same."""
    still = preset.model_copy(update={"learning_rate": 1e-30})
    made = make_project(
        tmp_path / "project", default_params, demo, still, init_from=str(model_folder), epochs=1
    )
    tags_file = made.folder / "data" / "vocabulary.csv"
    kept = [tag for tag in vocabulary.read(tags_file) if tag.name != tags[0].name]
    rare = [tag for tag in manifest.read_tags(made.folder / "data/tags.parquet") if tag.count < 3]
    vocabulary.write([*rare[:2], *kept], tags_file)
    told = f"carried {len(kept)} of {len(kept) + 2} tags, 2 new, 1 dropped"
    assert told in made.train().splitlines()
    old = load_file(model_folder / backbone.WEIGHTS)
    new = load_file(made.folder / "models/tagger/last.safetensors")
    rows = [[tag.name for tag in tags].index(tag.name) for tag in kept]
    for entry in ("classifier.weight", "classifier.bias"):
        assert torch.equal(new[entry][2:], old[entry][rows])
    assert torch.equal(new["conv_stem.weight"], old["conv_stem.weight"])
    table = files.read_csv(made.folder / "models/tagger/carried_tags.csv")
    outcomes = {row["name"]: row["outcome"] for row in table}
    assert outcomes == (
        {tag.name: "carried" for tag in kept}
        | {tag.name: "new" for tag in rare[:2]}
        | {tags[0].name: "dropped"}
    )


def test_a_backbone_that_takes_other_sizes_trains_on_them(begin: Starter) -> None:
    training = begin(epochs=2, augment={"sizes": [48, 64]})
    sizes = {batch.pixels.shape[1] for batch in training.batches}
    assert sizes <= {32, 48, 64}
    assert len(sizes) > 1
    assert len(train_to_end(training)) == 2


def test_sizes_that_a_backbone_does_not_take_are_refused(begin: Starter, vit: Preset) -> None:
    fixed = {"dynamic_img_size": False}
    with pytest.raises(TaggerError, match=r"takes no pictures of 48 px.*dynamic_img_size"):
        begin(vit.model_copy(update={"model_args": fixed}), augment={"sizes": [48]})


# A compiler


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_it_learns_the_same(begin: Starter, vit: Preset) -> None:
    args = {"depth": 1, "embed_dim": 32, "num_heads": 1}
    small = vit.model_copy(update={"model_args": args})  # each operation takes its time
    plain = begin(small, at="plain", epochs=1)
    compiled = begin(small, at="compiled", epochs=1, compile=True)
    one, other = train_to_end(plain)[-1], train_to_end(compiled)[-1]
    assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-4)
    assert other.metrics["gradient_norm"] == pytest.approx(one.metrics["gradient_norm"], rel=1e-3)
    assert one.weights.keys() == other.weights.keys()
    for name, values in one.weights.items():
        assert torch.allclose(values, other.weights[name], atol=1e-3), name
    assert type(compiled.state.network).__name__ == "OptimizedModule"
