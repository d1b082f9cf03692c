"""How far covariances can be believed, by what is met when the camera looks back at where it has been.

A fit knows how its matches scatter, not what they have in common from frame to frame: a shutter that rolls otherwise
than it is taken to, blur, a lens that is off. That shows where the camera comes back: what it misses by then, in
deviations as they were told, is one on average where they are honest. Where it is more, all are widened by as much.

Source: Mehra, "On the identification of variances and adaptive Kalman filtering" (1970); Bar-Shalom, Li and
Kirubarajan, "Estimation with Applications to Tracking and Navigation" (2001), section 5.4, for normalised innovations.
"""

from __future__ import annotations

from dataclasses import dataclass

EXPECTED = 10.0
"""As how many innovations what was believed before counts, at least, and ..."""

REMEMBERED = 40.0
"""... at most: cameras come to where they are better or worse known."""

WILD = 25.0
"""Most squared deviations, per part, that one innovation counts for."""


@dataclass(frozen=True)
class Innovations:
    """What looks back have told so far.

    Attributes:
        factor: By how much covariances, as the fits alone have them, are to be widened, at least one.
        count: Looks back that told it.
    """

    factor: float = 1.0
    count: int = 0

    def learn(self, squared: float) -> Innovations:
        """Returns what is known after one more.

        Args:
            squared: Squared deviations, widened by ``factor`` already, by which a look back missed the six parts of the
                pose that was expected.
        """
        before = min(EXPECTED + self.count, REMEMBERED)
        grown = (before + min(squared / 6, WILD)) / (before + 1)
        return Innovations(max(1.0, self.factor * grown), self.count + 1)

    @property
    def verdict(self) -> str:
        """What is known, in words."""
        return f"deviations {self.factor**0.5:.1f} times those of the fits, by {self.count} looks back"
