"""Losses agree with the references, ignore unknown labels, and stay finite."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn import BCEWithLogitsLoss
from torchvision.ops import sigmoid_focal_loss

from support.trainings import train_params
from tagger.training import losses
from tagger.training.losses import LossFunction


def asymmetric(negative: float = 4.0, positive: float = 1.0, clip: float = 0.05) -> LossFunction:
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
EVERY = [
    losses.binary_cross_entropy,
    partial(losses.binary_cross_entropy, reduction="mean"),
    partial(losses.two_way_loss, temperature=4.0),
    *(asymmetric(*setting) for setting in SETTINGS),
]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def targets() -> Tensor:
    return (torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.2).float()


def gradient(loss: LossFunction, logits: Tensor, targets: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(loss(leaf, targets), leaf)
    return gradients


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


def test_asymmetric_loss_without_gammas_and_clip_is_cross_entropy(
    logits: Tensor, targets: Tensor
) -> None:
    plain = asymmetric(0.0, 0.0, 0.0)
    expected = losses.binary_cross_entropy(logits, targets)
    torch.testing.assert_close(plain(logits, targets), expected)


@pytest.mark.parametrize("loss", EVERY)
def test_unknown_labels_change_neither_loss_nor_gradient(
    logits: Tensor, targets: Tensor, loss: LossFunction
) -> None:
    unknown = torch.zeros_like(targets, dtype=torch.bool)
    unknown[:, ::3] = True
    targets[unknown] = -1
    other = torch.where(unknown, -logits * 100 + 7, logits)
    torch.testing.assert_close(loss(logits, targets), loss(other, targets))
    gradients = gradient(loss, other, targets)
    assert (gradients[unknown] == 0).all()
    torch.testing.assert_close(gradients[~unknown], gradient(loss, logits, targets)[~unknown])
    known_loss = loss(logits[:, ~unknown[0]], targets[:, ~unknown[0]])
    torch.testing.assert_close(loss(logits, targets), known_loss)


@pytest.mark.parametrize("loss", EVERY)
def test_batch_of_unknown_labels_has_no_loss(logits: Tensor, loss: LossFunction) -> None:
    unknown = torch.full_like(logits, -1)
    assert loss(logits, unknown) == 0
    assert (gradient(loss, logits, unknown) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", EVERY)
def test_loss_and_gradient_stay_finite_at_extreme_logits(
    loss: LossFunction, dtype: torch.dtype
) -> None:
    extreme = [-1e4, -100.0, -30.0, -17.0, -3.0, 0.0, 3.0, 17.0, 30.0, 100.0, 1e4]
    logits = torch.tensor(extreme, dtype=dtype).repeat(3, 1)
    targets = torch.tensor([[1.0], [0.0], [-1.0]]).expand(3, len(extreme))
    value = loss(logits, targets)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient(loss, logits, targets).isfinite().all()


@pytest.mark.parametrize("loss", [losses.binary_cross_entropy, asymmetric(4.0, 1.0, 0.0)])
def test_confident_mistake_has_a_gradient(loss: LossFunction) -> None:
    logits, targets = torch.tensor([[-50.0, 50.0]]), torch.tensor([[1.0, 0.0]])
    gradients = gradient(loss, logits, targets)
    assert gradients[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("loss", EVERY)
def test_loss_of_half_precision_logits_is_computed_in_float32(loss: LossFunction) -> None:
    logits = torch.tensor([[0.5, -1.5, 3.0, -4.0]])  # exact in all three
    targets = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    for dtype in (torch.bfloat16, torch.float16):
        assert loss(logits.to(dtype), targets) == loss(logits, targets)


def build(**settings: object) -> LossFunction:
    """Return the loss of params.yaml with some settings changed."""
    params = train_params().loss.model_copy(update=settings)
    return losses.build_loss(params, COUNTS)


COUNTS = torch.arange(1, 41) ** 3


def test_mean_over_tags_is_torchs(logits: Tensor, targets: Tensor) -> None:
    mean = losses.binary_cross_entropy(logits, targets, reduction="mean")
    torch.testing.assert_close(mean, BCEWithLogitsLoss()(logits, targets))


def test_mean_is_over_the_known_tags_of_each_image(logits: Tensor, targets: Tensor) -> None:
    """An image counts the same however many of its tags are known."""
    for row in range(len(targets)):
        targets[row, : row * 7] = -1
    each = [
        BCEWithLogitsLoss()(logits[row, row * 7 :], targets[row, row * 7 :])
        for row in range(len(targets))
    ]
    mean = losses.binary_cross_entropy(logits, targets, reduction="mean")
    torch.testing.assert_close(mean, torch.stack(each).mean())


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=50))
def test_log_count_weights_rise_with_rarity_and_have_mean_1(counts: list[int]) -> None:
    weights = losses.log_count_weights(torch.tensor(counts))
    assert weights.isfinite().all()
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    by_count = weights.double()[torch.tensor(counts).argsort(descending=True)]
    assert (by_count.diff() >= 0).all()


def test_log_count_weights_are_inverse_logarithms() -> None:
    rare, common = losses.log_count_weights(torch.tensor([9, 999_999])).tolist()
    assert rare / common == pytest.approx(6, rel=1e-4)


@pytest.mark.parametrize("kind", ["bce", "asymmetric", "focal"])
def test_tag_weights_scale_the_gradient_of_each_tag(
    logits: Tensor, targets: Tensor, kind: str
) -> None:
    plain = gradient(build(kind=kind), logits, targets)
    weighted = gradient(build(kind=kind, tag_weights="log_count"), logits, targets)
    torch.testing.assert_close(weighted, plain * losses.log_count_weights(COUNTS))


def test_weighted_mean_of_a_constant_is_the_constant() -> None:
    loss = build(tag_weights="log_count", reduction="mean")
    targets = torch.tensor([1.0, 0.0, -1.0, 1.0] * 10).repeat(3, 1)
    torch.testing.assert_close(loss(torch.zeros(3, 40), targets), torch.tensor(2.0).log())


def test_smoothing_moves_known_labels_toward_a_half() -> None:
    targets = torch.tensor([[0.0, 1.0, -1.0, 0.5, 0.25]])
    smoothed = losses.smooth(targets, 0.2)
    torch.testing.assert_close(smoothed, torch.tensor([[0.1, 0.9, -1.0, 0.5, 0.3]]))
    assert torch.equal(losses.smooth(targets, 0.0), targets)


def test_smoothed_cross_entropy_is_torchs_of_smoothed_labels(
    logits: Tensor, targets: Tensor
) -> None:
    expected = BCEWithLogitsLoss(reduction="sum")(logits, targets * 0.8 + 0.1) / len(logits)
    torch.testing.assert_close(build(smoothing=0.2)(logits, targets), expected)
    targets[:, ::3] = -1
    gradients = gradient(build(smoothing=0.2), logits, targets)
    assert (gradients[:, ::3] == 0).all()
    assert (gradients[:, 1::3] != 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_is_torchvisions(logits: Tensor, targets: Tensor, gamma: float) -> None:
    reference = partial(sigmoid_focal_loss, alpha=-1, gamma=gamma, reduction="sum")
    ours = build(kind="focal", gamma=gamma)
    torch.testing.assert_close(ours(logits, targets), reference(logits, targets) / len(logits))
    torch.testing.assert_close(
        gradient(ours, logits, targets),
        gradient(reference, logits.double(), targets.double()).float() / len(logits),
        rtol=1e-3,
        atol=1e-6,
    )


def two_way(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the two-way loss in double precision, as the paper writes it: no tag masked, but
    positives and negatives of each image and each tag picked out.
    """

    def one_way(rows: Tensor, labels: Tensor) -> Tensor:
        losses = []
        for row, label in zip(rows.double(), labels, strict=True):
            positive, negative = row[label > 0], row[label == 0]
            if len(positive) and len(negative):
                near = temperature * (-positive / temperature).exp().sum().log()
                losses.append((1 + (negative.exp().sum().log() + near).exp()).log())
            elif len(positive):
                losses.append(row.new_zeros(()))
        return torch.stack(losses).mean() if losses else logits.sum() * 0

    return one_way(logits, targets) + one_way(logits.T, targets.T)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_two_way_loss_is_that_of_the_paper(
    logits: Tensor, targets: Tensor, temperature: float, fraction: float
) -> None:
    unknown = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < fraction
    targets[unknown] = -1
    targets[0] = targets[0].clamp(max=0)  # an image without a positive
    targets[1] = targets[1].masked_fill(targets[1] == 0, -1)  # one without a negative
    assert 0 < (targets > 0).any(0).sum() < 40  # some tags are without one, too
    ours = partial(losses.two_way_loss, temperature=temperature)
    reference = partial(two_way, temperature=temperature)
    torch.testing.assert_close(ours(logits, targets), reference(logits, targets).float())
    torch.testing.assert_close(
        gradient(ours, logits, targets), gradient(reference, logits, targets), atol=1e-6, rtol=1e-4
    )


