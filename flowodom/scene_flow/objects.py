"""Things that move as one: rigid motions in what moves, followed from frame to frame.

Every object keeps a belief for each pixel that moves: the log odds that the pixel goes with the object rather than with
none. A frame carries beliefs along the flow, refines the motions of all objects at once, from where their twists take
them, on points polished by Lucas-Kanade, and weighs how well each motion explains where each pixel came from. Only in
what no object explains are new motions looked for. So an object is known again by its pixels, standing still for a
moment too, and two that pass or touch each other stay two; after an occlusion it is known by where its constant twist
takes it.

What was out of sight for longer is known again by where it was going and by its colours, if both together make it
likelier than anything else.

An object is born unconfirmed, confirmed after ``CONFIRMED`` frames in which it was seen with a velocity beyond its
noise, and dropped when it has not been seen for as long as it was seen before, or ``COASTING`` seconds (unconfirmed:
for one frame). Of two that go as one for a while, that of which more has been seen takes in the other.

Source: sf2se3 (Sommer, Schroeppel and Brox, 2022) for motions that cover what moves; DynoSAM (Morris et al., 2024) for
objects with poses of their own; Swain and Ballard, "Color Indexing" (1991), for what they are known by; Bell and
Cathey, "The Iterated Kalman Filter Update as a Gauss-Newton Method" (1993).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.covariance import compose
from flowodom.registration.refine import OUTLIER
from flowodom.scene_flow.decompose import MOST_LOGIT, Array, Moving
from flowodom.scene_flow.motions import LEAST_SAMPLES, MovingPixels, Samples, even, fit_motions, propose

PROPOSALS = 3
"""Most new motions that are looked for in a frame."""

FADING = 0.02
"""Share of the beliefs that gets lost from one frame to the next."""

STRIP = 3
"""Width, pixels of the grid, up to which a strip is a fault of the flow beside an edge."""

RESTING = 3
"""Frames for which nothing new is looked for after a search was in vain."""

LEAST_EVIDENCE = -3.0
"""Least log likelihood ratio that one pixel of one frame tells of an object."""

MEDIAN_OF_THREE = 2.366
"""Median of a chi-square variable of three degrees of freedom."""

MOST_SCATTER = 2.0
"""Greatest factor, squared, by which the pixels of an object are believed to scatter more than stated."""

BLUR = 3
"""Width of the window over which neighbours share evidence, pixels of the grid."""

REACH = 5
"""Distance in the image from an object's pixels up to which it can claim others, pixels of the grid."""

BESIDE = 0.1
"""Distance from an object's box up to which a pixel can belong to it, as a share of its distance from the camera."""

WORSE = 1.5
"""By how much, squared, the pixels of an object may miss another's motion more than their own for both to be one."""

ALIKE = 0.5
"""Share of the younger one's life for which two objects must have gone as one to be one."""

OVERLAP = 0.2
"""Share of the pixels or of the place of a missed object that a new motion must have to be that object."""

UNLIKELY = 22.5
"""Squared Mahalanobis distance of two motions beyond which they are not one: a thousandth of the chi-square of six."""

CONFIRMED = 3
"""Frames in which a thing must be seen moving to be believed."""

COASTING = 1.0
"""Seconds for which a confirmed object goes on unseen."""

REMEMBERED = 3.0
"""Seconds for which an object that is out of sight can be known again by its colours."""

SHADES = 8
"""Shades of red, green and blue each that are told apart."""

UNLIKE = 0.28
"""Difference of colours (one minus their Bhattacharyya coefficient) at which one object is as likely as two."""

LEAST_UNLIKE = 0.02
"""Difference of colours below which it tells no more."""

LOOKS = 1.5
"""Power of that difference with which the odds of being one object fall."""

IN_PART = 0.3
"""How far the middle of what is seen of an object may lie from its own, as a share of its size."""

WAYWARD = 0.5
"""How far an object may lie from where its constant velocity takes it, metres for each second."""

SPACE = 1.0
"""The same for something new, which may be anywhere, metres."""

MEMORY = 20
"""Looks at the colours of an object over which they are averaged."""

GLIMPSES = 4
"""Frames of which one is looked at for colours that have been seen that often."""

SIGNIFICANT_SPEED = 3.0
"""Standard deviations by which a velocity must differ from zero."""

