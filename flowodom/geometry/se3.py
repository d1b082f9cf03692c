"""Rigid motions: exponential, logarithm, adjoint and Jacobians of SO(3) and SE(3), batched.

Tangent vectors of SE(3) are ``xi = (rho, phi)``: translation first, then rotation, as in a ROS covariance.
``T_a_b`` maps a point in frame b to frame a. Perturbations are on the right, ``T exp(xi)``, unless said otherwise.
All series switch at small angles so that values and first derivatives are exact there; ``so3_log`` is exact near pi.

What works on whole motions takes NumPy arrays as well as tensors, see ``arrays``: motions come one or a few at a time.

Source: Barfoot, "State Estimation for Robotics" (2017), chapter 7; Sola et al., "A micro Lie theory for state
estimation in robotics" (2018), whose formulas (and right-Jacobian conventions) are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowodom.geometry.arrays import Array, in_numpy, library, like, zeros_like

_SMALL_SQUARED = 1e-6
"""Squared angle below which Taylor series replace the closed forms (truncation error under 1e-19)."""


GENERATORS = torch.zeros(6, 4, 4, dtype=torch.float64)
"""The derivatives of ``exp(xi)`` by the six parts of ``xi`` at zero."""
GENERATORS[(0, 1, 2), (0, 1, 2), (3, 3, 3)] = 1
GENERATORS[(3, 4, 5), (2, 0, 1), (1, 2, 0)] = 1
GENERATORS[(3, 4, 5), (1, 2, 0), (2, 0, 1)] = -1

_HAT = GENERATORS[3:, :3, :3].flatten(1)
_TWIST = GENERATORS.flatten(1)
_EYE, _IDENTITY = (torch.eye(n, dtype=torch.float64) for n in (3, 4))


def _quaternion_products() -> Tensor:
    """Returns (10, 16): four times the products of a quaternion's components, by the entries of a rotation and 1."""
    products = torch.zeros(10, 4, 4, dtype=torch.float64)
    for k, signs in enumerate(((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))):
        products[9, k, k] = 1
        products[(0, 4, 8), k, k] = torch.tensor(signs, dtype=torch.float64)
    for i, j, above, below, sign in (
        (0, 1, 7, 5, -1),
        (0, 2, 2, 6, -1),
        (0, 3, 3, 1, -1),
        (1, 2, 1, 3, 1),
        (1, 3, 2, 6, 1),
        (2, 3, 5, 7, 1),
    ):
        products[above, (i, j), (j, i)] = 1
        products[below, (i, j), (j, i)] = sign
    return products.flatten(1)


_QUATERNION = _quaternion_products()


def hat(phi: Array) -> Array:
    """Returns the (..., 3, 3) skew matrix of (..., 3) vectors: ``hat(a) @ b = a x b``."""
    return (phi @ like(_HAT, phi)).reshape(*phi.shape[:-1], 3, 3)


def vee(matrix: Tensor) -> Tensor:
    """Returns the (..., 3) vector of (..., 3, 3) skew matrices, the inverse of ``hat``."""
    return torch.stack((matrix[..., 2, 1], matrix[..., 0, 2], matrix[..., 1, 0]), dim=-1)


def _coefficients(phi: Array) -> tuple[Array, Array, Array]:
    """Returns sin(a)/a, (1 - cos(a))/a^2 and (a - sin(a))/a^3 of the angle a = |phi|, each (...)."""
    lib, s = library(phi), (phi * phi).sum(-1)
    small = s < _SMALL_SQUARED
    safe = lib.where(small, lib.ones_like(s), s)
    angle = lib.sqrt(safe)
    sine, half = lib.sin(angle), lib.sin(0.5 * angle)
    a = lib.where(small, 1 - s / 6 * (1 - s / 20 * (1 - s / 42)), sine / angle)
    b = lib.where(small, 0.5 - s / 24 * (1 - s / 30 * (1 - s / 56)), 2 * half * half / safe)
    c = lib.where(small, 1 / 6 - s / 120 * (1 - s / 42 * (1 - s / 72)), (angle - sine) / (safe * angle))
    return a, b, c


def so3_exp(phi: Tensor) -> Tensor:
    """Returns the (..., 3, 3) rotations of (..., 3) rotation vectors, radians (Rodrigues)."""
    a, b, _ = _coefficients(phi)
    k = hat(phi)
    eye = torch.eye(3, dtype=phi.dtype, device=phi.device)
    return eye + a[..., None, None] * k + b[..., None, None] * (k @ k)


