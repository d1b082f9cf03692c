"""The single-image field: its shapes, its geometry against worlds with a known answer, its derivatives."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from flowodom.depth import FramePair
from flowodom.depth.field import (
    Field,
    FieldConfig,
    FieldDepth,
    FieldNetwork,
    load_field,
    normalised,
    places,
    project,
    rays,
    sample,
    save_field,
)
from flowodom.errors import ShapeError, WeightsError
from flowodom.flow import DenseFlow
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.worlds import pinhole

SMALL = FieldConfig(channels=(8, 16), hidden=8, octaves=2, cells=12, near=0.5, far=20.0)
CAMERA = pinhole(48, 40)


@pytest.fixture
def network():
    torch.manual_seed(5)
    return FieldNetwork(SMALL)


class Wall(FieldNetwork):
    """A field that knows: an opaque wall at a depth, its colours those of the image."""

    def __init__(self, depth, config=SMALL):
        super().__init__(config)
        self.wall = math.log(depth)

    def density(self, features, log_depth):
        cell = math.log(self.config.far / self.config.near) / self.config.cells
        thickness = 1e4 * (log_depth > self.wall - 0.5 * cell).to(features)
        return thickness.expand(*features.shape[:2], -1)

    def decode(self, features, log_depth):
        thickness = self.density(features, log_depth)
        return thickness, torch.zeros(*thickness.shape, 3).to(features)


def picture(height=40, width=48):
    """A smooth colour picture (1, 3, H, W): every place has its own colour."""
    at = places(height, width, torch.zeros(()))
    return torch.stack((at[..., 0], at[..., 1], 0.5 * at.sum(-1)))[None]


def test_places_and_rays_agree_with_the_camera():
    at = places(40, 48, torch.zeros((), dtype=torch.float64))
    ours = rays(at, normalised(CAMERA).double())
    torch.testing.assert_close(ours, CAMERA.rays(CAMERA.pixels(dtype=torch.float64)))
    torch.testing.assert_close(project(ours, normalised(CAMERA).double()), at)


def test_reading_at_pixel_centres_gives_the_pixels():
    maps = torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    at = places(6, 7, maps).reshape(1, -1, 2).expand(2, -1, -1)
    torch.testing.assert_close(sample(maps, at), maps.flatten(2).movedim(1, 2))


def test_the_depth_of_a_wall_is_rendered():
    wall = Wall(4.0)
    field = wall.encode(picture(), normalised(CAMERA))
    rho, variance = wall.depth(field, places(5, 6, torch.zeros(())).reshape(1, -1, 2))
    assert rho.shape == variance.shape == (1, 30)
    cell = math.log(20.0 / 0.5) / 12
    torch.testing.assert_close(rho.log(), torch.full((1, 30), -math.log(4.0)), atol=0.51 * cell, rtol=0)
    # What is left is where in its cell the wall stands.
    torch.testing.assert_close(variance.sqrt() / rho, torch.full((1, 30), cell / math.sqrt(12)))


def test_another_camera_sees_the_wall_from_where_it_is():
    wall = Wall(4.0, dataclasses.replace(SMALL, cells=96))
    field = wall.encode(picture(), normalised(CAMERA))
    at = places(5, 6, torch.zeros(())).reshape(1, -1, 2)
    depth = 1 / wall.depth(field, at)[0].mean()
    motion = se3.matrix(torch.eye(3), torch.tensor([0.6, -0.3, 0.0]))[None]
    colours, share = wall.colour(field, at, normalised(CAMERA), motion)
    expected = at + motion[:, None, :2, 3] / depth * normalised(CAMERA)[:, :2]
    inside = ((expected > 0.02) & (expected < 0.98)).all(-1)
    assert 10 < inside.sum() < 30
    torch.testing.assert_close(colours[inside][:, :2], expected[inside], atol=0.01, rtol=0)
    assert (share[inside] > 0.99).all()


def test_what_was_out_of_view_is_not_known():
    wall = Wall(4.0)
    field = wall.encode(picture(), normalised(CAMERA))
    about = se3.exp(torch.tensor([0.0, 0.0, 0.0, 0.0, math.pi, 0.0]))[None]
    _, share = wall.colour(field, places(5, 6, torch.zeros(())).reshape(1, -1, 2), normalised(CAMERA), about)
    assert (share == 0).all()


def test_its_own_camera_sees_the_image_again():
    wall = Wall(3.0)
    image = picture()
    field = wall.encode(image, normalised(CAMERA))
    at = places(40, 48, image).reshape(1, -1, 2)
    colours, share = wall.colour(field, at, normalised(CAMERA), torch.eye(4)[None])
    torch.testing.assert_close(colours, image.flatten(2).movedim(1, 2), atol=1e-4, rtol=0)
    assert (share > 0.999).all()


def test_an_untrained_network_is_unsure(network):
    field = network.encode(picture(), normalised(CAMERA))
    rho, variance = network.depth(field, places(20, 24, torch.zeros(())).reshape(1, -1, 2))
    assert (rho > 1 / 20.0).all()
    assert (rho < 1 / 0.5).all()
    assert ((variance.sqrt() / rho).median() > 0.3).all()


def test_derivatives_by_features_and_motion_are_exact(network):
    network = network.double()
    generator = torch.Generator().manual_seed(2)
    at = 0.2 + 0.6 * torch.rand(1, 3, 2, generator=generator, dtype=torch.float64)
    images = torch.rand(1, 3, 8, 8, generator=generator, dtype=torch.float64)
    features = torch.randn(1, 8, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    intrinsics = normalised(CAMERA).double()
    xi = torch.tensor([0.05, -0.03, 0.02, 0.01, 0.02, -0.01], dtype=torch.float64).requires_grad_()

    def render(features, xi):
        field = Field(features, images, intrinsics)
        return *network.depth(field, at), *network.colour(field, at, intrinsics, se3.exp(xi)[None])

    assert torch.autograd.gradcheck(render, (features, xi), atol=1e-5)


def test_the_network_sees_the_focal_length(network):
    image = picture()
    near, far = (network.encode(image, normalised(pinhole(48, 40, field_of_view=v))).features for v in (50.0, 90.0))
    assert (near - far).abs().mean() > 1e-3


def test_frames_of_any_size_and_colour_give_depth(network):
    source = FieldDepth(network)
    assert source.metric
    rng = np.random.default_rng(0)
    for shape in ((120, 160, 3), (75, 101), (20, 400, 3)):
        camera = pinhole(shape[1], shape[0])
        seen = source.observe(Frame(0, rng.integers(0, 255, shape, dtype=np.uint8), camera))
        assert seen.mean.isfinite().all()
        assert (seen.variance > 0).all()
        assert seen.mean.dtype == seen.variance.dtype == torch.float32
        height, width = seen.mean.shape
        assert (seen.camera.height, seen.camera.width) == (height, width)
        corners = torch.tensor([[-0.5, -0.5], [shape[1] - 0.5, shape[0] - 0.5]])
        ours = torch.tensor([[-0.5, -0.5], [width - 0.5, height - 0.5]])
        torch.testing.assert_close(seen.camera.rays(ours), camera.rays(corners))


def test_each_image_speaks_for_itself(network):
    source = FieldDepth(network)
    frame = Frame(0, np.zeros((40, 48, 3), np.uint8), CAMERA)
    still = torch.zeros(40, 48, 2)
    flow = DenseFlow(still, still, torch.ones(40, 48), torch.ones(40, 48))
    pair = FramePair(frame, flow, CAMERA, se3.identity(), torch.eye(6).double())
    seen = source.observe(frame)
    assert source.fuse(seen, None, pair) is seen
    assert source.fuse(None, seen, pair).mean.isnan().all()


@pytest.mark.parametrize("shape", [(1, 3, 16, 48), (1, 1, 40, 48), (3, 40, 48)])
def test_other_images_are_refused(network, shape):
    with pytest.raises(ShapeError, match="at least 32 pixels"):
        network.encode(torch.zeros(shape), normalised(CAMERA))


def test_weights_survive_the_file(network, tmp_path):
    save_field(tmp_path / "field.safetensors", network, {})
    again = load_field(tmp_path / "field.safetensors")
    assert again.config == SMALL
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_weights_of_something_else_are_refused(network, tmp_path):
    from flowodom import weights

    weights.write(tmp_path / "other.safetensors", network.state_dict(), {})
    with pytest.raises(WeightsError, match="does not say that it holds a field"):
        load_field(tmp_path / "other.safetensors")
    save_field(tmp_path / "cut.safetensors", network, {})
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError):
        load_field(tmp_path / "cut.safetensors")
