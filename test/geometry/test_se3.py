"""Rigid motions against matrix exponentials, numbers and derivatives, from zero to a half turn."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian

from flowodom.geometry import se3

ANGLES = [0.0, 1e-12, 1e-6, 9.9e-4, 1.01e-3, 0.0999, 0.1001, 0.5, 2.0, math.pi - 1e-3, math.pi - 1e-7, math.pi]
"""Zero, either side of every switch between series and closed form, generic, near and at a half turn."""

AXES = [(1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (0.48, -0.6, 0.64)]


def vectors(angle):
    """Returns (4, 3) rotation vectors of an angle."""
    return angle * torch.tensor(AXES, dtype=torch.float64)


def tangents(angle):
    """Returns (4, 6) tangents whose rotation has an angle."""
    rho = torch.tensor([(0.3, -1.2, 0.7), (2.0, 0.1, -0.4), (0.0, 0.0, 0.0), (-0.5, 0.6, 1.1)], dtype=torch.float64)
    return torch.cat((rho, vectors(angle)), dim=-1)


def twist_matrix(xi):
    """Returns the (..., 4, 4) matrix whose matrix exponential is the motion."""
    top = torch.cat((se3.hat(xi[..., 3:]), xi[..., :3, None]), dim=-1)
    return torch.cat((top, torch.zeros_like(top[..., :1, :])), dim=-2)


def random_motions(*shape):
    xi = torch.randn(*shape, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return se3.exp(xi)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_hat_is_the_cross_product():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close((se3.hat(a) @ b[..., None])[..., 0], torch.linalg.cross(a, b))
    close(se3.vee(se3.hat(a)), a)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_is_the_matrix_exponential(angle):
    close(se3.so3_exp(vectors(angle)), torch.linalg.matrix_exp(se3.hat(vectors(angle))), 1e-14)
    close(se3.exp(tangents(angle)), torch.linalg.matrix_exp(twist_matrix(tangents(angle))), 1e-13)


def test_exp_holds_beyond_a_half_turn():
    close(se3.exp(tangents(5.0)), torch.linalg.matrix_exp(twist_matrix(tangents(5.0))), 1e-13)


@pytest.mark.parametrize("angle", ANGLES[:-1])
def test_log_undoes_exp(angle):
    close(se3.so3_log(se3.so3_exp(vectors(angle))), vectors(angle), 1e-9 if angle > 3 else 1e-14)
    close(se3.log(se3.exp(tangents(angle))), tangents(angle), 1e-8 if angle > 3 else 1e-13)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_undoes_log(angle):
    motion = se3.exp(tangents(angle))
    close(se3.exp(se3.log(motion)), motion, 1e-13)


def test_log_at_a_half_turn_has_the_right_axis():
    found = se3.so3_log(se3.so3_exp(vectors(math.pi)))
    close(found.norm(dim=-1), torch.full((4,), math.pi, dtype=torch.float64))
    close(torch.linalg.cross(found, vectors(1.0)), torch.zeros(4, 3, dtype=torch.float64), 1e-14)


def test_log_never_exceeds_a_half_turn():
    angle = se3.so3_log(random_motions(200)[:, :3, :3]).norm(dim=-1)
    assert (angle <= math.pi + 1e-12).all()


@pytest.mark.parametrize("angle", ANGLES)
def test_float32_is_finite_and_close(angle):
    xi = tangents(angle).float()
    motion = se3.exp(xi)
    close(motion, torch.linalg.matrix_exp(twist_matrix(tangents(angle))).float(), 2e-6)
    close(se3.exp(se3.log(motion)), motion, 5e-6)


def test_inverse():
    motion = random_motions(3, 2)
    close(motion @ se3.inverse(motion), torch.eye(4, dtype=torch.float64).expand(3, 2, 4, 4))
    close(se3.inverse(motion), torch.linalg.inv(motion))


def test_identity():
    close(se3.identity(), torch.eye(4, dtype=torch.float64))
    close(se3.log(se3.identity()), torch.zeros(6, dtype=torch.float64))


def test_act_broadcasts_over_leading_shapes():
    points = torch.randn(7, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one, many = random_motions(), random_motions(5)
    ones = torch.ones(7, 5, 1, dtype=torch.float64)
    homogeneous = torch.cat((points, ones), dim=-1)
    close(se3.act(one, points), (homogeneous @ one.T)[..., :3])
    close(se3.act(many, points), torch.einsum("kij,nkj->nki", many, homogeneous)[..., :3])


def test_act_jacobian_is_that_of_a_right_perturbation():
    points = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    motion = random_motions()
    zero = torch.zeros(6, dtype=torch.float64)
    numeric = jacobian(lambda xi: se3.act(motion @ se3.exp(xi), points), zero)
    close(se3.act_jacobian(motion, points), numeric)


def test_adjoint_moves_a_perturbation_to_the_other_side():
    motion, xi = random_motions(4), 0.7 * tangents(0.5)
    moved = (se3.adjoint(motion) @ xi[..., None])[..., 0]
    close(se3.exp(moved), motion @ se3.exp(xi) @ se3.inverse(motion))


def test_adjoint_is_a_homomorphism():
    a, b = random_motions(2)
    close(se3.adjoint(a @ b), se3.adjoint(a) @ se3.adjoint(b))
    close(se3.adjoint(se3.inverse(a)), torch.linalg.inv(se3.adjoint(a)))


@pytest.mark.parametrize("angle", [a for a in ANGLES if a < 3.1])
def test_left_jacobians_are_derivatives_of_exp(angle):
    for phi in vectors(angle):
        back = se3.so3_exp(phi).T
        numeric = jacobian(lambda x, b=back: se3.so3_log(se3.so3_exp(x) @ b), phi)
        close(se3.so3_left_jacobian(phi), numeric, 1e-10)
    for xi in tangents(angle):
        back = se3.inverse(se3.exp(xi))
        numeric = jacobian(lambda x, b=back: se3.log(se3.exp(x) @ b), xi)
        close(se3.left_jacobian(xi), numeric, 1e-9)


@pytest.mark.parametrize("angle", ANGLES)
def test_left_jacobian_by_integration(angle):
    """The left Jacobian is the mean adjoint along the way: integral of adjoint(exp(s xi)) over s from 0 to 1."""
    xi = tangents(angle)
    nodes = torch.tensor([-0.9061798459386640, -0.5384693101056831, 0.0, 0.5384693101056831, 0.9061798459386640])
    weights = torch.tensor([0.2369268850561891, 0.4786286704993665, 128 / 225, 0.4786286704993665, 0.2369268850561891])
    parts = 16
    total = torch.zeros(4, 6, 6, dtype=torch.float64)
    for part in range(parts):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            total += 0.5 * weight / parts * se3.adjoint(se3.exp((part + 0.5 + 0.5 * node) / parts * xi))
    close(se3.left_jacobian(xi), total, 2e-7)


@pytest.mark.parametrize("angle", ANGLES)
def test_jacobian_inverses(angle):
    eye = torch.eye(6, dtype=torch.float64).expand(4, 6, 6)
    phi, xi = vectors(angle), tangents(angle)
    close(se3.so3_left_jacobian(phi) @ se3.so3_left_jacobian_inverse(phi), eye[:, :3, :3])
    close(se3.left_jacobian(xi) @ se3.left_jacobian_inverse(xi), eye, 1e-11)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 9.9e-4, 1.01e-3, 0.3, 2.5, math.pi - 1e-2])
def test_derivatives(angle):
    xi = tangents(angle).requires_grad_()
    motion = se3.exp(xi.detach()).requires_grad_()
    assert gradcheck(se3.exp, (xi,), atol=1e-6)
    # The matrix is perturbed entry by entry here, off the group, as autograd sees it.
    assert gradcheck(se3.log, (motion,), atol=1e-5, rtol=1e-3)
    assert gradcheck(se3.left_jacobian, (xi,), atol=1e-6)


def test_derivative_of_log_at_a_half_turn_is_finite():
    rotation = se3.so3_exp(vectors(math.pi)).requires_grad_()
    se3.so3_log(rotation).sum().backward()
    assert rotation.grad.isfinite().all()


@pytest.mark.parametrize("angle", ANGLES)
def test_quaternions(angle):
    rotation = se3.so3_exp(vectors(angle))
    q = se3.quaternion(rotation)
    close(q.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert (q[..., 3] >= 0).all()
    close(se3.from_quaternion(q), rotation)
    close(se3.from_quaternion(-3 * q), rotation)


def test_quaternion_order_is_that_of_ros():
    quarter = se3.so3_exp(torch.tensor((0.0, 0.0, math.pi / 2), dtype=torch.float64))
    half = math.sqrt(0.5)
    close(se3.quaternion(quarter), torch.tensor((0.0, 0.0, half, half), dtype=torch.float64))
    close(
        se3.act(se3.matrix(quarter, torch.zeros(3, dtype=torch.float64)), torch.eye(3, dtype=torch.float64))[0],
        torch.tensor((0.0, 1.0, 0.0), dtype=torch.float64),
    )


def test_quaternion_agrees_with_scipy():
    transform = pytest.importorskip("scipy.spatial.transform")
    rotation = random_motions(50)[:, :3, :3]
    other = torch.from_numpy(transform.Rotation.from_matrix(rotation.numpy()).as_quat(canonical=True))
    close(se3.quaternion(rotation), other)
    vector = transform.Rotation.from_matrix(rotation.numpy()).as_rotvec()
    close(se3.so3_log(rotation), torch.from_numpy(vector), 1e-11)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_leading_shapes(shape):
    xi = torch.zeros(*shape, 6, dtype=torch.float64)
    motion = se3.exp(xi)
    assert motion.shape == (*shape, 4, 4)
    assert se3.log(motion).shape == (*shape, 6)
    assert se3.inverse(motion).shape == (*shape, 4, 4)
    assert se3.adjoint(motion).shape == (*shape, 6, 6)
    assert se3.left_jacobian(xi).shape == (*shape, 6, 6)
    assert se3.left_jacobian_inverse(xi).shape == (*shape, 6, 6)
    assert se3.quaternion(motion[..., :3, :3]).shape == (*shape, 4)


def test_dtype_is_kept():
    xi = torch.zeros(6)
    assert se3.exp(xi).dtype == torch.float32
    assert se3.log(se3.exp(xi)).dtype == torch.float32
    assert se3.adjoint(se3.exp(xi)).dtype == torch.float32


def test_normalised_makes_rotations_orthonormal_again():
    motion = se3.exp(torch.tensor([[1.0, 2, 3, 0.4, -0.5, 0.6], [0, 0, 0, 1e-3, 0, 0]], dtype=torch.float64))
    bent = motion.clone()
    bent[..., :3, :3] *= 1 + 1e-6
    found = se3.normalised(bent)
    torch.testing.assert_close(found, motion, atol=1e-11, rtol=0)


@pytest.mark.parametrize("angle", ANGLES)
def test_numpy_and_differentiated_tensors_give_what_tensors_do(angle):
    xi, motion = tangents(angle), se3.exp(tangents(angle))
    for function, given in (
        (se3.exp, xi),
        (se3.log, motion),
        (se3.inverse, motion),
        (se3.adjoint, motion),
        (se3.normalised, motion),
    ):
        expected = function(given)
        assert isinstance(function(given.numpy()), np.ndarray)
        close(torch.from_numpy(function(given.numpy())), expected)
        close(function(given.clone().requires_grad_()).detach(), expected)
