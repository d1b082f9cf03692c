"""The recursive inverse-depth filter on planes whose flow is exact."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.filter import CELL, LEAST_RELATIVE, SYSTEMATIC, FilterDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.worlds import pinhole

CAMERA = pinhole(48, 36)
STEP = torch.tensor([0.05, 0.01, 0.02, 0.004, -0.006, 0.003], dtype=torch.float64)
FRAME = Frame(0, np.zeros((36, 48), np.uint8), CAMERA)
MIDDLES = CELL * (CAMERA.resized(48 // CELL, 36 // CELL).pixels(dtype=torch.float64) + 0.5) - 0.5
"""Where in the camera's image the pixels of the filter's fields lie."""
NORMAL = 0.674
"""Median of the absolute value of a normal deviate."""
CERTAIN = torch.zeros(6, 6, dtype=torch.float64)


class Plane:
    """A tilted plane seen by a camera that moves by ``step`` a frame: its inverse depth and flow in any frame."""

    normal = torch.tensor([0.25, -0.15, 1.0], dtype=torch.float64)
    level = 3.0

    def __init__(self, step=STEP):
        self.step = step

    def pose(self, k):
        return se3.exp(k * self.step)

    def rho(self, k, pixels=None):
        """n . (R ray / rho + t) = level."""
        pose = self.pose(k)
        rays = CAMERA.rays(CAMERA.pixels(dtype=torch.float64) if pixels is None else pixels)
        return (rays @ pose[:3, :3].T @ self.normal) / (self.level - self.normal @ pose[:3, 3])

    def flow(self, k, to):
        pixels = CAMERA.pixels(dtype=torch.float64)
        points = CAMERA.unproject(pixels, 1 / self.rho(k))
        return CAMERA.project(se3.act(se3.inverse(self.pose(to)) @ self.pose(k), points)) - pixels

    def field(self, k, noise=0.0, seed=0):
        """Flow from frame ``k - 1`` to ``k``, with noise of the stated kind that the pixels of a cell share."""
        generator = torch.Generator().manual_seed(1000 * seed + k)
        forward, backward = self.flow(k - 1, k), self.flow(k, k - 1)
        errors = noise * torch.randn((2, *MIDDLES.shape), generator=generator, dtype=torch.float64)
        errors = errors.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
        forward, backward = forward + errors[0], backward + errors[1]
        variance = torch.full(forward.shape[:2], FLOW_NOISE**2)
        return DenseFlow(forward.float(), backward.float(), variance, variance.clone())

    def parallax(self, k):
        """Part of the backward flow of frame ``k`` that depth makes: (36, 48, 2) pixels."""
        pixels = CAMERA.pixels(dtype=torch.float64)
        turn = se3.inverse(self.pose(k - 1)) @ self.pose(k)
        turn[:3, 3] = 0
        return self.flow(k, k - 1) + pixels - CAMERA.project(se3.act(turn, CAMERA.rays(pixels)))

    def motion(self, k):
        return se3.inverse(self.pose(k)) @ self.pose(k - 1)


PLANE = Plane()


def pair(k, flow=None, *, motion=None, covariance=CERTAIN, plane=PLANE):
    """Frames ``k - 1`` and ``k``."""
    flow = plane.field(k) if flow is None else flow
    return FramePair(FRAME, flow, CAMERA, plane.motion(k) if motion is None else motion, covariance)


def run(count, noise, seed=0, *, source=None, plane=PLANE, claimed=1.0):
    """Returns the fields of frames 1, 2, ... from flow that claims so many times its true deviation."""
    source, fields = source or FilterDepth(), [None]
    for k in range(1, count + 1):
        flow = plane.field(k, noise, seed)
        flow = replace(flow, backward_variance=claimed**2 * flow.backward_variance)
        fields.append(source.fuse(None, fields[-1], pair(k, flow, plane=plane)))
    return fields[1:]


def moved(flow, where, by):
    """Returns flow of which some pixels were elsewhere before, by (u, v)."""
    backward = flow.backward + torch.where(where[..., None], torch.tensor(by), 0.0)
    return replace(flow, backward=backward)


def test_it_knows_nothing_without_motion():
    assert not FilterDepth.metric
    assert FilterDepth().observe(None) is None


def test_exact_flow_gives_exact_depth_at_once():
    (field,) = run(1, 0.0)
    known = field.mean.isfinite()
    assert known.double().mean() > 0.8
    torch.testing.assert_close(field.mean[known].double(), PLANE.rho(1, MIDDLES)[known], atol=1e-4, rtol=1e-4)


def test_it_converges_and_knows_how_well():
    fields = run(10, FLOW_NOISE)
    medians = [float(f.variance[f.variance.isfinite()].median()) for f in fields]
    assert medians[5] < 0.35 * medians[0]
    assert all(b < 1.15 * a for a, b in pairwise(medians))
    errors = []
    for k, field in enumerate(fields, start=1):
        known = field.mean.isfinite()
        miss = (field.mean - PLANE.rho(k, MIDDLES))[known].abs()
        assert (miss <= 3 * field.variance[known].sqrt()).double().mean() > 0.95
        errors.append(float(miss.median()))
    assert errors[-1] < 0.5 * errors[0]
    assert fields[-1].mean.isfinite().double().mean() > 0.7


def test_it_never_claims_more_than_it_can_know():
    field = run(10, 0.0)[-1]
    known = field.mean.isfinite()
    assert (field.variance[known].sqrt() >= 0.999 * LEAST_RELATIVE * field.mean[known]).all()


@pytest.mark.parametrize("claimed", [0.5, 2.0])
def test_it_goes_by_its_innovations_and_not_by_what_flow_says(claimed):
    honest, other = FilterDepth(), FilterDepth()
    expected = run(10, FLOW_NOISE, source=honest)[-1]
    field = run(10, FLOW_NOISE, source=other, claimed=claimed)[-1]
    assert 0.7 < float(honest.noise) < 1.5
    assert float(claimed**2 * other.noise / honest.noise) == pytest.approx(1, rel=0.2)
    ratio = (field.variance / expected.variance)[field.mean.isfinite() & expected.mean.isfinite()]
    assert 0.7 < float(ratio.median()) < 1.4


def test_errors_that_neighbouring_frames_share_are_reckoned_with():
    # Alike by 0.6 from frame to frame, which is four times as bad as new ones of the same size.
    source, field, generator = FilterDepth(), None, torch.Generator().manual_seed(0)
    alike, size = 0.6, 0.5 * SYSTEMATIC
    error = size * torch.randn(*MIDDLES.shape[:2], 1, generator=generator)
    for k in range(1, 26):
        flow = PLANE.field(k, 0.01)
        along = torch.nn.functional.normalize(PLANE.parallax(k), dim=-1).float()
        here = along * error.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        field = source.fuse(None, field, pair(k, replace(flow, backward=flow.backward + here)))
        error = alike * error + size * (1 - alike**2) ** 0.5 * torch.randn(error.shape, generator=generator)
    known = field.mean.isfinite()
    miss = (field.mean - PLANE.rho(25, MIDDLES))[known].abs()
    assert (miss <= 3 * field.variance[known].sqrt()).double().mean() > 0.99
    assert 0.3 < float((miss / field.variance[known].sqrt()).median()) / NORMAL < 1.2


def test_what_is_not_known_yet_is_not_taken_for_near():
    plane = Plane(0.3 * STEP)
    field = run(25, FLOW_NOISE, plane=plane)[-1]
    truth = plane.rho(25, MIDDLES)
    for found, most in ((field, 0.1), (field.whole, 0.04)):
        there = found.mean.isfinite()
        assert there.double().mean() > 0.5
        assert abs(float((found.mean / truth)[there].median()) - 1) < most


def test_what_moves_on_its_own_becomes_unsure():
    source, field = FilterDepth(), None
    region = torch.zeros(36, 48, dtype=torch.bool)
    region[12:24, 18:30] = True
    across = PLANE.parallax(1)[18, 24].float()
    across = 0.5 * torch.stack((-across[1], across[0])) / across.norm()
    for k in range(1, 13):
        flow = PLANE.field(k, 0.3 * FLOW_NOISE)
        field = source.fuse(None, field, pair(k, moved(flow, region, across.tolist()) if k > 8 else flow))
    cells = region[::CELL, ::CELL]
    inner = torch.zeros_like(cells)
    inner[8:10, 11:13] = True
    assert field.mean[inner].isnan().all()
    assert field.mean[~cells].isfinite().double().mean() > 0.7


def test_what_would_lie_behind_the_camera_is_forgotten():
    fields = run(6, 0.0)
    region = torch.zeros(36, 48, dtype=torch.bool)
    region[12:24, 18:30] = True
    back = -3 * PLANE.parallax(7)[18, 24].float()
    source, flow = FilterDepth(), PLANE.field(7)
    field = source.fuse(None, None, pair(7, moved(flow, region, back.tolist())))
    assert field.whole.mean[8:10, 11:13].isnan().all()
    assert fields[-1].whole.mean[8:10, 11:13].isfinite().all()


def test_beside_an_edge_of_flow_it_is_less_sure():
    region = torch.zeros(36, 48, dtype=torch.bool)
    region[:, 24:] = True
    parallax = PLANE.parallax(1)[18, 24].float()
    field = FilterDepth().fuse(None, None, pair(1, moved(PLANE.field(1), region, parallax.tolist())))
    middle = field.whole.variance[9]
    assert middle[10:14].min() > 1.5 * torch.cat((middle[3:8], middle[16:21])).max()


def test_lengths_of_a_belief_may_change():
    field = run(3, FLOW_NOISE)[-1]
    twice = field.scaled(2.0)
    torch.testing.assert_close(2 * twice.mean, field.mean, equal_nan=True)
    torch.testing.assert_close(2 * twice.whole.mean, field.whole.mean, equal_nan=True)
    torch.testing.assert_close(4 * twice.whole.variance, field.whole.variance)


def test_what_was_hidden_starts_anew():
    fields = run(6, 0.0)
    flow = PLANE.field(7)
    hidden = torch.zeros(36, 48, dtype=torch.bool)
    hidden[10:20, 20:30] = True
    backward_variance = torch.where(hidden, FLOW_NOISE**2 + 0.5 * 4.0**2, flow.backward_variance)
    flow = DenseFlow(flow.forward, flow.backward, flow.forward_variance, backward_variance)
    source = FilterDepth()
    field = source.fuse(None, fields[-1], pair(7, flow))
    assert field.mean[hidden[::CELL, ::CELL]].isnan().all()
    assert field.variance[hidden[::CELL, ::CELL]].isinf().all()
    later = source.fuse(None, field, pair(8))
    middle, beside = later.variance[7:9, 11:14], later.variance[7:9, 4:6]
    assert middle.isfinite().all()
    assert middle.min() > 1.5 * beside.max()


def test_a_wrong_past_is_given_up_after_a_while():
    wrong = InverseDepth(CAMERA, 3.0 * PLANE.rho(0).float(), torch.full((36, 48), 0.02**2))
    source, field = FilterDepth(), wrong
    for k in range(1, 13):
        field = source.fuse(None, field, pair(k))
    known = field.mean.isfinite()
    relative = ((field.mean / PLANE.rho(12, MIDDLES)).float()[known] - 1).abs()
    assert relative.median() < 0.05


def test_an_uncertain_baseline_makes_depth_uncertain():
    doubt = torch.diag(torch.tensor([0.01] * 3 + [0.0] * 3, dtype=torch.float64)) ** 2
    certain = FilterDepth().fuse(None, None, pair(1))
    doubtful = FilterDepth().fuse(None, None, pair(1, covariance=doubt))
    both = certain.mean.isfinite() & doubtful.mean.isfinite()
    assert both.any()
    assert (doubtful.variance[both] > certain.variance[both]).all()


@pytest.mark.parametrize("previous", [None, InverseDepth.unknown(CAMERA)])
def test_a_camera_that_only_turns_learns_nothing(previous):
    turn = se3.exp(torch.tensor([0, 0, 0, 0.01, 0.02, 0.0], dtype=torch.float64))
    pixels = CAMERA.pixels(dtype=torch.float64)
    forward = (CAMERA.project(se3.act(turn, CAMERA.rays(pixels))) - pixels).float()
    backward = (CAMERA.project(se3.act(se3.inverse(turn), CAMERA.rays(pixels))) - pixels).float()
    variance = torch.full((36, 48), FLOW_NOISE**2)
    flow = DenseFlow(forward, backward, variance, variance)
    turned = pair(1, flow, motion=turn, covariance=1e-8 * torch.eye(6).double())
    field = FilterDepth().fuse(None, previous, turned)
    assert field.mean.isnan().all()
    assert field.variance.isinf().all()


def test_turning_carries_what_was_known():
    turn = se3.exp(torch.tensor([0, 0, 0, 0.0, 0.03, 0.0], dtype=torch.float64))
    known = InverseDepth(CAMERA, PLANE.rho(0).float(), torch.full((36, 48), 0.01**2))
    pixels = CAMERA.pixels(dtype=torch.float64)
    forward = (CAMERA.project(se3.act(turn, CAMERA.rays(pixels))) - pixels).float()
    backward = (CAMERA.project(se3.act(se3.inverse(turn), CAMERA.rays(pixels))) - pixels).float()
    variance = torch.full((36, 48), FLOW_NOISE**2)
    flow = DenseFlow(forward, backward, variance, variance)
    field = FilterDepth().fuse(None, known, pair(1, flow, motion=turn))
    seen = field.mean.isfinite()
    assert seen.double().mean() > 0.85
    # The point at rho seen along ray r before is at r' now: the same point, by the turned frame's depth.
    back_rays = se3.act(se3.inverse(turn), CAMERA.rays(MIDDLES))
    expected = PLANE.rho(0, CAMERA.project(back_rays)) / (se3.act(turn, back_rays / back_rays[..., 2:]))[..., 2]
    torch.testing.assert_close(field.mean[seen].double(), expected[seen], atol=1e-4, rtol=1e-3)