ACCELERATION = (2.0, 4.0)
"""What objects are expected to do, m/s^2 and rad/s^2, one standard deviation."""

UNKNOWN_TWIST = (2.0, 3.0)
"""Standard deviation of the twist of a thing seen for the first time, m/s and rad/s."""

TRAIL = 100
"""Most places kept of each object's way."""

SETTLING = 0.1
"""Share by which the extent follows what one frame shows of an object beyond it."""


@dataclass(frozen=True)
class MovingObject:
    """One thing that moves on its own.

    Attributes:
        id: Its number, never given twice.
        pose: (4, 4) float64 ``T_odom_object``; it starts in the middle of what was first seen of it, with odom's axes.
        covariance: (6, 6) of its right perturbation, where it was first seen being known.
        twist: (6,) velocity of that frame in itself, m/s and rad/s, translation first.
        twist_covariance: (6, 6).
        box: (2, 3) least and greatest coordinates of it in its frame, metres.
        frames: In how many frames it was seen.
        confirmed: Whether it is believed.
        seen: Stamp, nanoseconds, at which it was last seen.
        stamp: Stamp for which all this holds.
        trail: (K, 3) where it was, odom, oldest first.
        mask: (H, W) bool array on the grid of what moves; None while it is not seen.
    """

    id: int
    pose: Tensor
    covariance: Tensor
    twist: Tensor
    twist_covariance: Tensor
    box: Tensor
    frames: int
    confirmed: bool
    seen: int
    stamp: int
    trail: Tensor
    mask: NDArray[np.bool_] | None

    @property
    def centre(self) -> Tensor:
        """(3,) middle of its box, odom."""
        return se3.act(self.pose, self.box.mean(0))

    @property
    def velocity(self) -> Tensor:
        """(3,) velocity of its middle, odom, m/s."""
        middle = self.twist[:3] + torch.linalg.cross(self.twist[3:], self.box.mean(0))
        return self.pose[:3, :3] @ middle

    def velocity_at(self, points: Tensor, pose: Tensor) -> Tensor:
        """Returns the velocities (N, 3), m/s, of (N, 3) points on it, in a camera at ``pose``, ``T_odom_camera``."""
        local = (se3.inverse(pose) @ self.pose).to(points)
        twist = self.twist.to(points)
        place = (points - local[:3, 3]) @ local[:3, :3]
        return (twist[:3] + torch.linalg.cross(twist[3:].expand_as(place), place)) @ local[:3, :3].T

    @property
    def extent(self) -> Tensor:
        """(3,) size of its box along its own axes, metres."""
        return self.box[1] - self.box[0]

    def after(self, seconds: float) -> Tensor:
        """Returns the (4, 4) pose ``T_odom_object`` that its constant twist leads to."""
        return self.pose @ se3.exp(self.twist * seconds)


