"""Which depth a configuration asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from flowodom import weights
from flowodom.config import DepthConfig
from flowodom.depth import DepthSource
from flowodom.depth.field import FieldDepth, FieldNetwork, load_field
from flowodom.depth.filter import FilterDepth
from flowodom.depth.fusion import FusedDepth
from flowodom.depth.sensor import SensorDepth


def find_field(config: DepthConfig) -> FieldNetwork | None:
    """Returns the single-image field that ``auto`` uses: the configured one, else the one that is shipped, if any.

    Raises:
        WeightsError: The configured file is missing, damaged or no field's.
    """
    if config.source != "auto":
        return None
    path = Path(config.field) if config.field else weights.shipped("field")
    return None if path is None else load_field(path)


def choose_depth(
    config: DepthConfig, network: FieldNetwork | None, *, with_sensor: bool, device: torch.device | str = "cpu"
) -> DepthSource:
    """Returns the source of depth for frames like the first one.

    Args:
        config: Parameters.
        network: As ``find_field`` returns it.
        with_sensor: Whether the first frame carries depth.
        device: Torch device of the fields.
    """
    sensor = SensorDepth(config, device) if config.source == "sensor" or with_sensor else None
    if config.source == "auto" and network is not None:
        return FusedDepth(FieldDepth(network, device), sensor, device)
    if sensor is not None and config.source != "filter":
        return sensor
    return FilterDepth(device)
