"""Training pairs: two pictures of a procedural world a moment apart, and everything that is true about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flowodom.errors import ConfigError
from flowodom.geometry import se3
from flowodom.worlds.motion import hand_held
from flowodom.worlds.scenes import room, street
from flowodom.worlds.sequence import pinhole


@dataclass(frozen=True)
class PairBatch:
    """B pairs of pictures and the truth about them. All tensors are on one device.

    Points are in the optical frame of their own camera, metres. Object 0 is all that is static; M counts it.

    Attributes:
        image0: (B, 3, H, W) uint8 RGB, the earlier pictures.
        image1: (B, 3, H, W) uint8 RGB, the later ones.
        flow_forward: (B, 2, H, W) float32 pixels (u, v) from picture 0 to picture 1; finite, but without meaning
            where the point is not in front of camera 1 (and so hidden).
        flow_backward: (B, 2, H, W) float32 pixels from picture 1 to picture 0.
        hidden_forward: (B, H, W) bool on picture 0: the point is out of view or occluded in picture 1.
        hidden_backward: (B, H, W) bool on picture 1: the point is out of view or occluded in picture 0.
        depth0: (B, H, W) float32 metres along the optical axis, kilometres for a sky.
        depth1: (B, H, W) float32, of picture 1.
        normal0: (B, 3, H, W) float32 unit normals towards the camera.
        normal1: (B, 3, H, W) float32, of picture 1.
        motion: (B, 4, 4) float32 ``T_1_0``: takes static points from camera 0 to camera 1.
        object_id0: (B, H, W) int64 in [0, M).
        object_id1: (B, H, W) int64.
        object_motion: (B, M, 4, 4) float32: takes each object's points from where camera 0 saw them at time 0 to where
            camera 1 sees them at time 1; of object 0 it is ``motion``.
        intrinsics: (B, 4) float32 fx, fy, cx, cy, pixels; pixel (0, 0) is the centre of the first pixel.
    """

    image0: Tensor
    image1: Tensor
    flow_forward: Tensor
    flow_backward: Tensor
    hidden_forward: Tensor
    hidden_backward: Tensor
    depth0: Tensor
    depth1: Tensor
    normal0: Tensor
    normal1: Tensor
    motion: Tensor
    object_id0: Tensor
    object_id1: Tensor
    object_motion: Tensor
    intrinsics: Tensor

    def to(self, device: torch.device | str) -> PairBatch:
        """Returns the batch on another device."""
        return PairBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class TrainingPairs:
    """Batches of training pairs without end, the same for the same seed.

    The interface is ``pairs[k]``, the k-th batch, which depends on nothing but the arguments and ``k`` (so that
    training resumes where it was, and processes may share the work), and iteration over k = 0, 1, 2, ...

    Args:
        seed: The same seed gives the same pairs on the same device.
        size: Width and height of the pictures.
        batch: Pairs in a batch.
        device: Where to render; the batches stay there.

    Raises:
        ConfigError: A picture smaller than 16 pixels, or an empty batch.
    """

    def __init__(
        self, seed: int, size: tuple[int, int] = (320, 240), batch: int = 8, device: torch.device | str = "cpu"
    ) -> None:
        if min(size) < 16 or batch < 1:
            raise ConfigError(f"size must be 16 or more each way and batch 1 or more, got size={size}, batch={batch}")
        self.seed, self.size, self.batch, self.device = seed, size, batch, torch.device(device)

    def __iter__(self) -> Iterator[PairBatch]:
        """Yields batch 0, 1, 2, ... without end."""
        k = 0
        while True:
            yield self[k]
            k += 1

    def __getitem__(self, k: int) -> PairBatch:
        """Returns the k-th batch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + k)
        seed = int(torch.randint(1 << 30, (), generator=generator))
        outdoors = k % 3 == 2
        make = street if outdoors else room
        world = make(seed, movers=3, texels=128, device=self.device)
        velocity = (1.2, 0.0, 0.0) if outdoors else (0.0, 0.0, 0.0)
        path = hand_held(seed, velocity=velocity)
        rows: dict[str, list[Tensor]] = {f.name: [] for f in fields(PairBatch)}
        for _ in range(self.batch):
            start, log_step, view = torch.rand(3, generator=generator).tolist()
            camera = pinhole(*self.size, field_of_view=45 + 50 * view)
            time, later = 20 * start, 20 * start + 0.02 * 12**log_step
            one, two = world.render(path(time), time, camera), world.render(path(later), later, camera)
            flow = world.flow_between(one, two)
            assert one.image is not None and two.image is not None
            assert one.normal is not None and two.normal is not None
            motion = se3.inverse(two.pose) @ one.pose
            moved = se3.inverse(two.pose) @ two.bodies @ se3.inverse(one.bodies) @ one.pose
            row = {
                "image0": one.image.movedim(-1, 0),
                "image1": two.image.movedim(-1, 0),
                "flow_forward": flow.forward.movedim(-1, 0).float().nan_to_num(0.0),
                "flow_backward": flow.backward.movedim(-1, 0).float().nan_to_num(0.0),
                "hidden_forward": flow.forward_hidden,
                "hidden_backward": flow.backward_hidden,
                "depth0": one.depth.float(),
                "depth1": two.depth.float(),
                "normal0": one.normal.movedim(-1, 0),
                "normal1": two.normal.movedim(-1, 0),
                "motion": motion.float().to(self.device),
                "object_id0": one.object_id,
                "object_id1": two.object_id,
                "object_motion": moved.float().to(self.device),
                "intrinsics": torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], device=self.device),
            }
            for name, value in row.items():
                rows[name].append(value)
        return PairBatch(**{name: torch.stack(values) for name, values in rows.items()})