@dataclass
class _Claims:
    """Which pixels go with which objects, in one frame.

    Attributes:
        pixels: The N pixels that move.
        numbers: The K objects that claim some.
        motions: (K, 4, 4) float64 ``T_previous_current`` of cameras that would go with them.
        covariances: (K, 6, 6) of their left perturbations.
        squared: (K, N) by how much each pixel misses each motion.
        belief: (K, N) log odds that a pixel goes with an object.
        owner: (N,) row of the object that each pixel goes with, -1 for none.
    """

    pixels: MovingPixels
    numbers: list[int]
    motions: Array
    covariances: Array
    squared: Array
    belief: Array
    owner: Array

    @classmethod
    def none(cls, pixels: MovingPixels) -> _Claims:
        """Returns the claims of nobody."""
        motions, covariances = (np.zeros((0, n, n)) for n in (4, 6))
        empty = np.zeros((0, len(pixels)), dtype=np.float32)
        return cls(pixels, [], motions, covariances, empty, empty, _owner(empty))

    def add(self, numbers: Sequence[int], motions: Array, covariances: Array, squared: Array, belief: Array) -> None:
        """Adds claims of more objects."""
        self.numbers += numbers
        self.motions = np.concatenate((self.motions, motions))
        self.covariances = np.concatenate((self.covariances, covariances))
        self.squared = np.concatenate((self.squared, squared))
        self.belief = np.concatenate((self.belief, belief))
        self.owner = _owner(self.belief)

    def raise_belief(self, row: int, belief: Array) -> None:
        """Lets the object of a row claim pixels with a belief (N,) where it is greater than its own."""
        self.belief[row] = np.maximum(self.belief[row], belief)
        self.owner = _owner(self.belief)

    def drop(self, numbers: Sequence[int]) -> None:
        """Takes back the claims of objects."""
        keep = [k for k, number in enumerate(self.numbers) if number not in numbers]
        self.numbers = [self.numbers[k] for k in keep]
        self.motions, self.covariances = self.motions[keep], self.covariances[keep]
        self.squared, self.belief = self.squared[keep], self.belief[keep]
        self.owner = _owner(self.belief)

    def drop_strips(self) -> None:
        """Takes back the claims of objects of which no more than strips are left."""
        masks = self.pixels.image(self.owner == np.arange(len(self.numbers))[:, None])
        if lost := [number for number, mask in zip(self.numbers, masks, strict=True) if not _is_thing(mask)]:
            self.drop(lost)

    def unite(self, smaller: int, larger: int, stays: int) -> None:
        """Gives the pixels of the smaller of two objects to the motion of the larger, under the number that stays."""
        k, j = self.numbers.index(smaller), self.numbers.index(larger)
        self.raise_belief(j, self.belief[k])
        self.drop([smaller])
        self.numbers[self.numbers.index(larger)] = stays

    @property
    def groups(self) -> list[Array]:
        """K indices of the inner pixels that go with each object."""
        return _groups(self.owner, self.pixels.inner, len(self.numbers))

    @property
    def odds(self) -> Array:
        """(K, N) log odds that a pixel goes with an object rather than with the likeliest other, or with none."""
        none = np.zeros_like(self.belief[:1])
        above = np.maximum.accumulate(np.concatenate((none, self.belief[:-1])))
        below = np.maximum.accumulate(np.concatenate((none, self.belief[:0:-1])))[::-1]
        return (self.belief - np.maximum(above, below)).clip(-MOST_LOGIT, MOST_LOGIT)


def _owner(belief: Array) -> Array:
    """Returns the (N,) row of the greatest positive of beliefs (K, N), -1 where none is positive."""
    if not len(belief):
        return np.full(belief.shape[1:], -1)
    return np.where(belief.max(0) > 0, belief.argmax(0), -1)


def _groups(owner: Array, among: Array, count: int) -> list[Array]:
    """Returns the indices of the pixels ``among`` (N,) bool that belong to each of so many rows, by ``owner`` (N,)."""
    return [np.flatnonzero((owner == k) & among) for k in range(count)]


@dataclass(frozen=True)
class _Frame:
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
        return np.diag(np.square(_ACCELERATION * self.interval))

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
        shown = _extent(points @ local[:, :3, :3].swapaxes(-1, -2) + local[:, None, :3, 3])
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

    def nearness(self, known: MovingObject, new: MovingObject) -> float:
        """Returns the log odds, by its place, that a new object is one that was on its way when it was seen last.

        Something new may be anywhere within ``SPACE`` of there.
        """
        seconds = self.since(known)
        deviation = math.hypot(IN_PART * float(known.extent.norm()), WAYWARD * seconds)
        off = float((new.centre - known.trail[-1] - known.velocity * seconds).norm())
        return 3 * math.log(SPACE / deviation) - 0.5 * (off / deviation) ** 2

    def coasted(self, known: MovingObject) -> MovingObject:
        """Returns an object that went on unseen with a constant twist."""
        covariance = known.twist_covariance + torch.from_numpy(self._drift)
        way = se3.exp(known.twist * self.interval)
        spread = compose(known.covariance, way, covariance * self.interval**2)
        return replace(
            known, pose=known.pose @ way, covariance=spread, twist_covariance=covariance, stamp=self.stamp, mask=None
        )


