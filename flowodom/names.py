"""ROS names: how a node's topics are called once its namespace and its remappings are known."""

from __future__ import annotations

import re
from collections.abc import Iterable

from flowodom.errors import ConfigError

_NAME = re.compile(r"^(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*$")


class Names:
    """The name of a node and of everything that it calls by a relative or private name.

    Args:
        node: The node's name.
        namespace: Its namespace, ``/`` for none.
        remappings: Rules ``from:=to`` as ``ros2 run ... -r`` takes them; ``__node:=`` and ``__ns:=`` rename the node.

    Raises:
        ConfigError: A rule or a name is malformed.
    """

    def __init__(self, node: str, namespace: str = "/", remappings: Iterable[str] = ()) -> None:
        rules: list[tuple[str, str]] = []
        for text in remappings:
            before, sign, after = text.partition(":=")
            if not sign or not before or not after:
                raise ConfigError(f"a remapping reads from:=to, got {text!r}")
            if before in ("__node", "__name"):
                node = after
            elif before == "__ns":
                namespace = after
            else:
                rules.append((before, after))
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", node):
            raise ConfigError(f"a node's name consists of letters, digits and _, got {node!r}")
        self.node = node
        self.namespace = "/" + namespace.strip("/")
        self._rules = {self.expand(before): self.expand(after) for before, after in rules}

    @property
    def full_name(self) -> str:
        """The node's name with its namespace."""
        return self.expand(self.node)

    def expand(self, name: str) -> str:
        """Returns the full name before remapping.

        Raises:
            ConfigError: The name is malformed.
        """
        if not _NAME.match(name):
            raise ConfigError(f"{name!r} is no ROS name: letters, digits and _ between slashes")
        if name.startswith("/"):
            return name
        parent = self.namespace.rstrip("/")
        return f"{parent}/{self.node}/{name[2:]}" if name.startswith("~/") else f"{parent}/{name}"

    def resolve(self, name: str) -> str:
        """Returns the full name after remapping."""
        full = self.expand(name)
        return self._rules.get(full, full)
