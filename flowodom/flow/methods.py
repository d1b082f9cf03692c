"""Which flow a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from flowodom.errors import ConfigError
from flowodom.flow import FlowMethod
from flowodom.flow.dis import DisFlow
from flowodom.flow.horn_schunck import HornSchunckFlow
from flowodom.flow.lucas_kanade import LucasKanadeFlow

METHODS: dict[str, Callable[[], FlowMethod]] = {
    "dis": DisFlow,
    "lucas_kanade": LucasKanadeFlow,
    "horn_schunck": HornSchunckFlow,
}
"""Every value of the ``flow.method`` parameter."""


def make_flow(name: str) -> FlowMethod:
    """Returns the flow method of a ``flow.method`` parameter.

    Raises:
        ConfigError: There is no such method.
    """
    if name not in METHODS:
        raise ConfigError(f"flow.method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]()
