"""Which flow a configuration asks for."""

from __future__ import annotations

from flowodom.flow import FlowMethod
from flowodom.flow.dis import DisFlow


def make_flow(name: str) -> FlowMethod:
    """Returns the flow method of a ``flow.method`` parameter."""
    return DisFlow()
