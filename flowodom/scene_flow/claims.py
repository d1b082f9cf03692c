"""Which pixels go with which objects: beliefs, weighed by how well each object's motion explains each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from flowodom.registration.refine import OUTLIER
from flowodom.scene_flow.grids import Array, median
from flowodom.scene_flow.motions import MovingPixels, even
from flowodom.scene_flow.moving import MOST_LOGIT
from flowodom.scene_flow.objects import extent_of

STRIP = 3
"""Width, pixels of the grid, up to which a strip is a fault of the flow beside an edge."""

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


@dataclass
class Claims:
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
    def none(cls, pixels: MovingPixels) -> Claims:
        """Returns the claims of nobody."""
        motions, covariances = (np.zeros((0, n, n)) for n in (4, 6))
        empty = np.zeros((0, len(pixels)), dtype=np.float32)
        return cls(pixels, [], motions, covariances, empty, empty, owner_of(empty))

    def add(self, numbers: Sequence[int], motions: Array, covariances: Array, squared: Array, belief: Array) -> None:
        """Adds claims of more objects."""
        self.numbers += numbers
        self.motions = np.concatenate((self.motions, motions))
        self.covariances = np.concatenate((self.covariances, covariances))
        self.squared = np.concatenate((self.squared, squared))
        self.belief = np.concatenate((self.belief, belief))
        self.owner = owner_of(self.belief)

    def raise_belief(self, row: int, belief: Array) -> None:
        """Lets the object of a row claim pixels with a belief (N,) where it is greater than its own."""
        self.belief[row] = np.maximum(self.belief[row], belief)
        self.owner = owner_of(self.belief)

    def drop(self, numbers: Sequence[int]) -> None:
        """Takes back the claims of objects."""
        keep = [k for k, number in enumerate(self.numbers) if number not in numbers]
        self.numbers = [self.numbers[k] for k in keep]
        self.motions, self.covariances = self.motions[keep], self.covariances[keep]
        self.squared, self.belief = self.squared[keep], self.belief[keep]
        self.owner = owner_of(self.belief)

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
        return groups_of(self.owner, self.pixels.inner, len(self.numbers))

    @property
    def odds(self) -> Array:
        """(K, N) log odds that a pixel goes with an object rather than with the likeliest other, or with none."""
        none = np.zeros_like(self.belief[:1])
        above = np.maximum.accumulate(np.concatenate((none, self.belief[:-1])))
        below = np.maximum.accumulate(np.concatenate((none, self.belief[:0:-1])))[::-1]
        return (self.belief - np.maximum(above, below)).clip(-MOST_LOGIT, MOST_LOGIT)


def owner_of(belief: Array) -> Array:
    """Returns the (N,) row of the greatest positive of beliefs (K, N), -1 where none is positive."""
    if not len(belief):
        return np.full(belief.shape[1:], -1)
    return np.where(belief.max(0) > 0, belief.argmax(0), -1)


def groups_of(owner: Array, among: Array, count: int) -> list[Array]:
    """Returns the indices of the pixels ``among`` (N,) bool that belong to each of so many rows, by ``owner`` (N,)."""
    return [np.flatnonzero((owner == k) & among) for k in range(count)]


def likelihoods(pixels: MovingPixels, squared: Array, groups: Sequence[Array], near: Array) -> Array:
    """Weighs how well motions explain pixels.

    Args:
        pixels: N pixels.
        squared: (K, N) by how much they miss the motions.
        groups: K indices of the pixels whose scatter is each motion's own.
        near: (K, N) bool, the pixels that each may claim.

    Returns:
        (K, N) log likelihood ratios of going with an object to going with none, shared with neighbours.
    """
    own = median(squared[np.arange(len(squared))[:, None], even(groups)])
    scale = (own / MEDIAN_OF_THREE).clip(1.0, MOST_SCATTER)[:, None]
    evidence = (0.5 * (OUTLIER * OUTLIER - squared / scale)).clip(min=LEAST_EVIDENCE)
    told = pixels.usable.astype(np.float32)
    layers = pixels.image(np.concatenate((np.where(near, evidence, LEAST_EVIDENCE) * told, told[None])))
    shared = np.stack([cv2.blur(layer, (BLUR, BLUR)).take(pixels.index) for layer in layers])
    return shared[:-1] / shared[-1].clip(min=0.1)


def reach_over(claims: Claims, group: Array, apart: Array) -> bool:
    """Gives pixels, an index (M,), to the object beside them whose motion is theirs; tells whether there is one.

    What hides the middle of a thing, or does not show that it moves, parts it in two.

    Args:
        claims: Those of K objects.
        group: The pixels.
        apart: (K,) how far their motion is from each object's, one being too far.
    """
    pixels, groups = claims.pixels, claims.groups
    for k in np.argsort(apart):
        if apart[k] < 1 and len(groups[k]) and beside(pixels, group, groups[k]):
            near = pixels.around(pixels.flags(group)[None], REACH)
            claims.raise_belief(k, likelihoods(pixels, claims.squared[k : k + 1], [groups[k]], near)[0])
            return True
    return False


def beside(pixels: MovingPixels, a: Array, b: Array) -> bool:
    """Tells whether the boxes of two groups of pixels, indices (N,) and (M,), (nearly) touch."""
    (low_a, high_a), (low_b, high_b) = extent_of(pixels.points(even((a, b))))
    gap = np.maximum(low_a - high_b, low_b - high_a).max()
    return bool(gap < BESIDE / median(pixels.rho[a]))


_STRIP = np.ones((STRIP + 1, STRIP + 1), dtype=np.uint8)


def _is_thing(mask: Array) -> bool:
    """Tells whether a mask (H, W) is more than strips, see ``pick``."""
    return bool(cv2.erode(mask.astype(np.uint8), _STRIP).any())


def pick(mask: Array, random: np.random.Generator) -> Array | None:
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
