"""Uncertainty of learned flow: a mixture of two Laplace distributions, one narrow and one broad.

The narrow one is for what was matched, the broad one for what could not be; a network gives their scales and the share
of the broad one for each pixel.

Source: Wang, Lipson and Deng, "SEA-RAFT" (ECCV 2024), section 3.2; here the narrow scale is learned as well, so that
the variance is honest below a pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

CHANNELS = 3
"""Numbers a pixel: logit of the broad share, narrow scale, broad scale; the scales through ``SCALES``."""

SCALES = ((0.03, 1.5), (0.5, 60.0))
"""Least and greatest scale of the narrow and of the broad distribution, pixels."""


def _log_scales(mixture: Tensor) -> Tensor:
    """Returns the (B, 2, H, W) logarithms of the scales."""
    logs = torch.tensor(SCALES, dtype=mixture.dtype, device=mixture.device).log()
    low, high = logs.T[:, :, None, None]
    return low + (high - low) * mixture[:, 1:].sigmoid()


def _log_shares(mixture: Tensor) -> Tensor:
    """Returns the (B, 2, H, W) logarithms of the shares."""
    return torch.stack((functional.logsigmoid(-mixture[:, 0]), functional.logsigmoid(mixture[:, 0])), dim=1)


def variance(mixture: Tensor) -> Tensor:
    """Returns the (B, H, W) variance per component, pixels squared, of a (B, 3, H, W) mixture."""
    return 2 * (_log_shares(mixture) + 2 * _log_scales(mixture)).exp().sum(1)


def negative_log_likelihood(error: Tensor, mixture: Tensor) -> Tensor:
    """Returns how unlikely errors are.

    Args:
        error: (B, 2, H, W) found minus true flow, pixels.
        mixture: (B, 3, H, W) numbers of the mixture.

    Returns:
        (B, H, W), nats.
    """
    scales = _log_scales(mixture)
    distance = error.abs().sum(1, keepdim=True)
    terms = _log_shares(mixture) - 2 * (math.log(2) + scales) - distance * (-scales).exp()
    return -terms.logsumexp(1)
