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


def known(flow: Tensor) -> Tensor:
    """Returns the (B, H, W) places where (B, 2, H, W) flow is known and not absurd."""
    return flow.isfinite().all(1) & (flow.nan_to_num().norm(dim=1) < LONGEST)


def mean(values: Tensor, where: Tensor) -> Tensor:
    """Returns the mean over the batch of each sample's mean of (B, H, W) values where (B, H, W) says so."""
    weight = where.to(values.dtype)
    total = (values.where(where, 0) * weight).sum((1, 2))
    return (total / weight.sum((1, 2)).clamp_min(1)).mean()


def sequence_loss(predictions: Sequence[Prediction], truth: Tensor, *, decay: float = 0.8) -> Tensor:
    """Returns the loss of all updates' flow, the later the heavier.

    Args:
        predictions: After each update.
        truth: (B, 2, H, W) float32 pixels, NaN where unknown.
        decay: Weight of an update relative to the next.

    Returns:
        A scalar: nats where there is a mixture, pixels otherwise.
    """
    where, truth = known(truth), truth.nan_to_num()
    total = truth.new_zeros(())
    for k, prediction in enumerate(reversed(predictions)):
        error = prediction.flow - truth
        if prediction.mixture is None:
            values = error.abs().sum(1)
        else:
            values = negative_log_likelihood(error, prediction.mixture) + 0.1 * error.abs().sum(1)
        total = total + decay**k * mean(values, where)
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