class ObjectTracker:
    """Follows moving objects; keeps them between frames."""

    def __init__(self) -> None:
        self._objects: list[MovingObject] = []
        self._beliefs: dict[int, Array] = {}
        self._alike: dict[tuple[int, int], int] = {}
        self._area: dict[int, int] = {}
        self._colours: dict[int, Array] = {}
        self._gone: list[MovingObject] = []
        self._resting = 0
        self._random = np.random.default_rng(0)
        self._next = 1

    @property
    def objects(self) -> list[MovingObject]:
        """The confirmed objects, coasting ones too, as of the last update."""
        return [o for o in self._objects if o.confirmed]

    def reset(self) -> None:
        """Forgets all objects; numbers go on."""
        self._objects, self._beliefs, self._alike, self._gone = [], {}, {}, []

    def update(
        self,
        moving: Moving | None,
        pose: Tensor,
        motion: Tensor,
        stamp: int,
        interval: float,
        image: NDArray[np.uint8] | None = None,
    ) -> None:
        """Takes in what moves in the next frame.

        Args:
            moving: What moves; None for nothing.
            pose: (4, 4) float64 ``T_odom_camera`` of the frame.
            motion: (4, 4) float64 ``T_previous_camera``.
            stamp: Of the frame, nanoseconds.
            interval: Seconds since the frame before it, positive.
            image: (H, W, 3) uint8 RGB, by whose colours objects are known again; None or grey for none.
        """
        frame = _Frame(pose.numpy(), pose.numpy() @ se3.inverse(motion.numpy()), stamp, interval)
        seen: dict[int, MovingObject] = {}
        self._beliefs, former = {}, self._beliefs
        if moving is not None and moving.stories is not None and moving.past is not None:
            claims = _Claims.none(MovingPixels.of(moving))
            self._follow(claims, former, moving, frame)
            self._discover(claims, moving, frame)
            claims.drop_strips()
            self._remember(claims, moving, frame)
            self._unite(claims)
            seen = self._look(claims, moving, frame)
            if image is not None and image.ndim == 3 and any(_is_noted(o.frames) for o in seen.values()):
                self._note_colours(seen, claims, image)
        new = [n for n, o in seen.items() if o.confirmed and not next(k for k in self._objects if k.id == n).confirmed]
        kept, gone = [], list(self._gone)
        for o in self._objects:
            if o.id in seen:
                kept.append(seen[o.id])
            elif o.confirmed and frame.since(o) <= min(COASTING, o.frames * interval):
                kept.append(frame.coasted(o))
            elif o.confirmed:
                gone.append(o)
        self._objects, self._gone = kept, [o for o in gone if frame.since(o) <= REMEMBERED]
        for number in new:
            self._recognise(number, frame)
        known = {o.id for o in (*self._objects, *self._gone)}
        self._area = {o.id: self._area.get(o.id, 0) for o in self._objects}
        self._colours = {n: colours for n, colours in self._colours.items() if n in known}

    def _note_colours(self, seen: dict[int, MovingObject], claims: _Claims, image: NDArray[np.uint8]) -> None:
        """Keeps the shares (SHADES ** 3,) of an image's colours on each object that is seen."""
        pixels = claims.pixels
        own = np.flatnonzero(pixels.inner & (claims.owner >= 0))
        row, column = np.divmod(pixels.index[own], pixels.camera.width)
        row, column = row * image.shape[0] // pixels.camera.height, column * image.shape[1] // pixels.camera.width
        shade = image[row, column] // (256 // SHADES)
        code = shade @ np.array([SHADES**2, SHADES, 1]) + SHADES**3 * claims.owner[own]
        counts = np.bincount(code, minlength=SHADES**3 * len(claims.numbers)).reshape(-1, SHADES**3)
        for number, count in zip(claims.numbers, counts, strict=True):
            if number in seen and _is_noted(seen[number].frames):
                shares = count / count.sum()
                before = self._colours.get(number, shares)
                self._colours[number] = before + (shares - before) / min(seen[number].frames, MEMORY)

    def _recognise(self, number: int, frame: _Frame) -> None:
        """Gives an object that has just been confirmed the number of the one that was out of sight, if it is that.

        The frame of the latter has turned meanwhile, by how much is not told: it goes on as it would have by now, about
        the middle of what is seen.
        """
        (new,) = (o for o in self._objects if o.id == number)
        others = [o for o in (*self.objects, *self._gone) if o is not new and {number, o.id} <= self._colours.keys()]
        odds = {o.id: frame.nearness(o, new) + _similarity(self._colours[number], self._colours[o.id]) for o in others}
        best = max(others, key=lambda o: odds[o.id], default=new)
        # It may be something new, another one, or part of something in sight.
        rivals = 1 + sum(math.exp(odds[o.id]) for o in others if o is not best)
        if best is new or best.seen == frame.stamp or odds[best.id] < math.log(rivals):
            return
        self._objects = [_returned(best, new) if o is new else o for o in self._objects if o is not best]
        self._gone = [o for o in self._gone if o is not best]
        self._beliefs[best.id] = self._beliefs.pop(number)
        self._area[best.id] = self._area.pop(number)
        self._colours[best.id] = self._colours.pop(number)
        self._alike = {pair: n for pair, n in self._alike.items() if number not in pair}

    def _follow(self, claims: _Claims, former: dict[int, Array], moving: Moving, frame: _Frame) -> None:
        """Carries the beliefs of known objects to the next frame, and refines their motions."""
        pixels = claims.pixels
        known = [o for o in self._objects if o.id in former and former[o.id].shape == moving.logit.shape]
        if not known:
            return
        carried = np.stack([former[o.id].take(pixels.origin) for o in known])
        carried = np.where(pixels.origin >= 0, (1 - FADING) * carried, np.float32(0))
        groups = _groups(_owner(carried), pixels.inner, len(known))
        kept = [k for k, group in enumerate(groups) if len(group) >= LEAST_SAMPLES]
        if not kept:
            return
        known, carried, groups = [known[k] for k in kept], carried[kept], [groups[k] for k in kept]
        _, starts, unsure = frame.foresee(known)
        samples = Samples.of(pixels, groups, moving)
        motions, covariances = fit_motions(pixels.camera, samples, starts, np.linalg.inv(unsure))
        squared = pixels.squared(motions)
        belief = carried + _evidence(pixels, squared, groups, pixels.around(carried > 0, REACH))
        claims.add([o.id for o in known], motions, covariances, squared, belief)

    def _discover(self, claims: _Claims, moving: Moving, frame: _Frame) -> None:
        """Looks for new motions in what no object explains, and for missed objects that they may be."""
        pixels = claims.pixels
        self._resting = max(self._resting - 1, 0)
        for _ in range(PROPOSALS if self._resting == 0 else 0):
            free = pixels.inner & pixels.moves & (claims.owner < 0)
            region = _pick(pixels.image(free), self._random)
            if region is None:
                return
            group = np.flatnonzero(region.take(pixels.index))
            misses = _middle(claims.squared[:, group])
            if _reach_over(claims, group, misses / MEDIAN_OF_THREE):
                continue
            samples = Samples.of(pixels, [group], moving)
            start = propose(pixels.camera, samples, frame.back @ frame.pose, self._random)
            prior = np.diag((_UNKNOWN_TWIST * frame.interval) ** -2.0)[None]
            motions, covariances = fit_motions(pixels.camera, samples, start[None], prior)
            squared = pixels.squared(motions)
            explained = group[squared[0, group] < OUTLIER * OUTLIER]
            # What no motion explains to within the noise is a fault of the flow, or not rigid.
            if 2 * len(explained) < len(group) or _middle(squared[0, explained]) > MEDIAN_OF_THREE:
                self._resting = RESTING
                return
            miss = se3.log(motions @ se3.inverse(claims.motions))
            if _reach_over(claims, explained, _squared(miss, claims.covariances + covariances) / UNLIKELY):
                continue
            points = pixels.points(even([explained])[0])
            near = pixels.around(pixels.flags(explained)[None], REACH)
            belief = _evidence(pixels, squared, [explained], near)
            mask = pixels.image((belief[0] > 0) & (claims.owner < 0))
            number = self._known_again(claims, mask, points, motions[0], covariances[0], moving, frame)
            if number is None:
                number, self._next = self._next, self._next + 1
                self._objects.append(_born(number, points, frame.before @ motions[0], frame.stamp))
            claims.add([number], motions, covariances, squared, belief)

    def _remember(self, claims: _Claims, moving: Moving, frame: _Frame) -> None:
        """Gives what is not confirmed yet the number of the missed object that it turns out to be."""
        known = {o.id: o for o in self._objects}
        for k, number in enumerate(claims.numbers):
            if known[number].frames == 0 or known[number].confirmed:
                continue
            own = claims.owner == k
            if not own.any():
                continue
            points, mask = claims.pixels.points(even([np.flatnonzero(own)])[0]), claims.pixels.image(own)
            again = self._known_again(claims, mask, points, claims.motions[k], claims.covariances[k], moving, frame)
            if again is not None:
                claims.numbers[k] = again
                self._objects = [o for o in self._objects if o.id != number]

    def _known_again(
        self,
        claims: _Claims,
        mask: Array,
        points: Array,
        motion: Array,
        covariance: Array,
        moving: Moving,
        frame: _Frame,
    ) -> int | None:
        """Returns the number of the missed object that something new is: the likeliest that can go as it does."""
        missed = [o for o in self._objects if o.id not in claims.numbers]
        if not missed:
            return None
        local, expected, unsure = frame.foresee(missed)
        miss = se3.log(motion @ se3.inverse(expected))
        far = _squared(miss, unsure + covariance)
        likeness = [
            _likeness(o, mask, moving, se3.act(place, points)) if distance < UNLIKELY else 0.0
            for o, place, distance in zip(missed, local, far, strict=True)
        ]
        best = max(range(len(missed)), key=likeness.__getitem__)
        return missed[best].id if likeness[best] > OVERLAP else None

    def _unite(self, claims: _Claims) -> None:
        """Makes one of two objects that have gone as one for a while; the one of which more has been seen stays."""
        alike: dict[tuple[int, int], int] = {}
        groups = claims.groups
        by_size = sorted((k for k, group in enumerate(groups) if len(group)), key=lambda k: len(groups[k]))
        for rank, smaller in enumerate(by_size[:-1]):
            misses = _middle(claims.squared[:, groups[smaller]])
            explained = max(WORSE * misses[smaller], MEDIAN_OF_THREE)
            for larger in by_size[rank + 1 :]:
                if misses[larger] < explained and _beside(claims.pixels, groups[smaller], groups[larger]):
                    pair = claims.numbers[smaller], claims.numbers[larger]
                    alike[pair] = 1 + max(self._alike.get(pair, 0), self._alike.get(pair[::-1], 0))
        self._alike = alike
        for pair, frames in alike.items():
            ages = [o.frames for o in self._objects if o.id in pair]
            if len(ages) == 2 and frames >= max(CONFIRMED, ALIKE * min(ages)):
                told = {o.id for o in self.objects}
                stays, goes = sorted(pair, key=lambda n: (n not in told, -self._area.get(n, 0)))
                claims.unite(*pair, stays)
                self._objects = [o for o in self._objects if o.id != goes]

    def _undecided(self, claims: _Claims, row: int) -> bool:
        """Tells whether an object may go along with one beside it that has been seen for longer."""
        ages, groups = {o.id: o.frames for o in self._objects}, claims.groups
        miss = se3.log(claims.motions[row] @ se3.inverse(claims.motions))
        far = _squared(miss, claims.covariances + claims.covariances[row])
        return any(
            far[k] < UNLIKELY and ages[number] > ages[claims.numbers[row]] and len(groups[k])
            and _beside(claims.pixels, groups[row], groups[k])
            for k, number in enumerate(claims.numbers)
        )  # fmt: skip

    def _look(self, claims: _Claims, moving: Moving, frame: _Frame) -> dict[int, MovingObject]:
        """Returns the objects that are seen after one more frame, by number, and keeps what is believed of them."""
        pixels, groups = claims.pixels, claims.groups
        rows = [k for k, group in enumerate(groups) if len(group) >= LEAST_SAMPLES]
        if not rows:
            return {}
        by_number = {o.id: o for o in self._objects}
        known = [by_number[claims.numbers[k]] for k in rows]
        points = pixels.points(even([groups[k] for k in rows]))
        own = claims.owner == np.array(rows)[:, None]
        # What goes along with another is a thing of its own only once it has gone its own way.
        along = {min(pair, key=lambda n: by_number[n].frames) for pair in self._alike if by_number.keys() >= set(pair)}
        along |= {o.id for k, o in zip(rows, known, strict=True) if not o.confirmed and self._undecided(claims, k)}
        found = frame.seen(
            known, claims.motions[rows], claims.covariances[rows], points, pixels.image(own),
            [o.id not in along for o in known],
        )  # fmt: skip
        for o, belief, area in zip(found, pixels.image(claims.odds[rows]), own.sum(1), strict=True):
            self._beliefs[o.id] = belief
            self._area[o.id] = self._area.get(o.id, 0) + int(area)
        return {o.id: o for o in found}


