"""A trainer lowers the loss, repeats itself to the bit, and computes the gradient of torch."""

import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss
from timm.utils import ModelEmaV3
from torch import Tensor

from support.trainings import (
    SINGLE_PROCESS,
    BuildTrainer,
    Splits,
    changed_names,
    equal_weights,
    train_to_end,
    weights,
)
from tagger.core.errors import TaggerError
from tagger.core.vocabulary import Tag
from tagger.images import loader
from tagger.images.dataset import Split
from tagger.images.loader import Batch
from tagger.params import Preset
from tagger.training import train_state
from tagger.training.trainer import Trainer
from tagger.training.validation import Validation

BCE = torch.nn.BCEWithLogitsLoss(reduction="none")


def curve(validations: list[Validation], name: str = "loss") -> list[float]:
    return [validation.metrics[name] for validation in validations]


# Learning


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
def test_training_lowers_every_loss(build_trainer: BuildTrainer, loss: dict[str, Any]) -> None:
    validations = train_to_end(build_trainer(epochs=8, loss=loss))
    assert curve(validations, "epoch") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curve(validations, "step") == [3, 6, 9, 12, 15, 18, 21, 24]
    assert curve(validations)[-1] < 0.9 * curve(validations)[0]
    # by chance, macro AP is the fraction of positives
    assert curve(validations, "macro_ap")[-1] > curve(validations, "macro_ap")[0] + 0.05
    assert ["last" in validation.checkpoints for validation in validations] == [False] * 7 + [True]


def test_query_head_trains(build_trainer: BuildTrainer, vit: Preset) -> None:
    trainer = build_trainer(vit, epochs=8, head="query")
    before = weights(trainer)
    validations = train_to_end(trainer)
    assert curve(validations)[-1] < 0.85 * curve(validations)[0]
    changed = changed_names(before, weights(trainer))
    assert {"decoder.queries", "decoder.weight", "backbone.patch_embed.proj.weight"} <= changed


@pytest.mark.parametrize(("size", "steps"), [(2, 12), (5, 4), (24, 1), (1000, 1)])
def test_incomplete_last_batch_is_dropped(
    build_trainer: BuildTrainer, preset: Preset, size: int, steps: int
) -> None:
    trainer = build_trainer(preset.model_copy(update={"batch_size": size}), epochs=1)
    assert [len(batch.rows) for batch in trainer.batches] == [min(size, 24)] * steps
    before = weights(trainer)
    (validation,) = train_to_end(trainer)
    assert validation.metrics["step"] == steps
    assert 0 < validation.metrics["loss"] < 2 * len(before["classifier.bias"])
    assert not equal_weights(before, weights(trainer))