def test_two_way_loss_ignores_tags_and_images_without_a_positive(
    logits: Tensor, targets: Tensor
) -> None:
    loss = partial(losses.two_way_loss, temperature=4.0)
    targets[3], targets[:, 5:9] = 0, 0
    rows = torch.arange(len(targets)) != 3
    nothing = torch.zeros(1, 4)  # without a positive
    assert loss(nothing, nothing) == 0
    gradients = gradient(loss, logits, targets)
    assert (gradients[3, 5:9] == 0).all()
    # The image counts as a negative of the tags of others, and not by itself.
    others = gradient(loss, logits[rows], targets[rows])
    assert (gradients[3, :5] != 0).sum() == (targets[:, :5] > 0).any(0).sum()
    columns = ~(targets > 0).any(0)
    torch.testing.assert_close(gradients[rows][:, columns], others[:, columns])


def test_two_way_loss_falls_as_positives_rise_above_negatives(
    logits: Tensor, targets: Tensor
) -> None:
    loss = partial(losses.two_way_loss, temperature=4.0)
    gradients = gradient(loss, logits, targets)
    assert (gradients[targets > 0] <= 0).all()
    assert (gradients[targets == 0] >= 0).all()
    apart = targets * 200 - 100
    assert loss(apart, targets) < 1e-6 < loss(-apart, targets)