def _reach_over(claims: _Claims, group: Array, apart: Array) -> bool:
    """Gives pixels, an index (M,), to the object beside them whose motion is theirs; tells whether there is one.

    What hides the middle of a thing, or does not show that it moves, parts it in two.

    Args:
        claims: Those of K objects.
        group: The pixels.
        apart: (K,) how far their motion is from each object's, one being too far.
    """
    pixels, groups = claims.pixels, claims.groups
    for k in np.argsort(apart):
        if apart[k] < 1 and len(groups[k]) and _beside(pixels, group, groups[k]):
            near = pixels.around(pixels.flags(group)[None], REACH)
            claims.raise_belief(k, _evidence(pixels, claims.squared[k : k + 1], [groups[k]], near)[0])
            return True
    return False


def _squared(values: Array, covariances: Array) -> Array:
    """Returns the (K,) squared Mahalanobis lengths of values (K, D) with covariances (K, D, D)."""
    return (values[..., None] * np.linalg.solve(covariances, values[..., None])).sum((1, 2))


def _is_moving(twist: Tensor, covariance: Tensor) -> bool:
    """Tells whether the velocity of a twist (6,) with its covariance (6, 6) is beyond its noise."""
    velocity, unsure = twist[None, :3].numpy(), covariance[None, :3, :3].numpy()
    return bool(_squared(velocity, unsure)[0] > SIGNIFICANT_SPEED**2)


