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
objects with poses of their own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import se3
from flowodom.registration.refine import OUTLIER
from flowodom.scene_flow.claims import (
    MEDIAN_OF_THREE,
    REACH,
    Claims,
    beside,
    groups_of,
    likelihoods,
    owner_of,
    pick,
    reach_over,
)
from flowodom.scene_flow.grids import Array, median
from flowodom.scene_flow.kinematics import CONFIRMED, UNKNOWN_TWIST, Transition, born, mahalanobis
from flowodom.scene_flow.motions import LEAST_SAMPLES, MovingPixels, Samples, even, fit_motions, propose
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.objects import MovingObject
from flowodom.scene_flow.recognition import MEMORY, colours, is_noted, nearness, overlap, returned, similarity

PROPOSALS = 3
"""Most new motions that are looked for in a frame."""

FADING = 0.02
"""Share of the beliefs that gets lost from one frame to the next."""

RESTING = 3
"""Frames for which nothing new is looked for after a search was in vain."""

WORSE = 1.5
"""By how much, squared, the pixels of an object may miss another's motion more than their own for both to be one."""

ALIKE = 0.5
"""Share of the younger one's life for which two objects must have gone as one to be one."""

OVERLAP = 0.2
"""Share of the pixels or of the place of a missed object that a new motion must have to be that object."""

UNLIKELY = 22.5
"""Squared Mahalanobis distance of two motions beyond which they are not one: a thousandth of the chi-square of six."""

COASTING = 1.0
"""Seconds for which a confirmed object goes on unseen."""

