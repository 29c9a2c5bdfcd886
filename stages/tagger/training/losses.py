"""Losses for many tags at once. Targets of -1 are unknown: they count for nothing.

Each takes logits, (pictures, tags), before the sigmoid, and computes in float32 whatever autocast
says; targets, (pictures, tags), from 0 to 1, -1 where unknown; and weights of the tags, (tags,).
Each returns its mean over the pictures, in nats: of the sum over tags, or of their mean.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from tagger import params

LossFunction = Callable[[Tensor, Tensor], Tensor]
Reduction = Literal["sum", "mean"]

_NEVER = -1e9  # a logit of what is left out: minus infinity would make slopes of NaN


def build_loss(params: params.LossParams, counts: Tensor) -> LossFunction:
    """Return the loss that a recipe asks for; counts: training pictures with each tag, (tags,)."""
    weights = log_count_weights(counts) if params.tag_weights == "log_count" else None
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
        "two_way": partial(two_way_loss, temperature=params.temperature),
    }
    loss = kinds[params.kind]
    if params.kind != "two_way":
        loss = partial(loss, weights=weights, reduction=params.reduction)
    if not params.smoothing or params.kind == "two_way":  # for which a half would be positive
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
    """Return the asymmetric loss; with both gammas the same and no clip it is the focal loss.

    Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, equation 7;
    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4.
    """
    logits, known = logits.float(), targets.clamp(min=0).float()
    # Never log(0), and never the infinite slope of a root at 0: both end in NaN.
    shifted = (logits.sigmoid() - clip).clamp(min=0, max=1 - 1e-7)
    log_negative = torch.log1p(-shifted) if clip > 0 else logsigmoid(-logits)
    positive = (-logits).sigmoid().clamp(min=1e-12) ** gamma_positive * logsigmoid(logits)
    negative = shifted**gamma_negative * log_negative
    return _reduce(-torch.lerp(negative, positive, known), targets, weights, reduction)


def two_way_loss(logits: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Return how far negatives are above positives, for each picture and for each tag, both means.

    A tag without a positive in the batch, and a picture without one, are left out. Targets above 0
    are positives.

    Kobayashi 2023, https://openaccess.thecvf.com/content/CVPR2023, "Two-Way Multi-Label Loss".
    """
    logits = logits.float()
    has = targets > 0
    positive = torch.where(has, -logits / temperature, _NEVER)
    negative = torch.where(targets == 0, logits, _NEVER)
    ways = []
    for axis in (0, 1):
        hardest = positive.logsumexp(axis) * temperature + negative.logsumexp(axis)
        present = has.any(axis)
        ways.append((softplus(hardest) * present).sum() / present.sum().clamp(min=1))
    return ways[0] + ways[1]


def _reduce(loss: Tensor, targets: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    counted = (targets >= 0).to(loss.dtype)
    if weights is not None:
        counted = counted * weights.to(loss.device)
    total = (loss * counted).sum(dim=1)
    if reduction == "mean":
        total = total / counted.sum(dim=1).clamp(min=1e-12)
    return total.mean()


def smooth(targets: Tensor, share: float) -> Tensor:
    """Return targets moved to a half by a share of the way; unknown ones stay unknown."""
    return torch.where(targets < 0, targets, torch.lerp(targets, targets.new_tensor(0.5), share))


def log_count_weights(counts: Tensor) -> Tensor:
    """Return weights, (tags,), of mean 1, in inverse proportion to the logarithm of the counts."""
    weights = 1 / torch.log(counts.float().clamp(min=1) + 1)
    return weights / weights.mean()
