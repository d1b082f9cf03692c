"""Scene flow: where each point is, where it went, and how much of that is the camera's own motion."""

from flowodom.scene_flow.lift import PropertySet, lift

__all__ = ["PropertySet", "lift"]