@in_numpy
def so3_log(rotation: Array) -> Array:
    """Returns the (..., 3) rotation vectors, radians in [0, pi], of (..., 3, 3) rotations.

    Goes through the unit quaternion picked by its largest component (Shepperd), so that it is exact at pi as well.
    """
    lib = library(rotation)
    # Row k is the quaternion (w, x, y, z) times four times its component k; that component squared is on the diagonal.
    products = rotation.reshape(*rotation.shape[:-2], 9) @ like(_QUATERNION[:9], rotation)
    products = products + like(_QUATERNION[9], rotation)
    candidates, best = products.reshape(-1, 4, 4), products[..., ::5].argmax(-1)
    q = candidates[lib.arange(len(candidates)), best.reshape(-1)].reshape(*best.shape, 4)
    q = q / lib.sqrt((q * q).sum(-1))[..., None]
    q = lib.where(q[..., :1] < 0, -q, q)
    scalar, vector = q[..., 0], q[..., 1:]
    s = (vector * vector).sum(-1)
    small = s < _SMALL_SQUARED
    norm = lib.sqrt(lib.where(small, lib.ones_like(s), s))
    t = s / (scalar * scalar).clip(0.25)
    series = 2 / scalar.clip(0.5) * (1 - t / 3 * (1 - t * 3 / 5))
    factor = lib.where(small, series, 2 * lib.arctan2(norm, scalar) / norm)
    return factor[..., None] * vector


def so3_left_jacobian(phi: Tensor) -> Tensor:
    """Returns the (..., 3, 3) left Jacobian of SO(3) at (..., 3) rotation vectors."""
    _, b, c = _coefficients(phi)
    k = hat(phi)
    eye = torch.eye(3, dtype=phi.dtype, device=phi.device)
    return eye + b[..., None, None] * k + c[..., None, None] * (k @ k)


def so3_left_jacobian_inverse(phi: Array) -> Array:
    """Returns the (..., 3, 3) inverse of the left Jacobian of SO(3) at (..., 3) rotation vectors."""
    lib, s = library(phi), (phi * phi).sum(-1)
    small = s < _SMALL_SQUARED
    safe = lib.where(small, lib.ones_like(s), s)
    half = 0.5 * lib.sqrt(safe)
    d = lib.where(small, 1 / 12 + s / 720 * (1 + s / 42), (1 - half * lib.cos(half) / lib.sin(half)) / safe)
    k = hat(phi)
    return like(_EYE, phi) - 0.5 * k + d[..., None, None] * (k @ k)


@in_numpy
def matrix(rotation: Array, translation: Array) -> Array:
    """Returns the (..., 4, 4) motion with (..., 3, 3) rotation and (..., 3) translation."""
    motion = zeros_like(rotation, *rotation.shape[:-2], 4, 4)
    motion[..., :3, :3] = rotation
    motion[..., :3, 3] = translation
    motion[..., 3, 3] = 1
    return motion


