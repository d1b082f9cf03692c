"""Which depth a configuration asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from flowodom import weights
from flowodom.config import DepthConfig
from flowodom.depth import DepthSource
from flowodom.depth.field import FieldDepth, load_field
from flowodom.depth.filter import FilterDepth
from flowodom.depth.fusion import FusedDepth, SingleImage
from flowodom.depth.measured import MeasuredDepth
from flowodom.depth.published import PREFIX, PublishedDepth
from flowodom.depth.sensor import SensorDepth
from flowodom.depth.stereo import StereoDepth
from flowodom.frame import Frame


def field_file(config: DepthConfig) -> Path | None:
    """Returns the file of the field's weights: the configured one, else the one that is shipped, if any."""
    return Path(config.field) if config.field else weights.shipped("field")


def find_field(config: DepthConfig, device: torch.device | str = "cpu") -> SingleImage | None:
    """Returns what tells ``auto`` depth from a single image; None where there is nothing.

    Raises:
        ConfigError: A published network is asked for and cannot be used.
        WeightsError: The configured file is missing, damaged or no field's.
    """
    if config.source != "auto":
        return None
    if config.field.startswith(PREFIX):
        return PublishedDepth(config.field.removeprefix(PREFIX), device)
    path = field_file(config)
    return None if path is None else FieldDepth(load_field(path), device)


def measures(config: DepthConfig, frame: Frame) -> bool:
    """Tells whether a frame carries depth in metres, or the other eye's image that tells it, and it is asked for."""
    if config.source == "auto":
        return frame.depth is not None or frame.other is not None
    return config.source == "sensor" and frame.depth is not None


def choose_depth(
    config: DepthConfig, field: SingleImage | None, first: Frame, device: torch.device | str = "cpu"
) -> DepthSource:
    """Returns the source of depth for frames like the first one.

    Args:
        config: Parameters.
        field: As ``find_field`` returns it.
        first: The first frame.
        device: Torch device of the fields.
    """
    measured: MeasuredDepth | None = None
    if config.source == "sensor" or measures(config, first):
        stereo = config.source == "auto" and first.depth is None
        measured = StereoDepth(config, device) if stereo else SensorDepth(config, device)
    if measured is None and field is None:
        return FilterDepth(device)
    # What is measured hardly needs help, and a shipped field must not slow it down; one that was asked for may.
    if field is None or (measured is not None and not config.field):
        assert measured is not None
        return measured
    return FusedDepth(field, measured, device)
