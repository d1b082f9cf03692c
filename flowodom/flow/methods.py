"""Which flow a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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


def _weights(config: FlowConfig, shipped: str) -> Path:
    """Returns the file that the configuration names, or the one that ships.

    Raises:
        WeightsError: It names none and none ships.
    """
    path = Path(config.weights).expanduser() if config.weights else weights.shipped(shipped)
    if path is None:
        raise WeightsError(
            f"no weights come with flowodom for flow.method={config.method}; name a file in flow.weights, "
            "published or made by `flowodom train flow`"
        )
    return path


def _raft(config: FlowConfig) -> FlowMethod:
    return RaftFlow(load_raft(_weights(config, "raft_small")), updates=config.updates)


def _refined(config: FlowConfig) -> FlowMethod:
    return RefinedFlow(load_refiner(_weights(config, "refiner")))


METHODS: dict[str, Callable[[FlowConfig], FlowMethod]] = {
    "dis": lambda _: DisFlow(),
    "lucas_kanade": lambda _: LucasKanadeFlow(),
    "horn_schunck": lambda _: HornSchunckFlow(),
    "raft": _raft,
    "refined": _refined,
}
"""Every value of the ``flow.method`` parameter."""


def make_flow(config: FlowConfig) -> FlowMethod:
    """Returns the flow method that a configuration asks for.

    Raises:
        ConfigError: There is no such method.
        WeightsError: It is a network, and its weights are missing or unfit.
    """
    if config.method not in METHODS:
        raise ConfigError(f"flow.method must be one of {', '.join(METHODS)}, got {config.method!r}")
    return METHODS[config.method](config)
