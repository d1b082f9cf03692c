"""Every error that flowodom raises on purpose.

One root, one class for each thing a user can mend. A message says what was expected, what came instead, and what to do.
"""


class FlowodomError(Exception):
    """Root of all errors raised by flowodom."""


class ConfigError(FlowodomError):
    """A parameter is unknown, of the wrong type or out of its range."""


class BagError(FlowodomError):
    """A recording cannot be opened, has no usable topic, or cannot be written."""


class MessageError(FlowodomError):
    """One message cannot be used: unknown encoding, wrong size, truncated data."""


class CalibrationError(FlowodomError):
    """A camera calibration is missing, empty or of an unsupported distortion model."""


class WeightsError(FlowodomError):
    """A file of weights is missing, damaged or of another network."""


class DeviceError(FlowodomError):
    """The device has too little memory for the work, even at the least size."""


class FrameError(FlowodomError):
    """A coordinate frame is unknown, or the tree of frames contradicts itself."""


class TrajectoryError(FlowodomError):
    """A trajectory file is malformed, or two trajectories cannot be compared."""


class ShapeError(FlowodomError, ValueError):
    """A tensor or image has the wrong shape, size or dtype."""
