"""Which flow a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from flowodom import weights
from flowodom.config import FlowConfig
from flowodom.errors import ConfigError, WeightsError
from flowodom.flow import FlowMethod
from flowodom.flow.checkpoint import load_raft
from flowodom.flow.dis import DisFlow
from flowodom.flow.horn_schunck import HornSchunckFlow
from flowodom.flow.learned import RaftFlow, RefinedFlow
from flowodom.flow.lucas_kanade import LucasKanadeFlow
from flowodom.flow.refiner import load_refiner

NETWORKS = {"raft": "raft_small", "refined": "refiner"}
"""The methods that are networks, the best first, and what their weights are called where they come with flowodom."""


def method_for(config: FlowConfig, device: torch.device) -> str:
    """Returns the name of the method that a configuration means on a device.

    ``auto`` is the best network whose weights come with flowodom on a GPU. Elsewhere it is DIS, the only one that keeps
    up with a camera on a processor.

    Raises:
        ConfigError: There is no such method, or weights are named for one that has none.
    """
    choices = ("auto", *METHODS)
    if config.method not in choices:
        raise ConfigError(f"flow.method must be one of {', '.join(choices)}, got {config.method!r}")
    if config.weights and config.method not in NETWORKS:
        raise ConfigError(
            f"flow.weights names a file of weights, but flow.method is {config.method}; "
            f"say with flow.method={' or '.join(NETWORKS)} what is in it"
        )
    if config.method != "auto":
        return config.method
    there = (method for method, name in NETWORKS.items() if weights.shipped(name))
    return next(there, "dis") if device.type == "cuda" else "dis"


def make_flow(config: FlowConfig, device: torch.device | str = "cpu") -> FlowMethod:
    """Returns the flow method that a configuration means on a device; it works on that of the images.

    Raises:
        ConfigError: There is no such method, or weights are named for one that has none.
        WeightsError: It is a network, and its weights are missing or unfit.
    """
    return METHODS[method_for(config, torch.device(device))](config)


def _weights(config: FlowConfig, method: str) -> Path:
    """Returns the file that the configuration names, or the one that ships.

    Raises:
        WeightsError: It names none and none ships.
    """
    path = Path(config.weights).expanduser() if config.weights else weights.shipped(NETWORKS[method])
    if path is None:
        raise WeightsError(
            f"no weights come with flowodom for flow.method={method}; name a file in flow.weights, "
            "published or made by `flowodom train flow`"
        )
    return path


METHODS: dict[str, Callable[[FlowConfig], FlowMethod]] = {
    "dis": lambda _: DisFlow(),
    "lucas_kanade": lambda _: LucasKanadeFlow(),
    "horn_schunck": lambda _: HornSchunckFlow(),
    "raft": lambda config: RaftFlow(load_raft(_weights(config, "raft")), updates=config.updates),
    "refined": lambda config: RefinedFlow(load_refiner(_weights(config, "refined"))),
}
"""How each method is made; with ``auto``, every value of the ``flow.method`` parameter."""
