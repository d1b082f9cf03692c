"""The closed-form weighted SE(3) fit of scene flow, batched and differentiable.

Source: Horn, "Closed-form solution of absolute orientation" (1987); Umeyama (1991) for the reflection; FlowCam
(Smith et al., 2023), section 3.2, for the fit of scene flow that it is here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowodom.errors import ShapeError
from flowodom.geometry import se3


def procrustes(points: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Fits the motion that carries points to targets: ``argmin_T sum_i w_i |T p_i - q_i|^2``.

    Args:
        points: (..., N, 3) points P, N >= 3.
        targets: (..., N, 3) where they are now, P + F.
        weight: (..., N) weights >= 0; three points with weight, not on a line, are needed for a unique answer.

    Returns:
        (..., 4, 4) motions ``T_target_point``, in the dtype of the points.

    Raises:
        ShapeError: The shapes do not agree or there are fewer than three points.
    """
    if points.shape != targets.shape or points.shape[-1] != 3 or weight.shape != points.shape[:-1]:
        raise ShapeError(
            "procrustes needs points (..., N, 3), targets (..., N, 3) and weight (..., N), got "
            f"{tuple(points.shape)}, {tuple(targets.shape)} and {tuple(weight.shape)}"
        )
    if points.shape[-2] < 3:
        raise ShapeError(f"procrustes needs at least 3 points, got {points.shape[-2]}")
    w = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    centre_p = (w[..., None] * points).sum(-2)
    centre_q = (w[..., None] * targets).sum(-2)
    p = points - centre_p[..., None, :]
    q = targets - centre_q[..., None, :]
    u, _, vh = torch.linalg.svd((w[..., None] * q).transpose(-1, -2) @ p)
    sign = torch.linalg.det(u @ vh)
    flip = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), dim=-1)
    rotation = (u * flip[..., None, :]) @ vh
    return se3.matrix(rotation, centre_q - (rotation @ centre_p[..., None])[..., 0])
