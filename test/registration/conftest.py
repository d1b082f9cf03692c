"""Points before a camera, and what a second camera sees of them, exactly."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.refine import Matches
from flowodom.worlds import pinhole


@pytest.fixture(scope="session")
def camera() -> PinholeCamera:
    return pinhole(320, 240)


@pytest.fixture(scope="session")
def scatter(camera: PinholeCamera) -> Callable[..., Tensor]:
    """Returns (N, 3) points 1.5 to 6 m before the camera, spread over the image."""

    def make(count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        u, v, rho = torch.rand(3, count, generator=generator, dtype=torch.float64)
        pixels = torch.stack((10 + 300 * u, 10 + 220 * v), dim=-1)
        return camera.unproject(pixels, 1 / (1 / 6 + rho * (1 / 1.5 - 1 / 6)))

    return make


@pytest.fixture(scope="session")
def plane(camera: PinholeCamera) -> Callable[..., Tensor]:
    """Returns (500, 3) points of a plane of a given normal, 3 m away, spread over the image."""

    def make(normal: tuple[float, float, float], seed: int = 0) -> Tensor:
        uv = torch.rand(500, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rays = camera.rays(uv * torch.tensor([320, 240], dtype=torch.float64))
        return 3 * rays / (rays @ torch.tensor(normal, dtype=torch.float64))[:, None]

    return make


@pytest.fixture(scope="session")
def observe(camera: PinholeCamera) -> Callable[..., Matches]:
    """Returns the matches of (N, 3) points of a reference camera in one at ``motion``, with Gaussian noise.

    ``pixel`` and ``rho`` are the deviations of pixels and of both inverse depths; without a seed all is exact; ``seen``
    and ``known`` say whether depth is measured now and before.
    """

    def make(
        points: Tensor,
        motion: Tensor,
        *,
        seed: int | None = None,
        pixel: float = 0.3,
        rho: float = 0.002,
        seen: bool = True,
        known: bool = True,
    ) -> Matches:
        count = len(points)
        noise = torch.zeros(4, count, dtype=torch.float64)
        if seed is not None:
            noise = torch.randn(4, count, generator=torch.Generator().manual_seed(10_000 + seed), dtype=torch.float64)
        moved = se3.act(motion, points)
        ones = torch.ones(count, dtype=torch.float64)
        return Matches(
            direction=points / points[:, 2:],
            offset=torch.zeros_like(points),
            rho=1 / points[:, 2] + rho * noise[0] if known else 0.3 * ones,
            rho_variance=ones * (rho**2 if known else 10.0**2),
            pixels=camera.project(moved) + pixel * noise[1:3].T,
            pixel_covariance=pixel**2 * torch.eye(2, dtype=torch.float64).expand(count, 2, 2),
            seen_rho=1 / moved[:, 2] + rho * noise[3] if seen else ones * torch.nan,
            seen_variance=ones * (rho**2 if seen else torch.inf),
            row=torch.zeros(count, dtype=torch.float64),
        )

    return make