REMEMBERED = 3.0
"""Seconds for which an object that is out of sight can be known again by its place and its colours."""


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
        frame = Transition(pose.numpy(), pose.numpy() @ se3.inverse(motion.numpy()), stamp, interval)
        seen: dict[int, MovingObject] = {}
        image = image if image is not None and image.ndim == 3 else None
        self._beliefs, former = {}, self._beliefs
        if moving is not None and moving.stories is not None and moving.past is not None:
            claims = Claims.none(MovingPixels.of(moving))
            self._follow(claims, former, moving, frame)
            self._discover(claims, moving, frame, image)
            claims.drop_strips()
            self._remember(claims, moving, frame, image)
            self._unite(claims)
            seen = self._look(claims, moving, frame)
            if image is not None and any(is_noted(o.frames) for o in seen.values()):
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

    def _note_colours(self, seen: dict[int, MovingObject], claims: Claims, image: NDArray[np.uint8]) -> None:
        """Keeps the shares (SHADES ** 3,) of an image's colours on each object that is seen."""
        for number, group in zip(claims.numbers, claims.groups, strict=True):
            if number in seen and is_noted(seen[number].frames):
                shares = colours(claims.pixels, group, image)
                before = self._colours.get(number, shares)
                self._colours[number] = before + (shares - before) / min(seen[number].frames, MEMORY)

    def _recognise(self, number: int, frame: Transition) -> None:
        """Gives an object that has just been confirmed the number of the one that was out of sight, if it is that.

        The frame of the latter has turned meanwhile, by how much is not told: it goes on as it would have by now, about
        the middle of what is seen.
        """
        (new,) = (o for o in self._objects if o.id == number)
        # What goes along with one in sight has not been confirmed.
        missed = [o for o in (*self.objects, *self._gone) if o.seen < frame.stamp]
        others = [o for o in missed if {number, o.id} <= self._colours.keys()]
        odds = {
            o.id: nearness(o, new, frame.since(o)) + similarity(self._colours[number], self._colours[o.id])
            for o in others
        }
        best = max(others, key=lambda o: odds[o.id], default=new)
        # It may be something new, or another one.
        rivals = 1 + sum(math.exp(odds[o.id]) for o in others if o is not best)
        if best is new or odds[best.id] < math.log(rivals):
            return
        self._objects = [returned(best, new) if o is new else o for o in self._objects if o is not best]
        self._gone = [o for o in self._gone if o is not best]
        self._beliefs[best.id] = self._beliefs.pop(number)
        self._area[best.id] = self._area.pop(number)
        self._colours[best.id] = self._colours.pop(number)
        self._alike = {pair: n for pair, n in self._alike.items() if number not in pair}

    def _follow(self, claims: Claims, former: dict[int, Array], moving: Moving, frame: Transition) -> None:
        """Carries the beliefs of known objects to the next frame, and refines their motions."""
        pixels = claims.pixels
        known = [o for o in self._objects if o.id in former and former[o.id].shape == moving.logit.shape]
        if not known:
            return
        carried = np.stack([former[o.id].take(pixels.origin) for o in known])
        carried = np.where(pixels.origin >= 0, (1 - FADING) * carried, np.float32(0))
        groups = groups_of(owner_of(carried), pixels.inner, len(known))
        kept = [k for k, group in enumerate(groups) if len(group) >= LEAST_SAMPLES]
        if not kept:
            return
        known, carried, groups = [known[k] for k in kept], carried[kept], [groups[k] for k in kept]
        _, starts, unsure = frame.foresee(known)
        samples = Samples.of(pixels, groups, moving)
        motions, covariances = fit_motions(pixels.camera, samples, starts, np.linalg.inv(unsure))
        squared = pixels.squared(motions)
        belief = carried + likelihoods(pixels, squared, groups, pixels.around(carried > 0, REACH))
        claims.add([o.id for o in known], motions, covariances, squared, belief)

    def _discover(self, claims: Claims, moving: Moving, frame: Transition, image: NDArray[np.uint8] | None) -> None:
        """Looks for new motions in what no object explains, and for missed objects that they may be."""
        pixels = claims.pixels
        self._resting = max(self._resting - 1, 0)
        for _ in range(PROPOSALS if self._resting == 0 else 0):
            free = pixels.inner & pixels.moves & (claims.owner < 0)
            region = pick(pixels.image(free), self._random)
            if region is None:
                return
            group = np.flatnonzero(region.take(pixels.index))
            misses = median(claims.squared[:, group])
            if reach_over(claims, group, misses / MEDIAN_OF_THREE):
                continue
            samples = Samples.of(pixels, [group], moving)
            start = propose(pixels.camera, samples, frame.back @ frame.pose, self._random)
            prior = np.diag((UNKNOWN_TWIST * frame.interval) ** -2.0)[None]
            motions, covariances = fit_motions(pixels.camera, samples, start[None], prior)
            squared = pixels.squared(motions)
            explained = group[squared[0, group] < OUTLIER * OUTLIER]
            # What no motion explains to within the noise is a fault of the flow, or not rigid.
            if 2 * len(explained) < len(group) or median(squared[0, explained]) > MEDIAN_OF_THREE:
                self._resting = RESTING
                return
            miss = se3.log(motions @ se3.inverse(claims.motions))
            if reach_over(claims, explained, mahalanobis(miss, claims.covariances + covariances) / UNLIKELY):
                continue
            points = pixels.points(even([explained])[0])
            near = pixels.around(pixels.flags(explained)[None], REACH)
            belief = likelihoods(pixels, squared, [explained], near)
            own = (belief[0] > 0) & (claims.owner < 0)
            number = self._known_again(claims, own, points, motions[0], covariances[0], moving, frame, image)
            if number is None:
                number, self._next = self._next, self._next + 1
                self._objects.append(born(number, points, frame.before @ motions[0], frame.stamp))
            claims.add([number], motions, covariances, squared, belief)

    def _remember(self, claims: Claims, moving: Moving, frame: Transition, image: NDArray[np.uint8] | None) -> None:
        """Gives what is not confirmed yet the number of the missed object that it turns out to be."""
        known = {o.id: o for o in self._objects}
        for k, number in enumerate(claims.numbers):
            if known[number].frames == 0 or known[number].confirmed:
                continue
            own = claims.owner == k
            if not own.any():
                continue
            points = claims.pixels.points(even([np.flatnonzero(own)])[0])
            motion, covariance = claims.motions[k], claims.covariances[k]
            again = self._known_again(claims, own, points, motion, covariance, moving, frame, image)
            if again is not None:
                claims.numbers[k] = again
                self._objects = [o for o in self._objects if o.id != number]

    def _known_again(
        self,
        claims: Claims,
        own: Array,
        points: Array,
        motion: Array,
        covariance: Array,
        moving: Moving,
        frame: Transition,
        image: NDArray[np.uint8] | None,
    ) -> int | None:
        """Returns the number of the missed object that something new is: the likeliest that can go as it does.

        Args:
            claims: What is seen by now.
            own: (N,) bool, the pixels of what is new.
            points: (M, 3) on it, metres, current camera.
            motion: (4, 4) ``T_previous_current`` of a camera that would go with it.
            covariance: (6, 6) of the left perturbation of that.
            moving: What moves.
            frame: The frame.
            image: (H, W, 3) uint8 RGB; None for no colours.
        """
        missed = [o for o in self._objects if o.id not in claims.numbers]
        if not missed:
            return None
        local, expected, unsure = frame.foresee(missed)
        miss = se3.log(motion @ se3.inverse(expected))
        far = mahalanobis(miss, unsure + covariance)
        mask = claims.pixels.image(own)
        looks = None if image is None else colours(claims.pixels, np.flatnonzero(own), image)
        odds: dict[int, float] = {}
        for o, place, distance in zip(missed, local, far, strict=True):
            likeness = overlap(o, mask, moving, se3.act(place, points))
            if distance < UNLIKELY and likeness > OVERLAP:
                alike = 0.0 if looks is None or o.id not in self._colours else similarity(looks, self._colours[o.id])
                odds[o.id] = math.log(likeness / OVERLAP) + alike
        best = max(odds, key=odds.__getitem__, default=None)
        return None if best is None or odds[best] < 0 else best

    def _unite(self, claims: Claims) -> None:
        """Makes one of two objects that have gone as one for a while; the one of which more has been seen stays."""
        alike: dict[tuple[int, int], int] = {}
        groups = claims.groups
        by_size = sorted((k for k, group in enumerate(groups) if len(group)), key=lambda k: len(groups[k]))
        for rank, smaller in enumerate(by_size[:-1]):
            misses = median(claims.squared[:, groups[smaller]])
            explained = max(WORSE * misses[smaller], MEDIAN_OF_THREE)
            for larger in by_size[rank + 1 :]:
                if misses[larger] < explained and beside(claims.pixels, groups[smaller], groups[larger]):
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

    def _undecided(self, claims: Claims, row: int) -> bool:
        """Tells whether an object may go along with one beside it that has been seen for longer."""
        ages, groups = {o.id: o.frames for o in self._objects}, claims.groups
        miss = se3.log(claims.motions[row] @ se3.inverse(claims.motions))
        far = mahalanobis(miss, claims.covariances + claims.covariances[row])
        return any(
            far[k] < UNLIKELY and ages[number] > ages[claims.numbers[row]] and len(groups[k])
            and beside(claims.pixels, groups[row], groups[k])
            for k, number in enumerate(claims.numbers)
        )  # fmt: skip

    def _look(self, claims: Claims, moving: Moving, frame: Transition) -> dict[int, MovingObject]:
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