@pytest.mark.parametrize(
    ("settings", "direct"),
    [
        ({"kind": "bce"}, losses.binary_cross_entropy),
        (
            {"kind": "asymmetric", "gamma_negative": 3.0, "gamma_positive": 0.5, "clip": 0.2},
            asymmetric(3.0, 0.5, 0.2),
        ),
        ({"kind": "focal", "gamma": 3.0}, asymmetric(3.0, 3.0, 0.0)),
        (
            {"kind": "two_way", "temperature": 2.0},
            partial(losses.two_way_loss, temperature=2.0),
        ),
    ],
)
def test_build_loss_gives_the_loss_of_its_kind(
    logits: Tensor,
    targets: Tensor,
    settings: dict[str, object],
    direct: LossFunction,
) -> None:
    loss = build(**settings)
    assert loss(logits, targets) == direct(logits, targets)
    if settings["kind"] == "two_way":
        return
    mean = build(reduction="mean", **settings)
    torch.testing.assert_close(mean(logits, targets), direct(logits, targets) / 40)


def test_two_way_loss_is_not_smoothed(logits: Tensor, targets: Tensor) -> None:
    smooth, plain = (build(kind="two_way", smoothing=fraction) for fraction in (0.1, 0.0))
    assert smooth(logits, targets) == plain(logits, targets) > 0


@pytest.mark.parametrize("kind", ["bce", "asymmetric", "focal", "two_way"])
def test_every_loss_takes_mixed_labels(logits: Tensor, kind: str) -> None:
    mixed = torch.from_numpy(np.random.default_rng(0).random((6, 40), np.float32))
    loss = build(kind=kind)
    assert loss(logits, mixed).isfinite()
    assert gradient(loss, logits, mixed).isfinite().all()
