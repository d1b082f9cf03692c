"""The shear of an image whose rows are exposed one after another while the camera moves.

A row shows the world as a camera displaced by the twist ``row * shear`` sees it, rows counting from -1/2 at the first
to 1/2 at the last. The shear is how far the camera moves from the first row's exposure to the last one's.

Source: Forssén and Ringaby, "Rectifying rolling shutter video from hand-held devices" (CVPR 2010), for a shear by the
camera's own motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3

LEAST_FARTHER = 1e-3
"""Least factor by which a shear changes a depth."""


def rows(camera: PinholeCamera, pixels: Tensor) -> Tensor:
    """Returns the rows (M,) of pixels (M, 2), from -1/2 at the first to 1/2 at the last."""
    return pixels[:, 1] / (camera.height - 1) - 0.5


def sheared(camera: PinholeCamera, pixels: Tensor, rho: Tensor, shear: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where points lie in a sheared image.

    Args:
        camera: The camera.
        pixels: (M, 2) float64 where they would lie if all rows had been exposed with the middle one.
        rho: (M,) float64 their inverse depth.
        shear: (6,) float64 twist of the image; its negative frees an image from its shear.

    Returns:
        (M, 2) pixels and (M,) by how much farther the points are, as a factor of their depth, above zero also for what
        is so near that the camera would have moved past it.
    """
    rays = camera.rays(pixels)
    moved = torch.linalg.cross(shear[3:].expand_as(rays), rays) + rho[:, None] * shear[:3]
    place = rays + rows(camera, pixels)[:, None] * moved
    return camera.project(place, min_depth=LEAST_FARTHER), place[:, 2].clamp_min(LEAST_FARTHER)


@dataclass(frozen=True)
class Shear:
    """What is known of an image's shear before its points are looked at: ``constant + gain * log(motion @ before)``.

    Attributes:
        constant: (6,) float64.
        gain: How much of the camera's motion since the image before passes while this one is exposed; zero where the
            shear is not known to depend on that.
        before: (4, 4) float64 ``T_reference_previous``.
        information: (6, 6) float64, inverse covariance of what the shear may be beside that; None where it is known.
    """

    constant: Tensor
    gain: float = 0.0
    before: Tensor | None = None
    information: Tensor | None = None

    def expected(self, motion: Tensor) -> Tensor:
        """Returns the shear (6,) that goes with a motion, (4, 4) ``T_current_reference``."""
        if self.before is None:
            return self.constant
        return self.constant + self.gain * se3.log(motion @ self.before)

    def normal_equations(self) -> tuple[Tensor, Tensor]:
        """Returns what this adds to those of motion and shear: nothing where the shear is known.

        Returns:
            Hessian (12, 12), and (12, 6) the gradient by what is missed: the shear minus that expected.
        """
        own = torch.eye(6, dtype=self.constant.dtype)
        by_both = torch.cat((-self.gain * own, own))
        pull = by_both @ (torch.zeros_like(own) if self.information is None else self.information)
        return pull @ by_both.T, pull


NO_SHEAR = Shear(torch.zeros(6, dtype=torch.float64))
"""All rows at once."""
