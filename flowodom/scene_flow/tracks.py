"""World-coordinate tracking: points followed in 3D from frame to frame by chained scene flow."""

from __future__ import annotations

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.scene_flow.lift import PropertySet

SAME_SURFACE = 0.02
"""A point is seen where the surface at its pixel is at its own depth, to this share of it."""

CLOSE = 0.08
"""Distance, metres, within which a new point takes over what another believes."""

_LEARNING, _BELIEVED = 0.3, 0.6
"""A frame's share in the belief that a point moves, and the belief from which on it does: three frames in a row."""

_SUSPECTED, _REACH, _GUIDES = 0.5, 0.3, 500
"""Belief from which on a hidden point goes along with a moving one, the distance within which it does, metres, and how
many moving ones are looked at."""

_SMOOTHING = 0.5
"""A frame's share in the velocity at which a hidden point goes on."""


class Tracks:
    """Points in the fixed frame that go where the scene flow takes them.

    A point moves only by its residual flow, the part of its flow that the camera's motion does not explain, and only
    where that is significant frame after frame: what stands still does not drift, and one wrong flow at the edge of a
    mover does not send it off. Until a point is believed to move, its way is kept aside. A point that is hidden, out of
    view or without depth goes along with the nearest moving point that is seen, else on as it last went for
    ``patience`` seconds, and then stays.

    Args:
        significance: Standard deviations by which a point must move on its own to count as moving.
        speed: Least speed of a moving point, m/s.
        patience: Seconds for which a point goes on unseen.

    Attributes:
        points: (N, 3) float64 metres, fixed frame.
        seen: (N) bool: whether the point was seen in the last pair of frames.
    """

    def __init__(self, *, significance: float = 4.0, speed: float = 0.03, patience: float = 1.0) -> None:
        self._significance, self._speed, self._patience = significance, speed, patience
        self.points = torch.zeros(0, 3, dtype=torch.float64)
        self.seen = torch.zeros(0, dtype=torch.bool)
        self._velocity = torch.zeros(0, 3, dtype=torch.float64)
        self._aside = torch.zeros(0, 3, dtype=torch.float64)
        self._belief = torch.zeros(0, dtype=torch.float64)
        self._unseen = torch.zeros(0, dtype=torch.float64)

    def add(self, points: Tensor) -> None:
        """Follows (N, 3) more points, fixed frame, from here on; they believe what a point close by believes."""
        count, fixed = len(points), points.to(torch.float64)
        velocity, belief = torch.zeros(count, 3, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        known = self.seen.nonzero()[:, 0]
        if len(known):
            distance, nearest = torch.cdist(fixed, self.points[known]).min(1)
            close = distance < CLOSE
            belief[close] = self._belief[known][nearest[close]]
            velocity[close] = self._velocity[known][nearest[close]]
        self.points = torch.cat((self.points, fixed))
        self.seen = torch.cat((self.seen, torch.ones(count, dtype=torch.bool)))
        self._velocity = torch.cat((self._velocity, velocity))
        self._aside = torch.cat((self._aside, torch.zeros(count, 3, dtype=torch.float64)))
        self._belief = torch.cat((self._belief, belief))
        self._unseen = torch.cat((self._unseen, torch.zeros(count, dtype=torch.float64)))

    def advance(self, properties: PropertySet, previous: Tensor, current: Tensor, interval: float) -> None:
        """Takes the points from the previous frame to the current one.

        Args:
            properties: Fields from the previous frame to the current one.
            previous: (4, 4) float64 ``T_fixed_camera`` of the previous frame.
            current: (4, 4) float64 of the current frame.
            interval: Seconds between them.
        """
        camera = properties.camera
        local = se3.act(se3.inverse(previous), self.points)
        inside = camera.visible(local, min_depth=0.01)
        place = camera.project(local, min_depth=0.01).round().long().nan_to_num()
        index = place[:, 1].clamp(0, camera.height - 1) * camera.width + place[:, 0].clamp(0, camera.width - 1)
        index = index.to(properties.points.device)
        surface = properties.points[..., 2].flatten()[index].cpu().double()
        residual = properties.residual.flatten(0, 1)[index].cpu().double()
        sureness = properties.confidence.flatten()[index].cpu().double().sqrt()
        near = (surface / local[:, 2] - 1).abs() < SAME_SURFACE
        self.seen = inside & near & residual.isfinite().all(-1) & (sureness > 0)

        distance = residual.norm(dim=-1)
        moving = (distance * sureness > self._significance) & (distance > self._speed * interval)
        own = torch.where((self.seen & moving)[:, None], residual @ current[:3, :3].T, 0.0)
        self._belief = torch.where(self.seen, torch.lerp(self._belief, moving.double(), _LEARNING), self._belief)
        believed = (self._belief > _BELIEVED)[:, None]
        self._unseen = torch.where(self.seen, 0.0, self._unseen + interval)
        coasting = believed & ~self.seen[:, None] & (self._unseen <= self._patience)[:, None]
        steady = torch.lerp(self._velocity, own / interval, _SMOOTHING)
        self._velocity = torch.where(self.seen[:, None], steady, self._velocity)
        way = self._aside + own
        self.points = self.points + torch.where(believed & self.seen[:, None], way, 0.0)
        self.points = self.points + torch.where(coasting, self._velocity * interval, 0.0)
        self._follow(believed[:, 0], interval)
        resting = self.seen & ~moving
        self._aside = torch.where(believed | resting[:, None], 0.0, way)

    def _follow(self, believed: Tensor, interval: float) -> None:
        """Takes hidden points of moving things along with what is seen of them."""
        hidden = (~self.seen & (self._belief > _SUSPECTED)).nonzero()[:, 0]
        guides = (self.seen & believed).nonzero()[:, 0]
        if not len(hidden) or not len(guides):
            return
        guides = guides[:: len(guides) // _GUIDES + 1]
        distance, nearest = torch.cdist(self.points[hidden], self.points[guides]).min(1)
        near = distance < _REACH
        self._velocity[hidden[near]] = self._velocity[guides][nearest[near]]
        self._unseen[hidden[near]] = 0.0
        self._belief[hidden[near]] = 1.0


APD_DISTANCES = (0.1, 0.3, 0.5, 1.0)
"""Distances within which ``apd3d`` counts points, metres."""


def apd3d(estimate: Tensor, truth: Tensor) -> float:
    """Scores tracks by the average share of points within several distances of the truth, after median alignment.

    Args:
        estimate: (N, 3) points, frame and origin of ``truth``, at any scale.
        truth: (N, 3) where they truly are, metres.

    Returns:
        Mean over ``APD_DISTANCES`` of the share within each, 0 to 1, once the estimate's median distance from the
        origin is made the truth's; NaN for no point.
    """
    if not len(truth):
        return float("nan")
    scale = truth.norm(dim=-1).median() / estimate.norm(dim=-1).median().clamp_min(1e-12)
    error = (scale * estimate - truth).norm(dim=-1)
    return sum(float((error < distance).double().mean()) for distance in APD_DISTANCES) / len(APD_DISTANCES)
