"""Procedural worlds: random scenes and camera paths with exact images, depth, flow, occlusion and motion."""

from flowodom.worlds.casting import Shape
from flowodom.worlds.motion import (
    CameraPath,
    Following,
    Loop,
    Motion,
    Wander,
    Waves,
    hand_held,
    rotation,
    straight,
    wheeled,
)
from flowodom.worlds.scenes import room, street
from flowodom.worlds.sequence import Sensor, Step, pinhole, sequence
from flowodom.worlds.world import FlowTruth, Light, Material, Primitive, Rendering, World

__all__ = [
    "CameraPath",
    "FlowTruth",
    "Following",
    "Light",
    "Loop",
    "Material",
    "Motion",
    "Primitive",
    "Rendering",
    "Sensor",
    "Shape",
    "Step",
    "Wander",
    "Waves",
    "World",
    "hand_held",
    "pinhole",
    "room",
    "rotation",
    "sequence",
    "straight",
    "street",
    "wheeled",
]
