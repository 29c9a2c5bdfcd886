"""Losses for many tags at once. Targets of -1 are unknown: they count for nothing."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy, summed over tags and averaged over pictures, in nats.

    logits:  (batch, tags), before the sigmoid; computed in float32 whatever autocast says
    targets: (batch, tags), 0 or 1, -1 where unknown
    """
    known = targets >= 0
    loss = binary_cross_entropy_with_logits(
        logits.float(), targets.clamp(min=0).float(), reduction="none"
    )
    return (loss * known).sum(dim=1).mean()


def asymmetric_loss(
    logits: Tensor, targets: Tensor, *, gamma_negative: float, gamma_positive: float, clip: float
) -> Tensor:
    """Return the asymmetric loss, summed over tags and averaged over pictures, in nats.

    logits:  (batch, tags), before the sigmoid; computed in float32 whatever autocast says
    targets: (batch, tags), 0 or 1, -1 where unknown

    Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, equation 7.
    """
    logits = logits.float()
    # Never log(0), and never the infinite slope of a root at 0: both end in NaN.
    shifted = (logits.sigmoid() - clip).clamp(min=0, max=1 - 1e-7)
    log_negative = torch.log1p(-shifted) if clip > 0 else logsigmoid(-logits)
    positive = (-logits).sigmoid().clamp(min=1e-12) ** gamma_positive * logsigmoid(logits)
    negative = shifted**gamma_negative * log_negative
    loss = -torch.where(targets > 0, positive, negative)
    return (loss * (targets >= 0)).sum(dim=1).mean()
