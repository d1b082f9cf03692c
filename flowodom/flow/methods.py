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

NETWORKS = {"raft": ("raft_small",), "refined": ("refiner",), "raft_refined": ("raft_small", "refiner")}
"""The methods that are networks, and what their weights are called where they come with flowodom. The first is the one
that ``flow.weights`` may exchange."""

SHARE = "share of dis: {}"
"""Word under which the first file of a method's weights says which share of DIS's error it makes, as measured by
``benchmarks/flow.py``."""


def method_for(config: FlowConfig, device: torch.device) -> str:
    """Returns the name of the method that a configuration means on a device.

    ``auto`` is, on a GPU, what errs least of all whose weights come with flowodom, by what was measured and written
    into their files. Elsewhere it is DIS, the only one that keeps up with a camera on a processor.

    Raises:
        ConfigError: There is no such method, or weights are named for one that has none.
        WeightsError: Weights that come with flowodom are damaged.
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
    return _best() if device.type == "cuda" else "dis"


def _best() -> str:
    """Returns the method that errs least on worlds that no network has learned from; nobody is believed unmeasured."""
    shares = {"dis": 1.0}
    for method, names in NETWORKS.items():
        path, *others = (weights.shipped(name) for name in names)
        if path is not None and None not in others:
            shares[method] = float(weights.words(path).get(SHARE.format(method), "inf"))
    return min(shares, key=lambda method: shares[method])


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
    path = Path(config.weights).expanduser() if config.weights else weights.shipped(NETWORKS[method][0])
    if path is None:
        raise WeightsError(
            f"no weights come with flowodom for flow.method={method}; name a file in flow.weights, "
            "published or made by `flowodom train flow`"
        )
    return path


def _raft(config: FlowConfig) -> RaftFlow:
    return RaftFlow(load_raft(_weights(config, "raft")), updates=config.updates)


def _refined(config: FlowConfig, start: FlowMethod | None = None) -> RefinedFlow:
    return RefinedFlow(load_refiner(_weights(config, "refined")), start=start)


METHODS: dict[str, Callable[[FlowConfig], FlowMethod]] = {
    "dis": lambda _: DisFlow(),
    "lucas_kanade": lambda _: LucasKanadeFlow(),
    "horn_schunck": lambda _: HornSchunckFlow(),
    "raft": _raft,
    "refined": _refined,
    "raft_refined": lambda config: _refined(FlowConfig(), _raft(config)),
}
"""How each method is made; with ``auto``, every value of the ``flow.method`` parameter."""