def _similarity(a: Array, b: Array) -> float:
    """Returns the log odds, by shares of colours (SHADES ** 3,), that they are those of two sights of one object."""
    unlike = 1 - float(np.sqrt(a * b).sum())
    return LOOKS * math.log(UNLIKE / max(unlike, LEAST_UNLIKE))


def _is_noted(frames: int) -> bool:
    """Tells whether a frame is looked at for the colours of an object that has been seen in so many."""
    return frames <= MEMORY or frames % GLIMPSES == 0


def _middle(values: Array) -> Array:
    """Returns the medians (...) of values (..., N), the upper one of two."""
    middle = values.shape[-1] // 2
    return np.partition(values, middle, axis=-1)[..., middle]


def _stack(values: Iterable[Tensor]) -> Array:
    """Returns tensors of one size as one array."""
    return np.stack([v.numpy() for v in values])


def _deviation(pair: tuple[float, float]) -> Array:
    """Returns the (6,) deviations of a twist, from those of its linear and its angular part."""
    return np.repeat(pair, 3)


_ACCELERATION, _UNKNOWN_TWIST = _deviation(ACCELERATION), _deviation(UNKNOWN_TWIST)


def _evidence(pixels: MovingPixels, squared: Array, groups: Sequence[Array], near: Array) -> Array:
    """Weighs how well motions explain pixels.

    Args:
        pixels: N pixels.
        squared: (K, N) by how much they miss the motions.
        groups: K indices of the pixels whose scatter is each motion's own.
        near: (K, N) bool, the pixels that each may claim.

    Returns:
        (K, N) log likelihood ratios of going with an object to going with none, shared with neighbours.
    """
    own = _middle(squared[np.arange(len(squared))[:, None], even(groups)])
    scale = (own / MEDIAN_OF_THREE).clip(1.0, MOST_SCATTER)[:, None]
    evidence = (0.5 * (OUTLIER * OUTLIER - squared / scale)).clip(min=LEAST_EVIDENCE)
    told = pixels.usable.astype(np.float32)
    layers = pixels.image(np.concatenate((np.where(near, evidence, LEAST_EVIDENCE) * told, told[None])))
    shared = np.stack([cv2.blur(layer, (BLUR, BLUR)).take(pixels.index) for layer in layers])
    return shared[:-1] / shared[-1].clip(min=0.1)


