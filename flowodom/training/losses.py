"""Losses of flow.

Source: the weighted sequence of Teed and Deng, "RAFT" (ECCV 2020), section 3.4; the likelihood in place of the plain
distance after Wang, Lipson and Deng, "SEA-RAFT" (ECCV 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowodom.flow.raft import Prediction
from flowodom.flow.uncertainty import negative_log_likelihood

LONGEST = 400.0
"""Flow longer than this, pixels, is not learned from."""

HIDDEN = 0.2
"""Weight of what the other image does not show."""

LIKELIHOOD = 0.1
"""Weight of a nat of likelihood against a pixel of distance."""


def known(flow: Tensor) -> Tensor:
    """Returns the (B, H, W) places where (B, 2, H, W) flow is known and not absurd."""
    return flow.isfinite().all(1) & (flow.nan_to_num().norm(dim=1) < LONGEST)


def mean(values: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean over the batch of each sample's mean of (B, H, W) values with (B, H, W) weights, 0 or more."""
    total = (values.where(weight > 0, 0) * weight).sum((1, 2))
    return (total / weight.sum((1, 2)).clamp_min(1)).mean()


def sequence_loss(predictions: Sequence[Prediction], truth: Tensor, hidden: Tensor, *, decay: float = 0.8) -> Tensor:
    """Returns the loss of all updates' flow, the later the heavier.

    The flow learns from its distance alone and the uncertainty from the likelihood of that distance: one likelihood for
    both would have the flow learn mostly where it is almost right already.

    Args:
        predictions: After each update.
        truth: (B, 2, H, W) float32 pixels, NaN where unknown.
        hidden: (B, H, W) bool, whether the other image does not show the point; it counts ``HIDDEN``.
        decay: Weight of an update relative to the next.

    Returns:
        A scalar: pixels, plus ``LIKELIHOOD`` times nats where there is a mixture.
    """
    weight = known(truth) * torch.where(hidden, HIDDEN, 1.0)
    truth = truth.nan_to_num()
    total = truth.new_zeros(())
    for k, prediction in enumerate(reversed(predictions)):
        error = prediction.flow - truth
        values = error.abs().sum(1)
        if prediction.mixture is not None:
            values = values + LIKELIHOOD * negative_log_likelihood(error.detach(), prediction.mixture)
        total = total + decay**k * mean(values, weight)
    return total


@torch.no_grad()
def flow_figures(flow: Tensor, truth: Tensor, hidden: Tensor) -> dict[str, float]:
    """Returns end-point errors.

    Args:
        flow: (B, 2, H, W) found, pixels.
        truth: (B, 2, H, W) pixels, NaN where unknown.
        hidden: (B, H, W) bool, whether the other image does not show the point.
    """
    where = known(truth)
    error = (flow - truth.nan_to_num()).norm(dim=1)
    seen = error[where & ~hidden]
    return {
        "epe": float(error[where].mean()),
        "epe_seen": float(seen.mean()),
        "over_1px": float((seen > 1).float().mean()),
    }
