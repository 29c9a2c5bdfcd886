"""Losses agree with the references, leave out what is unknown, and stay finite."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn import BCEWithLogitsLoss

from tagger import losses

Loss = Callable[[Tensor, Tensor], Tensor]


def asymmetric(negative: float = 4.0, positive: float = 1.0, clip: float = 0.05) -> Loss:
    return partial(
        losses.asymmetric_loss, gamma_negative=negative, gamma_positive=positive, clip=clip
    )


# Every shape of the powers: none, root-like, straight, steep; and every sort of clip.
SETTINGS = [
    (4.0, 1.0, 0.05),
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 0.05),
    (2.0, 0.5, 0.05),
    (0.5, 1.0, 0.05),
    (0.5, 0.0, 0.0),
    (1.0, 0.0, 0.2),
    (4.0, 1.0, 0.0),
    (4.0, 1.0, 1e-8),
]
EVERY = [losses.binary_cross_entropy, *(asymmetric(*setting) for setting in SETTINGS)]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def targets() -> Tensor:
    return (torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.2).float()


def gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, targets), leaf)
    return slope


def test_binary_cross_entropy_is_torchs_summed_over_tags(logits: Tensor, targets: Tensor) -> None:
    reference = BCEWithLogitsLoss(reduction="sum")
    expected = reference(logits, targets) / len(logits)
    torch.testing.assert_close(losses.binary_cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("setting", SETTINGS)
def test_asymmetric_loss_is_timms(
    logits: Tensor, targets: Tensor, setting: tuple[float, float, float]
) -> None:
    negative, positive, clip = setting
    timms = AsymmetricLossMultiLabel(negative, positive, clip, eps=1e-12, reduction="sum")
    expected = timms(logits.double(), targets) / len(logits)
    ours = asymmetric(*setting)(logits, targets)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-6)


def test_gradients_of_the_asymmetric_loss_are_timms(logits: Tensor, targets: Tensor) -> None:
    timms = AsymmetricLossMultiLabel(reduction="sum")
    expected = gradient(timms, logits, targets) / len(logits)
    torch.testing.assert_close(
        gradient(asymmetric(), logits, targets), expected, rtol=1e-3, atol=1e-6
    )


def test_without_focus_and_clip_the_asymmetric_loss_is_cross_entropy(
    logits: Tensor, targets: Tensor
) -> None:
    plain = asymmetric(0.0, 0.0, 0.0)
    expected = losses.binary_cross_entropy(logits, targets)
    torch.testing.assert_close(plain(logits, targets), expected)


@pytest.mark.parametrize("loss", EVERY)
def test_unknown_labels_move_neither_the_loss_nor_the_gradient(
    logits: Tensor, targets: Tensor, loss: Loss
) -> None:
    unknown = torch.zeros_like(targets, dtype=torch.bool)
    unknown[:, ::3] = True
    targets[unknown] = -1
    other = torch.where(unknown, -logits * 100 + 7, logits)
    torch.testing.assert_close(loss(logits, targets), loss(other, targets))
    slope = gradient(loss, other, targets)
    assert (slope[unknown] == 0).all()
    torch.testing.assert_close(slope[~unknown], gradient(loss, logits, targets)[~unknown])
    known = loss(logits[:, ~unknown[0]], targets[:, ~unknown[0]])
    torch.testing.assert_close(loss(logits, targets), known)


@pytest.mark.parametrize("loss", EVERY)
def test_a_batch_of_which_nothing_is_known_costs_nothing(logits: Tensor, loss: Loss) -> None:
    unknown = torch.full_like(logits, -1)
    assert loss(logits, unknown) == 0
    assert (gradient(loss, logits, unknown) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", EVERY)
def test_loss_and_gradient_stay_finite_at_extreme_logits(loss: Loss, dtype: torch.dtype) -> None:
    extreme = [-1e4, -100.0, -30.0, -17.0, -3.0, 0.0, 3.0, 17.0, 30.0, 100.0, 1e4]
    logits = torch.tensor(extreme, dtype=dtype).repeat(3, 1)
    targets = torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, len(extreme))
    value = loss(logits, targets)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient(loss, logits, targets).isfinite().all()


@pytest.mark.parametrize("loss", [losses.binary_cross_entropy, asymmetric(4.0, 1.0, 0.0)])
def test_a_confident_mistake_still_has_a_slope(loss: Loss) -> None:
    logits, targets = torch.tensor([[-50.0, 50.0]]), torch.tensor([[1.0, 0.0]])
    slope = gradient(loss, logits, targets)
    assert slope[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("loss", EVERY)
def test_lower_precision_of_the_logits_does_not_reach_the_loss(loss: Loss) -> None:
    logits = torch.tensor([[0.5, -1.5, 3.0, -4.0]])  # exact in all three
    targets = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    for dtype in (torch.bfloat16, torch.float16):
        assert loss(logits.to(dtype), targets) == loss(logits, targets)