_STRIP = np.ones((STRIP + 1, STRIP + 1), dtype=np.uint8)


def _is_thing(mask: Array) -> bool:
    """Tells whether a mask (H, W) is more than strips, see ``_pick``."""
    return bool(cv2.erode(mask.astype(np.uint8), _STRIP).any())


def _pick(mask: Array, random: np.random.Generator) -> Array | None:
    """Returns one (H, W) bool connected region of a mask (H, W) that is no mere strip, None where all are strips.

    Flow bleeds over the edges of things by half of its patch: what is no wider tells of no motion of its own. Chance
    picks the region, by its size, so that one that no motion explains does not stand before others for ever.
    """
    thick = cv2.erode(mask.astype(np.uint8), _STRIP)
    if not thick.any():
        return None
    _, labels, stats, _ = cv2.connectedComponentsWithStats(thick, connectivity=4)
    area = stats[1:, cv2.CC_STAT_AREA]
    chosen = 1 + random.choice(len(area), p=area / area.sum())
    return mask & (cv2.dilate((labels == chosen).astype(np.uint8), _STRIP) > 0)


def _beside(pixels: MovingPixels, a: Array, b: Array) -> bool:
    """Tells whether the boxes of two groups of pixels, indices (N,) and (M,), (nearly) touch."""
    (low_a, high_a), (low_b, high_b) = _extent(pixels.points(even((a, b))))
    gap = np.maximum(low_a - high_b, low_b - high_a).max()
    return bool(gap < BESIDE / _middle(pixels.rho[a]))


