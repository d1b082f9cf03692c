"""Dense optical flow: one class a method behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class FlowField(Protocol):
    """Flow between two images, both ways, with its uncertainty.

    Only ``rough`` is there at once; a method may leave the rest until somebody asks for it.
    """

    def begin(self) -> None:
        """Starts, in the background, what somebody is going to ask for."""
        ...

    @property
    def rough(self) -> Tensor:
        """(H, W, 2) float32, pixels: the forward flow to a pixel or two, a start for who polishes points himself."""
        ...

    @property
    def forward(self) -> Tensor:
        """(H, W, 2) float32, pixels (u, v), from the previous image to the current one."""
        ...

    @property
    def backward(self) -> Tensor:
        """(H, W, 2) float32, pixels, from the current image to the previous one."""
        ...

    @property
    def forward_variance(self) -> Tensor:
        """(H, W) float32, pixels squared, per component."""
        ...

    @property
    def backward_variance(self) -> Tensor:
        """(H, W) float32, pixels squared, per component."""
        ...


@dataclass(frozen=True)
class DenseFlow:
    """A ``FlowField`` of which everything is known at once.

    Attributes:
        forward: See ``FlowField``, as for the others.
        backward: (H, W, 2) float32, pixels.
        forward_variance: (H, W) float32, pixels squared.
        backward_variance: (H, W) float32, pixels squared.
    """

    forward: Tensor
    backward: Tensor
    forward_variance: Tensor
    backward_variance: Tensor

    def begin(self) -> None:
        """Has nothing to do."""

    @property
    def rough(self) -> Tensor:
        """The forward flow."""
        return self.forward


class FlowMethod(Protocol):
    """Anything that finds dense optical flow between two images."""

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> FlowField:
        """Finds the flow between two images.

        Args:
            previous: (H, W) uint8 grey image.
            current: (H, W) uint8 grey image.
            initial: (H, W, 2) float32 guess of the forward flow, pixels; None for none.

        Returns:
            The flow at the size of the images, on their device.

        Raises:
            ShapeError: The images differ in size, or are not grey uint8.
        """
        ...
