"""Who may import whom, as docs/architecture.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowodom"

ROWS = (
    {"errors"},
    {
        "config",
        "doctor",
        "drawing",
        "geometry",
        "health",
        "inbox",
        "names",
        "precision",
        "process",
        "rvl",
        "salvage",
        "selection",
        "stopwatch",
        "threads",
        "weights",
    },
    {"calibration", "frame", "frames", "messages", "watch"},
    {"alignment", "bags", "flow"},
    {"depth", "info", "pairing", "trajectory"},
    {"evaluation", "plots", "registration"},
    {"scene_flow"},
    {"local_map", "mapping", "view"},
    {"recall"},
    {"tracking", "unit"},
    {"judgement"},
    {"clouds", "object_maps", "odometry", "page", "surroundings"},
    {"report", "session", "worlds"},
    {"drift", "endpoints", "ghosting", "host", "training"},
    {"dds", "replay"},
    {"graph", "node", "track"},
    {"cli"},
)
"""Modules and subpackages of flowodom; each may import those of the rows above it, and nothing else of flowodom."""

HOMES = {
    "cyclonedds": {"dds"},
    "cv_bridge": {"node"},
    "matplotlib": {"plots"},
    "mcap": {"bags"},
    "rcl_interfaces": {"node"},
    "rclpy": {"node"},
    "std_srvs": {"node"},
    "tf_transformations": {"node"},
    "safetensors": {"weights"},
    "rosbags": {"bags", "dds", "messages", "salvage", "session"},
    "transformers": {"depth"},
    "evo": set(),
    "open3d": {"mapping"},
    "scipy": set(),
}
"""Libraries that only some modules may import."""

SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def part(source: str) -> str:
    """Returns the module or subpackage of flowodom that a file belongs to; empty for the package's own front door."""
    name = source.removesuffix(".py").partition("/")[0]
    return "" if name == "__init__" else name


def imported(source: str) -> Iterator[str]:
    """Yields what a file imports when it runs, wherever in it; what it imports for type checking alone is left out."""
    waiting: list[ast.AST] = [ast.parse((PACKAGE / source).read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(source: str) -> set[str]:
    """Returns the parts of flowodom that a file imports."""
    names = (name.split(".") for name in imported(source))
    known = set().union(*ROWS)
    return {name[1] for name in names if name[0] == "flowodom" and len(name) > 1 and name[1] in known}


def test_every_module_has_its_row() -> None:
    there = {part(source) for source in SOURCES} - {""}
    assert there == set().union(*ROWS), "ROWS and docs/architecture.md must name every module, and no other"


def test_no_module_has_two_rows() -> None:
    assert sum(map(len, ROWS)) == len(set().union(*ROWS))


def test_modules_import_only_rows_above() -> None:
    wrong = {}
    for source in SOURCES:
        own = part(source)
        row = next((index for index, row in enumerate(ROWS) if own in row), 1)
        wrong[source] = parts_imported(source) - {own}.union(*ROWS[:row])
    assert not {source: names for source, names in wrong.items() if names}


def test_libraries_stay_where_they_belong() -> None:
    libraries = {source: {name.partition(".")[0] for name in imported(source)} & set(HOMES) for source in SOURCES}
    wrong = {source: {name for name in found if part(source) not in HOMES[name]} for source, found in libraries.items()}
    assert not {source: names for source, names in wrong.items() if names}


def test_evaluation_knows_only_trajectories() -> None:
    assert parts_imported("evaluation.py") <= {"errors", "geometry", "trajectory"}


@pytest.mark.parametrize("heart", ["odometry", "tracking", "flow", "depth", "registration", "scene_flow", "geometry"])
def test_the_heart_knows_no_messages_and_no_files(heart: str) -> None:
    reach, waiting = set(), {heart}
    while waiting:
        name = waiting.pop()
        reach.add(name)
        for source in SOURCES:
            if part(source) == name:
                waiting |= parts_imported(source) - reach
    assert not reach & {"messages", "bags", "salvage", "session", "frames", "trajectory"}


def test_the_page_on_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [s for s in SOURCES if not s.endswith("__init__.py") and Path(s).stem not in text]
    assert not missing
