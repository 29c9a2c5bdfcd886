"""Losses for multi-label targets. Entries of -1 are unknown and do not count.

logits:  (batch, tags), before the sigmoid; computed in float32 under autocast
targets: (batch, tags), from 0 to 1, -1 if unknown
weights: (tags,)

Each loss is a mean over the images, in nats: of the sum over tags, or of their mean.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from tagger.params import LossParams

LossFunction = Callable[[Tensor, Tensor], Tensor]
Reduction = Literal["sum", "mean"]

_NEVER = -1e9  # a logit that does not count: minus infinity would give gradients of NaN


def build_loss(params: LossParams, counts: Tensor) -> LossFunction:
    """Return the loss that `train.loss` describes.

    counts: (tags,), training images with each tag
    """
    if params.kind == "two_way":  # no smoothing: a target of a half would be a positive
        return partial(two_way_loss, temperature=params.temperature)
    kinds: dict[str, Callable[..., Tensor]] = {
        "bce": binary_cross_entropy,
        "asymmetric": partial(
            asymmetric_loss,
            gamma_negative=params.gamma_negative,
            gamma_positive=params.gamma_positive,
            clip=params.clip,
        ),
        "focal": partial(
            asymmetric_loss, gamma_negative=params.gamma, gamma_positive=params.gamma, clip=0.0
        ),
    }
    weights = log_count_weights(counts) if params.tag_weights == "log_count" else None
    loss = partial(kinds[params.kind], weights=weights, reduction=params.reduction)
    if not params.smoothing:
        return loss
    return lambda logits, targets: loss(logits, smooth(targets, params.smoothing))


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, reduction: Reduction = "sum"
) -> Tensor:
    loss = binary_cross_entropy_with_logits(
        logits.float(), targets.clamp(min=0).float(), reduction="none"
    )
    return _reduce(loss, targets, weights, reduction)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_negative: float,
    gamma_positive: float,
    clip: float,
    weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Return the asymmetric loss; with equal gammas and no clip it is the focal loss.

    Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, equation 7;
    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4.
    """
    logits, positives = logits.float(), targets.clamp(min=0).float()
    # The clamps keep log from 0, and a root from its infinite slope at 0: both give NaN.
    shifted = (logits.sigmoid() - clip).clamp(min=0, max=1 - 1e-7)
    log_negative = torch.log1p(-shifted) if clip > 0 else logsigmoid(-logits)
    positive = (-logits).sigmoid().clamp(min=1e-12) ** gamma_positive * logsigmoid(logits)
    negative = shifted**gamma_negative * log_negative
    return _reduce(-torch.lerp(negative, positive, positives), targets, weights, reduction)


def two_way_loss(logits: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Return how far negatives are above positives, averaged over images, plus over tags.

    Tags without a positive in the batch do not count, nor do images without one. Targets above 0
    are positives.

    Kobayashi 2023, https://openaccess.thecvf.com/content/CVPR2023, "Two-Way Multi-Label Loss".
    """
    logits = logits.float()
    positives = targets > 0
    positive = torch.where(positives, -logits / temperature, _NEVER)
    negative = torch.where(targets == 0, logits, _NEVER)
    means = []
    for axis in (0, 1):
        margin = positive.logsumexp(axis) * temperature + negative.logsumexp(axis)
        present = positives.any(axis)
        means.append((softplus(margin) * present).sum() / present.sum().clamp(min=1))
    return means[0] + means[1]


def _reduce(loss: Tensor, targets: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    counted = (targets >= 0).to(loss.dtype)
    if weights is not None:
        counted = counted * weights.to(loss.device)
    total = (loss * counted).sum(dim=1)
    if reduction == "mean":
        total = total / counted.sum(dim=1).clamp(min=1e-12)
    return total.mean()


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Return targets moved toward a half by this fraction; unknown ones stay unknown."""
    half = targets.new_tensor(0.5)
    return torch.where(targets < 0, targets, torch.lerp(targets, half, smoothing))


def log_count_weights(counts: Tensor) -> Tensor:
    """Return weights, (tags,), of mean 1, in inverse proportion to the logarithm of the counts."""
    weights = 1 / torch.log(counts.float().clamp(min=1) + 1)
    return weights / weights.mean()