def test_batches_of_several_image_sizes_train(build_trainer: BuildTrainer, vit: Preset) -> None:
    trainer = build_trainer(epochs=2, augment={"sizes": [48, 64]})
    sizes = {batch.pixels.shape[1] for batch in trainer.batches}
    assert sizes <= {32, 48, 64}
    assert len(sizes) > 1
    assert len(train_to_end(trainer)) == 2
    fixed = vit.model_copy(update={"model_args": {"dynamic_img_size": False}})
    with pytest.raises(TaggerError, match=r"of 48 px.*dynamic_img_size"):
        build_trainer(fixed, augment={"sizes": [48]})


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_training_equals_uncompiled(build_trainer: BuildTrainer, vit: Preset) -> None:
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 1}
    small = vit.model_copy(update={"model_args": arguments})  # compiling takes time per operation
    (plain,) = train_to_end(build_trainer(small, folder="plain", epochs=1))
    trainer = build_trainer(small, folder="compiled", epochs=1, compile=True)
    (compiled,) = train_to_end(trainer)
    assert type(trainer.state.network).__name__ == "OptimizedModule"
    assert compiled.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-4)
    norm = plain.metrics["gradient_norm"]
    assert compiled.metrics["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert compiled.weights.keys() == plain.weights.keys()
    for name, values in plain.weights.items():
        assert torch.allclose(values, compiled.weights[name], atol=1e-3), name


# Determinism


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_gives_the_same_model_to_the_bit(
    build_trainer: BuildTrainer, preset: Preset, workers: int
) -> None:
    """Whatever the number of workers, and whatever torch has drawn before."""
    dropping = preset.model_copy(update={"drop_path": 0.2})
    random = {"ema": 0.9, "augment": {"mixup": 0.4, "cutmix": 1.0, "cutout": 0.2}}
    outcomes = []
    for folder, count in (("first", 0), ("second", workers)):
        trainer = build_trainer(dropping, folder=folder, workers=count, **random)
        torch.manual_seed(len(folder))
        outcomes.append(train_to_end(trainer))
    first, second = outcomes
    assert [each.metrics for each in first] == [each.metrics for each in second]
    assert equal_weights(first[-1].weights, second[-1].weights)


def test_another_seed_gives_another_order_and_other_weights(build_trainer: BuildTrainer) -> None:
    first, second = (build_trainer(seed=seed, folder=str(seed)) for seed in (0, 1))
    assert first_batch(first).rows != first_batch(second).rows
    changed = changed_names(weights(first), weights(second))
    assert changed >= {"conv_stem.weight", "classifier.weight"}


def test_drop_path_differs_between_steps(build_trainer: BuildTrainer, vit: Preset) -> None:
    trainer = build_trainer(vit.model_copy(update={"drop_path": 0.5}))
    batch = first_batch(trainer)
    gradients = [gradient_of(trainer, batch, step=step) for step in (0, 0, 1)]
    assert equal_weights(*gradients[:2])
    assert not equal_weights(*gradients[1:])


# Moving average


def test_ema_is_timms_and_is_validated_and_kept(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(ema=0.9, validate_every="1 step", keep_every="1 step")
    reference = ModelEmaV3(trainer.state.model, 0.9, use_warmup=True)

    def compare(validation: Validation) -> None:
        reference.update(trainer.state.model, step=trainer.position.step)
        assert equal_weights(validation.weights, reference.module.state_dict())
        metrics, _ = trainer.validator(reference.module)
        expected = {name: validation.metrics[name] for name in metrics}
        assert metrics == pytest.approx(expected, abs=1e-6)

    validations = train_to_end(trainer, compare)
    assert len(validations) == 6
    assert not equal_weights(validations[-1].weights, weights(trainer))
    snapshot = trainer.snapshots.load_newest()
    assert snapshot is not None
    assert equal_weights(snapshot["state"]["ema"], validations[-1].weights)
    assert equal_weights(snapshot["state"]["model"], weights(trainer))


def test_without_ema_the_trained_weights_are_kept(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer()
    assert equal_weights(train_to_end(trainer)[-1].weights, weights(trainer))


# Gradient


def first_batch(trainer: Trainer) -> Batch:
    batch = next(iter(trainer.batches))
    assert isinstance(batch, Batch)
    return batch


def gradient_of(trainer: Trainer, batch: Batch, *, step: int = 0) -> dict[str, Tensor]:
    """Return the gradient of a batch as the trainer computes it, with `loss` and `norm`."""
    trainer.state.freeze_stages(0)
    trainer.position.step = step
    loss, norm = trainer.accumulate(batch), trainer.state.gradient_norm()
    gradient = {
        name: weights.grad.clone()
        for name, weights in trainer.state.model.named_parameters()
        if weights.grad is not None
    }
    expected = math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))
    assert float(norm) == pytest.approx(expected, rel=1e-5)
    return gradient | {"loss": loss.detach().clone(), "norm": norm.clone()}


def near(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> bool:
    """Whether no gradient differs by more than this fraction of the norm of its tensor."""
    return first.keys() == second.keys() and all(
        float((first[name] - second[name]).norm()) <= tolerance * max(1e-6, float(values.norm()))
        for name, values in first.items()
    )


def autograd_gradient(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of the plain loss, by autograd alone."""
    inputs, targets = loader.to_device(batch, SINGLE_PROCESS.device, trainer.preprocess)
    model = trainer.state.model.train()
    loss = (BCE(model(inputs), targets.clamp(min=0)) * (targets >= 0)).sum() / len(inputs)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    return dict(zip(parameters, gradients, strict=True)) | {"loss": loss.detach(), "norm": norm}


@pytest.mark.parametrize("size", [None, 2, 3, 8])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(
    build_trainer: BuildTrainer, vit: Preset, size: int | None, reduction: str
) -> None:
    loss = {"reduction": reduction}
    whole = build_trainer(vit, loss=loss, folder="whole")
    batch = first_batch(whole)
    expected = gradient_of(whole, batch)
    if reduction == "sum":
        assert near(expected, autograd_gradient(whole, batch), 1e-5)
    trainer = build_trainer(vit, loss=loss, micro_batch=size or "auto", folder="micro")
    sizes: list[int] = []
    trainer.state.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert near(gradient_of(trainer, batch), expected, 1e-5)
    assert sorted(sizes) == {None: [8], 2: [2] * 4, 3: [2, 3, 3], 8: [8]}[size]


@pytest.mark.parametrize("head", ["linear", "query"])
def test_gradient_checkpointing_does_not_change_the_gradient(
    build_trainer: BuildTrainer, vit: Preset, head: str
) -> None:
    dropping = vit.model_copy(update={"drop_path": 0.3})
    plain = build_trainer(dropping, folder="plain", head=head)
    recomputing = build_trainer(dropping, folder="twice", head=head, gradient_checkpointing=True)
    calls = [0, 0]
    for number, trainer in enumerate((plain, recomputing)):
        for module in trainer.state.model.modules():
            if type(module).__name__ == "Mlp":

                def count(*_: Any, number: int = number) -> None:
                    calls[number] += 1

                module.register_forward_pre_hook(count)
    batch = first_batch(plain)
    assert near(gradient_of(recomputing, batch), gradient_of(plain, batch), 1e-6)
    assert calls[1] == 2 * calls[0] > 0


def test_gradient_checkpointing_is_refused_if_the_backbone_lacks_it(
    build_trainer: BuildTrainer, preset: Preset
) -> None:
    other = preset.model_copy(update={"backbone": "dla46_c"})
    with pytest.raises(TaggerError, match=r"\Atrain\.gradient_checkpointing: [^\n]*\Z"):
        build_trainer(other, gradient_checkpointing=True)
    build_trainer(other)


def test_clip_grad_norm_shortens_longer_gradients(build_trainer: BuildTrainer) -> None:
    norms, updates = [], []
    for bound in (None, 0.5, 1e6):
        trainer = build_trainer(
            folder=str(bound), clip_grad_norm=bound, optimizer="sgd", weight_decay=0, epochs=1
        )
        trainer.state.freeze_stages(0)
        before = [weights.detach().clone() for weights in trainer.model.parameters()]
        trainer.train_step(first_batch(trainer))
        pairs = zip(trainer.model.parameters(), before, strict=True)
        norms.append(trainer.position.gradient_norm)
        updates.append(
            float(torch.cat([(new.detach() - old).flatten() for new, old in pairs]).norm())
        )
    assert norms[0] == norms[1] == norms[2] > 1
    assert updates[2] == pytest.approx(updates[0], rel=1e-6)
    assert updates[1] == pytest.approx(updates[0] * 0.5 / norms[0], rel=1e-4)


# Half precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_float32(
    build_trainer: BuildTrainer, vit: Preset, precision: str
) -> None:
    full = train_to_end(build_trainer(vit, folder="full", epochs=4))
    trainer = build_trainer(vit, folder="half", epochs=4, precision=precision)
    dtypes = set()
    trainer.model.blocks[3].attn.qkv.register_forward_hook(  # type: ignore[index, union-attr]
        lambda module, _, output: dtypes.add(output.dtype) if module.training else None
    )
    half = train_to_end(trainer)
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert {values.dtype for values in weights(trainer).values()} == {torch.float32}
    assert all(values.isfinite().all() for values in half[-1].weights.values())
    assert curve(half) == pytest.approx(curve(full), rel=0.02)
    assert curve(half) != curve(full)
    assert trainer.position.nonfinite_steps == 0


def test_fp16_loss_scale_adapts_and_resumes(build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(precision="fp16")
    trainer.state.scaler.load_state_dict(trainer.state.scaler.state_dict() | {"scale": 2.0**60})
    train_to_end(trainer)
    scaler = trainer.state.scaler.state_dict()
    assert scaler["scale"] == 2.0**54  # too large in each of six steps
    assert trainer.position.nonfinite_steps == 0
    snapshot = trainer.snapshots.load_newest()
    assert snapshot is not None and snapshot["state"]["scaler"] == scaler
    assert build_trainer(precision="fp16").state.scaler.state_dict() == scaler


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_precision_is_bf16_only_on_cards_that_have_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert train_state.choose_precision(None, torch.device("cuda")) == expected
    assert train_state.choose_precision("bf16", torch.device("cuda")) == "bf16"
    assert train_state.choose_precision(None, torch.device("cpu")) == "fp32"


# Unlabelled ratings


def without_tags(split: Split, columns: list[int], rows: slice) -> Split:
    labels = split.labels.toarray()
    labels[rows, columns] = False
    return Split(split.locations, type(split.labels)(labels))


@pytest.fixture
def rating(tags: list[Tag]) -> list[int]:
    columns = [column for column, tag in enumerate(tags) if tag.category == 9]
    assert columns
    return columns


def test_images_without_a_rating_have_unknown_ratings(
    build_trainer: BuildTrainer, splits: Splits, rating: list[int]
) -> None:
    train = without_tags(splits["train"], rating, slice(10))
    for batch in build_trainer(splits={**splits, "train": train}).batches:
        for row, targets in zip(batch.rows, batch.targets.tolist(), strict=True):
            expected = train.labels.toarray()[row].astype(int)
            if row < 10:
                expected[rating] = -1
            assert targets == expected.tolist()


@pytest.mark.parametrize("kind", ["bce", "asymmetric", "two_way"])
@pytest.mark.parametrize("unlabelled", [["rating"], []])
def test_unknown_ratings_do_not_change_weights(
    build_trainer: BuildTrainer,
    splits: Splits,
    rating: list[int],
    unlabelled: list[str],
    kind: str,
) -> None:
    trainer = build_trainer(
        splits={**splits, "train": without_tags(splits["train"], rating, slice(None))},
        unlabelled=unlabelled,
        weight_decay=0,
        epochs=1,
        loss={"kind": kind},
    )
    before = weights(trainer)["classifier.weight"]
    train_to_end(trainer)
    changed = (weights(trainer)["classifier.weight"] != before).any(dim=1)
    assert changed[rating].any() == (not unlabelled)
    assert changed.sum() > len(rating)


def test_unknown_ratings_do_not_change_validation_metrics(
    build_trainer: BuildTrainer, splits: Splits, rating: list[int], split: Split
) -> None:
    """A predicted rating of an image without one makes no difference, as in the evaluation."""
    validation = without_tags(split, rating, slice(10))
    trainer = build_trainer(splits={**splits, "validation": validation}, epochs=1)
    metrics, predictions = trainer.validator(trainer.state.eval_model)
    truth, scores = predictions.truth, predictions.scores
    known_labels = np.ones(truth.shape, np.bool_)
    known_labels[np.ix_(range(10), rating)] = False
    assert np.array_equal(predictions.known, known_labels)
    precisions = [
        average_precision_score(truth[known_labels[:, tag], tag], scores[known_labels[:, tag], tag])
        for tag in np.flatnonzero((truth & known_labels).any(axis=0))
    ]
    assert metrics["macro_ap"] == pytest.approx(np.mean(precisions))
    micro = average_precision_score(truth[known_labels], scores[known_labels])
    assert metrics["micro_ap"] == pytest.approx(micro)
    loss = log_loss(
        truth[known_labels], scores[known_labels], normalize=False, labels=[False, True]
    )
    assert metrics["validation_loss"] == pytest.approx(loss / len(split), rel=1e-5)