def identity(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Returns the (4, 4) identity motion."""
    return torch.eye(4, dtype=dtype, device=device)


def wedge(xi: Array) -> Array:
    """Returns the (..., 4, 4) twists of (..., 6) tangents (rho, phi): ``exp`` is their matrix exponential."""
    return (xi @ like(_TWIST, xi)).reshape(*xi.shape[:-1], 4, 4)


@in_numpy
def exp(xi: Array) -> Array:
    """Returns the (..., 4, 4) motions of (..., 6) tangents (rho, phi): the matrix exponential of their twists."""
    # The fourth power of a twist is its square times minus that of the angle: its series ends in closed form.
    twist = wedge(xi)
    _, b, c = _coefficients(xi[..., 3:])
    square = twist @ twist
    return like(_IDENTITY, xi) + twist + b[..., None, None] * square + c[..., None, None] * (square @ twist)


@in_numpy
def log(motion: Array) -> Array:
    """Returns the (..., 6) tangents (rho, phi) of (..., 4, 4) motions."""
    phi = so3_log(motion[..., :3, :3])
    rho = (so3_left_jacobian_inverse(phi) @ motion[..., :3, 3:])[..., 0]
    return library(rho).concatenate((rho, phi), -1)


@in_numpy
def inverse(motion: Array) -> Array:
    """Returns the (..., 4, 4) inverse motions: ``T_b_a`` of ``T_a_b``."""
    rotation = motion[..., :3, :3].swapaxes(-1, -2)
    return matrix(rotation, -(rotation @ motion[..., :3, 3:])[..., 0])


def rescaled(twist: Tensor, factor: float) -> Tensor:
    """Returns a twist (6,) with its translation multiplied by ``factor``."""
    return torch.cat((factor * twist[:3], twist[3:]))


@in_numpy
def normalised(motion: Array) -> Array:
    """Returns (..., 4, 4) motions whose rotations are orthonormal again, to second order of how far they were not.

    Products of many rotations lose it by rounding; where inverses are taken by the transpose and fed back, it is lost
    exponentially.
    """
    rotation = motion[..., :3, :3]
    excess = rotation.swapaxes(-1, -2) @ rotation - like(_EYE, motion)
    return matrix(rotation - 0.5 * rotation @ excess, motion[..., :3, 3])


def act(motion: Array, points: Array) -> Array:
    """Applies (4, 4) or (..., 4, 4) motions to (..., 3) points; leading shapes broadcast."""
    return (motion[..., :3, :3] @ points[..., None])[..., 0] + motion[..., :3, 3]


def act_jacobian(motion: Tensor, points: Tensor) -> Tensor:
    """Returns the (..., 3, 6) derivative of ``act(motion @ exp(xi), points)`` by ``xi`` at zero."""
    rotation = motion[..., :3, :3]
    by_rotation = -rotation @ hat(points)
    return torch.cat((rotation.expand(by_rotation.shape), by_rotation), dim=-1)


@in_numpy
def adjoint(motion: Array) -> Array:
    """Returns the (..., 6, 6) adjoint: ``exp(adjoint(T) @ xi) = T @ exp(xi) @ inverse(T)``."""
    rotation, result = motion[..., :3, :3], zeros_like(motion, *motion.shape[:-2], 6, 6)
    result[..., :3, :3] = result[..., 3:, 3:] = rotation
    result[..., :3, 3:] = hat(motion[..., :3, 3]) @ rotation
    return result


def left_jacobian(xi: Tensor) -> Tensor:
    """Returns the (..., 6, 6) left Jacobian of SE(3) at (..., 6) tangents (Barfoot eq. 7.83, in (rho, phi) order)."""
    rho, phi = xi[..., :3], xi[..., 3:]
    j = so3_left_jacobian(phi)
    s = (phi * phi).sum(-1)
    # Wide switch: the last coefficient divides by the fifth power of the angle.
    small = s < 1e-2
    safe = torch.where(small, torch.ones_like(s), s)
    a = safe.sqrt()
    c1 = torch.where(small, 1 / 6 - s / 120 + s**2 / 5040 - s**3 / 362880, (a - torch.sin(a)) / (safe * a))
    c2 = torch.where(
        small, 1 / 24 - s / 720 + s**2 / 40320 - s**3 / 3628800, (safe / 2 + torch.cos(a) - 1) / (safe * safe)
    )
    c3 = torch.where(
        small,
        1 / 120 - s / 2520 + s**2 / 120960 - s**3 / 9979200,
        (2 * a - 3 * torch.sin(a) + a * torch.cos(a)) / (2 * safe * safe * a),
    )
    p, r = hat(phi), hat(rho)
    pr, rp = p @ r, r @ p
    prp = pr @ p
    q = (
        0.5 * r
        + c1[..., None, None] * (pr + rp + prp)
        + c2[..., None, None] * (p @ pr + rp @ p - 3 * prp)
        + c3[..., None, None] * (prp @ p + p @ prp)
    )
    top = torch.cat((j, q), dim=-1)
    bottom = torch.cat((torch.zeros_like(j), j), dim=-1)
    return torch.cat((top, bottom), dim=-2)


def left_jacobian_inverse(xi: Tensor) -> Tensor:
    """Returns the (..., 6, 6) inverse of ``left_jacobian``, block by block."""
    full = left_jacobian(xi)
    inverse_rotation = so3_left_jacobian_inverse(xi[..., 3:])
    corner = -inverse_rotation @ full[..., :3, 3:] @ inverse_rotation
    top = torch.cat((inverse_rotation, corner), dim=-1)
    bottom = torch.cat((torch.zeros_like(corner), inverse_rotation), dim=-1)
    return torch.cat((top, bottom), dim=-2)


def quaternion(rotation: Tensor) -> Tensor:
    """Returns the (..., 4) unit quaternions x, y, z, w (ROS order, w >= 0) of (..., 3, 3) rotations."""
    phi = so3_log(rotation)
    half = 0.5 * phi
    a, _, _ = _coefficients(half)
    scalar = torch.cos(half.norm(dim=-1, keepdim=True)).clamp_min(0)
    return torch.cat((a[..., None] * half, scalar), dim=-1)


def from_quaternion(q: Tensor) -> Tensor:
    """Returns the (..., 3, 3) rotations of (..., 4) quaternions x, y, z, w; they need not be normalised."""
    q = q / q.norm(dim=-1, keepdim=True)
    v, w = q[..., :3], q[..., 3]
    k = hat(v)
    eye = torch.eye(3, dtype=q.dtype, device=q.device)
    return eye + 2 * w[..., None, None] * k + 2 * (k @ k)