def _born(number: int, points: Array, back: Array, stamp: int) -> MovingObject:
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
        twist_covariance=torch.from_numpy(np.diag(_UNKNOWN_TWIST**2)),
        box=torch.from_numpy(_extent(was - middle)),
        frames=0,
        confirmed=False,
        seen=stamp,
        stamp=stamp,
        trail=torch.from_numpy(middle[None]),
        mask=None,
    )


def _returned(known: MovingObject, new: MovingObject) -> MovingObject:
    """Returns an object that was out of sight, as what is seen of it shows it."""
    pose = known.pose.clone()
    pose[:3, 3] = new.centre - pose[:3, :3] @ known.box.mean(0)
    turn = se3.adjoint(se3.inverse(pose) @ new.pose)
    unsure = torch.diag(torch.cat((known.extent, torch.ones(3, dtype=torch.float64))) ** 2)
    return replace(
        new, id=known.id, pose=pose, covariance=known.covariance + unsure, box=known.box, twist=turn @ new.twist,
        twist_covariance=turn @ new.twist_covariance @ turn.T, frames=known.frames + new.frames,
        trail=torch.cat((known.trail, new.trail))[-TRAIL:],
    )  # fmt: skip


def _likeness(known: MovingObject, mask: Array, moving: Moving, local: Array) -> float:
    """Returns how far (0 to 1) something new is a missed object: by its pixels, or by its place.

    Args:
        known: The object, as of the frame before.
        mask: (H, W) bool pixels of what is new.
        moving: Where they were.
        local: (N, 3) points on it, in the object's frame as expected.
    """
    assert moving.stories is not None
    margin, (low, high) = 0.25 * float(known.extent.norm()), known.box.numpy()
    placed = 0.9 * float(((local > low - margin) & (local < high + margin)).all(-1).mean())
    if known.mask is None or known.mask.shape != mask.shape:
        return placed
    carried = known.mask.take(moving.stories.at[0])
    return max(placed, float((carried & mask).sum() / max((carried | mask).sum(), 1)))


def _extent(points: Array) -> Array:
    """Returns the (..., 2, 3) least and greatest coordinates of (..., N, 3) points, without the outermost."""
    last = points.shape[-2] - 1
    ends = round(0.02 * last), last - round(0.02 * last)
    return np.partition(points, ends, axis=-2)[..., ends, :]


def label(objects: Iterable[MovingObject], camera: PinholeCamera, size: tuple[int, int]) -> NDArray[np.int32]:
    """Returns the (H, W) numbers of the objects that pixels of an image of ``size`` belong to, 0 for none.

    Args:
        objects: Objects, those seen now on one grid.
        camera: Camera of that grid.
        size: Height and width of the image.
    """
    numbers = np.zeros((camera.height, camera.width), dtype=np.int32)
    for known in objects:
        if known.mask is not None:
            numbers[known.mask] = known.id
    rows = (np.arange(size[0]) * camera.height) // size[0]
    columns = (np.arange(size[1]) * camera.width) // size[1]
    return np.ascontiguousarray(numbers[rows[:, None], columns])
