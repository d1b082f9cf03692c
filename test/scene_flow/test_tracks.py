import pytest
import torch

from flowodom.geometry import PinholeCamera, se3
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.tracks import Tracks, apd3d

CAMERA = PinholeCamera(50.0, 50.0, 19.5, 14.5, 40, 30)
WHERE = torch.eye(4, dtype=torch.float64)


def fields(velocity, *, sigma=0.001, depth=2.0):
    """A wall 2 m away that moves as a whole, with the given deviation of its scene flow, for a camera that rests."""
    points = CAMERA.unproject(CAMERA.pixels(), torch.full((30, 40), depth))
    flow = torch.zeros(30, 40, 3) + torch.tensor(velocity) / 30
    sure = torch.full((30, 40), sigma**-2)
    return PropertySet(CAMERA, points, flow, torch.ones(30, 40), sure, flow[..., :2], flow)


def test_a_moving_point_is_followed_from_its_first_frame_on():
    tracks = Tracks()
    tracks.add(torch.tensor([[0.0, 0.0, 2.0]]))
    for _ in range(10):
        tracks.advance(fields((0.6, 0.0, 0.0)), WHERE, WHERE, 1 / 30)
    assert tracks.points[0].tolist() == pytest.approx([0.2, 0.0, 2.0], abs=1e-6)


def test_noise_and_single_wrong_flows_do_not_move_what_stands():
    tracks = Tracks()
    tracks.add(torch.tensor([[0.0, 0.0, 2.0]]))
    for k in range(10):
        wrong = k == 4
        tracks.advance(fields((9.0 if wrong else 0.3, 0.0, 0.0), sigma=0.01), WHERE, WHERE, 1 / 30)
    assert tracks.points[0].tolist() == [0.0, 0.0, 2.0]


def test_a_hidden_point_goes_on_and_then_stays():
    tracks = Tracks(patience=0.5)
    tracks.add(torch.tensor([[0.0, 0.0, 2.0]]))
    for _ in range(20):
        tracks.advance(fields((0.6, 0.0, 0.0)), WHERE, WHERE, 1 / 30)
    start = tracks.points[0, 0].item()
    for _ in range(60):
        tracks.advance(fields((0.0, 0.0, 0.0), depth=1.0), WHERE, WHERE, 1 / 30)
        assert not tracks.seen[0]
    assert tracks.points[0, 0].item() - start == pytest.approx(0.6 * 0.5, abs=0.03)


def test_the_camera_s_own_motion_moves_no_point():
    tracks = Tracks()
    tracks.add(torch.tensor([[0.0, 0.0, 2.0]]))
    turned = se3.exp(torch.tensor([0.01, 0.0, 0.0, 0.0, 0.01, 0.0], dtype=torch.float64))
    tracks.advance(fields((0.0, 0.0, 0.0)), WHERE, turned, 1 / 30)
    assert tracks.points[0].tolist() == [0.0, 0.0, 2.0]


def test_apd3d_is_one_for_the_truth_at_any_scale_and_falls_with_error():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(500, 3, generator=generator) + torch.tensor([0.0, 0.0, 4.0])
    assert apd3d(2.5 * truth, truth) == 1
    off = torch.randn(500, 3, generator=generator)
    off = off / off.norm(dim=-1, keepdim=True)
    assert apd3d(truth + 0.4 * off, truth) == pytest.approx(0.5, abs=0.05)
    assert apd3d(truth + 2.0 * off, truth) < 0.1
