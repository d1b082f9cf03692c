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
from flowodom.depth.published import PREFIX, PublishedDepth
from flowodom.depth.sensor import SensorDepth


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


def choose_depth(
    config: DepthConfig, field: SingleImage | None, *, with_sensor: bool, device: torch.device | str = "cpu"
) -> DepthSource:
    """Returns the source of depth for frames like the first one.

    Args:
        config: Parameters.
        field: As ``find_field`` returns it.
        with_sensor: Whether the first frame carries depth.
        device: Torch device of the fields.
    """
    if config.source == "filter" or (config.source == "auto" and not with_sensor and field is None):
        return FilterDepth(device)
    sensor = SensorDepth(config, device) if with_sensor or config.source == "sensor" else None
    # A depth camera hardly needs help, and a shipped field must not slow it down; one that was asked for may.
    if field is None or (sensor is not None and not config.field):
        assert sensor is not None
        return sensor
    return FusedDepth(field, sensor, device)
