"""How objects get from one frame to the next: with a constant twist while they are not seen, filtered where they are.

Source: Bell and Cathey, "The Iterated Kalman Filter Update as a Gauss-Newton Method" (1993).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import se3
from flowodom.registration.covariance import compose
from flowodom.scene_flow.grids import Array
from flowodom.scene_flow.objects import TRAIL, MovingObject, extent_of

CONFIRMED = 3
"""Frames in which a thing must be seen moving to be believed."""

SIGNIFICANT_SPEED = 3.0
"""Standard deviations by which a velocity must differ from zero."""

ACCELERATION = np.repeat((2.0, 4.0), 3)
"""What objects are expected to do, (6,), m/s^2 and rad/s^2, one standard deviation."""

UNKNOWN_TWIST = np.repeat((2.0, 3.0), 3)
"""Standard deviation of the twist of a thing seen for the first time, (6,), m/s and rad/s."""

SETTLING = 0.1
"""Share by which the extent follows what one frame shows of an object beyond it."""


@dataclass(frozen=True)
class Transition:
    """Where and when a frame was taken, and how objects get there from the frame before.

    Attributes:
        pose: (4, 4) float64 ``T_odom_camera``.
        before: (4, 4) of the frame before.
        stamp: Nanoseconds.
        interval: Seconds since the frame before.
    """

    pose: Array
    before: Array
    stamp: int
    interval: float

    def foresee(self, known: Sequence[MovingObject]) -> tuple[Array, Array, Array]:
        """Predicts K objects by their constant twists.

        Returns:
            (K, 4, 4) ``T_object_camera`` now; (K, 4, 4) the motions ``T_previous_current`` of cameras that would go
            with them; (K, 6, 6) covariances of the left perturbations of those.
        """
        poses = _stack(o.pose for o in known)
        local = se3.inverse(poses @ se3.exp(_stack(o.twist for o in known) * self.interval)) @ self.pose
        there = self.back @ poses
        turn = se3.adjoint(there) * self.interval
        unsure = _stack(o.twist_covariance for o in known) + self._drift
        return local, there @ local, turn @ unsure @ turn.swapaxes(-1, -2)

    @cached_property
    def back(self) -> Array:
        """(4, 4) ``T_camera_odom`` of the frame before."""
        return se3.inverse(self.before)

    @cached_property
    def _drift(self) -> Array:
        """(6, 6) covariance of what twists change by between two frames."""
        return np.diag(np.square(ACCELERATION * self.interval))

    def seen(
        self,
        known: Sequence[MovingObject],
        motions: Array,
        covariances: Array,
        points: Array,
        masks: NDArray[np.bool_],
        tellable: Sequence[bool],
    ) -> list[MovingObject]:
        """Returns K objects after one more frame that shows them.

        Args:
            known: The objects.
            motions: (K, 4, 4) ``T_previous_current`` of cameras that would go with them, what was expected being part.
            covariances: (K, 6, 6) of their left perturbations.
            points: (K, N, 3) on them, metres, current camera.
            masks: (K, H, W) where they are seen.
            tellable: Whether each may be confirmed now.
        """
        poses, boxes = _stack(o.pose for o in known), _stack(o.box for o in known)
        there = self.back @ poses
        local = se3.inverse(there)
        # Points fixed to an object go from here, itself, to there, between the two frames.
        ways = local @ se3.inverse(motions @ se3.inverse(self.back @ self.pose)) @ there
        turn = se3.adjoint(local) / self.interval
        twists = se3.log(ways) / self.interval
        unsure = turn @ covariances @ turn.swapaxes(-1, -2)
        now = se3.normalised(poses @ ways)
        spread = compose(_stack(o.covariance for o in known), ways, unsure * self.interval**2)
        local = se3.inverse(now) @ self.pose
        shown = extent_of(points @ local[:, :3, :3].swapaxes(-1, -2) + local[:, None, :3, 3])
        larger = np.stack((np.minimum(boxes[:, 0], shown[:, 0]), np.maximum(boxes[:, 1], shown[:, 1])), axis=1)
        boxes = boxes + SETTLING * (larger - boxes)
        centres = se3.act(now, boxes.mean(1))
        told = [torch.from_numpy(values) for values in (now, spread, twists, unsure, boxes)]
        return [
            replace(
                o, pose=pose, covariance=covariance, twist=twist, twist_covariance=twist_covariance, box=box,
                frames=o.frames + 1,
                confirmed=o.confirmed or (may and o.frames + 1 >= CONFIRMED and _is_moving(twist, twist_covariance)),
                seen=self.stamp, stamp=self.stamp, mask=mask,
                trail=torch.from_numpy(np.concatenate((o.trail.numpy()[1 - TRAIL :], centre[None]))),
            )
            for o, pose, covariance, twist, twist_covariance, box, centre, mask, may in zip(
                known, *told, centres, masks, tellable, strict=True
            )
        ]  # fmt: skip

    def since(self, known: MovingObject) -> float:
        """Returns for how many seconds an object has not been seen."""
        return (self.stamp - known.seen) * 1e-9

    def coasted(self, known: MovingObject) -> MovingObject:
        """Returns an object that went on unseen with a constant twist."""
        covariance = known.twist_covariance + torch.from_numpy(self._drift)
        way = se3.exp(known.twist * self.interval)
        spread = compose(known.covariance, way, covariance * self.interval**2)
        return replace(
            known, pose=known.pose @ way, covariance=spread, twist_covariance=covariance, stamp=self.stamp, mask=None
        )


def born(number: int, points: Array, back: Array, stamp: int) -> MovingObject:
    """Returns a new object as it was at the frame before.

    Args:
        number: Its number.
        points: (N, 3) on it, metres, current camera.
        back: (4, 4) from there to where they were in odom.
        stamp: Of the current frame.
    """
    was = se3.act(back, points)
    middle = np.median(was, axis=0)
    return MovingObject(
        id=number,
        pose=torch.from_numpy(se3.matrix(np.eye(3), middle)),
        covariance=torch.zeros(6, 6, dtype=torch.float64),
        twist=torch.zeros(6, dtype=torch.float64),
        twist_covariance=torch.from_numpy(np.diag(UNKNOWN_TWIST**2)),
        box=torch.from_numpy(extent_of(was - middle)),
        frames=0,
        confirmed=False,
        seen=stamp,
        stamp=stamp,
        trail=torch.from_numpy(middle[None]),
        mask=None,
    )


def mahalanobis(values: Array, covariances: Array) -> Array:
    """Returns the (K,) squared Mahalanobis lengths of values (K, D) with covariances (K, D, D)."""
    return (values[..., None] * np.linalg.solve(covariances, values[..., None])).sum((1, 2))


def _is_moving(twist: Tensor, covariance: Tensor) -> bool:
    """Tells whether the velocity of a twist (6,) with its covariance (6, 6) is beyond its noise."""
    velocity, unsure = twist[None, :3].numpy(), covariance[None, :3, :3].numpy()
    return bool(mahalanobis(velocity, unsure)[0] > SIGNIFICANT_SPEED**2)


def _stack(values: Iterable[Tensor]) -> Array:
    """Returns tensors of one size as one array."""
    return np.stack([v.numpy() for v in values])
