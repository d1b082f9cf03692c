"""What this machine has of what flowodom can use, and how to mend the rest: the lines of ``flowodom doctor``."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BUFFER = 4 << 20
"""Bytes of UDP receive buffer that let a burst of image fragments in: a VGA image takes 0.9 MB."""
_IMPORT_SECONDS = 120


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: What was looked at.
        ok: Whether it will do; False only for what flowodom cannot work with.
        found: What there is.
        mend: What to do about it; with ``ok``, what to do for the part that is optional; empty for nothing.
    """

    name: str
    ok: bool
    found: str
    mend: str = ""

    def __str__(self) -> str:
        mark = "mend" if not self.ok else "note" if self.mend else "ok"
        return f"{mark:<5} {self.name:<14} {self.found}" + (f"\n{'':<21}-> {self.mend}" if self.mend else "")


def checks() -> list[Check]:
    """Looks at everything that flowodom can use. Never raises: what cannot be looked at becomes a line of its own."""
    parts: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
        ("python", _python),
        ("torch", _torch),
        ("opencv", _opencv),
        ("open3d", _open3d),
        ("bags", _bags),
        ("dds", _dds),
        ("ros", _ros),
        ("network", _network),
    )
    found: list[Check] = []
    for name, part in parts:
        try:
            found.extend(part())
        except Exception as error:  # the doctor has to see the next patient
            found.append(Check(name, False, f"could not be looked at: {error!r}", "please report this"))
    return found


def _python() -> Iterable[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 10)
    yield Check("python", fits, f"{version}, {sys.executable}", "" if fits else "use Python 3.10 or newer")


def _torch() -> Iterable[Check]:
    torch, problem = _load("torch")
    if torch is None:
        yield Check("torch", False, problem, "pip install torch --index-url https://download.pytorch.org/whl/cpu")
        return
    yield Check("torch", True, str(torch.__version__))
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("device", True, f"cuda: {', '.join(names)}")
    elif _has_nvidia():
        yield Check(
            "device",
            True,
            "cpu, though there is an NVIDIA driver",
            f"torch {torch.__version__} cannot use the GPU: install a torch built for CUDA, see pytorch.org",
        )
    else:
        yield Check("device", True, "cpu (no GPU)")
    threads, cores = torch.get_num_threads(), _cores()
    few = threads < cores and "OMP_NUM_THREADS" in os.environ
    yield Check(
        "threads",
        True,
        f"{threads} for {cores} cores",
        f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} holds torch back; unset it" if few else "",
    )


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _opencv() -> Iterable[Check]:
    cv2, problem = _load("cv2")
    if cv2 is None:
        yield Check("opencv", False, problem, "pip install opencv-python-headless")
        return
    has_flow = hasattr(cv2, "DISOpticalFlow_create")
    twins = [name for name in ("opencv-python", "opencv-contrib-python") if _version(name)]
    mend = ""
    if not has_flow:
        mend = "this OpenCV lacks DISOpticalFlow; pip install --force-reinstall opencv-python-headless"
    elif twins and _version("opencv-python-headless"):
        mend = f"{', '.join(twins)} and opencv-python-headless overwrite each other; pip uninstall one of them"
    yield Check("opencv", has_flow, str(cv2.__version__), mend)


def _open3d() -> Iterable[Check]:
    version, problem = _try_import("open3d", "open3d.__version__")
    mend = "pip install open3d" if problem == "missing" else "sudo apt install libusb-1.0-0 libgl1"
    yield Check("open3d", True, version or problem, "" if version else f"{mend} (only benchmarks use it)")


def _bags() -> Iterable[Check]:
    for package in ("rosbags", "rosbags-image", "mcap"):
        version = _version(package)
        yield Check(package, bool(version), version or "missing", "" if version else f"pip install {package}")


def _dds() -> Iterable[Check]:
    version, problem = _try_import(
        "cyclonedds.domain", "__import__('importlib.metadata').metadata.version('cyclonedds')"
    )
    yield Check(
        "cyclonedds",
        True,
        version or problem,
        "" if version else "pip install cyclonedds (to talk to ROS 2 without ROS)",
    )


def _ros() -> Iterable[Check]:
    distribution = os.environ.get("ROS_DISTRO", "")
    if not distribution:
        yield Check(
            "ros", True, "none sourced; bags need none", "for the ROS node: source /opt/ros/<distribution>/setup.bash"
        )
        return
    known, problem = _try_import("rclpy", "rclpy.__file__")
    mend = (
        f"rclpy of {distribution} does not load in this Python ({sys.executable}): use the one that ROS was built for, "
        "in a virtual environment made with --system-site-packages"
    )
    yield Check("ros", bool(known), f"{distribution}, rclpy {'loads' if known else problem}", "" if known else mend)
    for package in ("cv_bridge", "tf_transformations"):
        known, problem = _try_import(package, f"{package}.__name__")
        name = f"ros-{distribution}-{package.replace('_', '-')}"
        yield Check(package, True, "loads" if known else problem, "" if known else f"sudo apt install {name}")
    rmw = os.environ.get("RMW_IMPLEMENTATION", "")
    yield Check("rmw", True, rmw or "default of the distribution (RMW_IMPLEMENTATION is not set)")
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    where = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    fits = domain.isdigit() and int(domain) <= 232
    yield Check(
        "domain", fits, f"{domain}, discovery {where}", "" if fits else "set ROS_DOMAIN_ID to a number from 0 to 232"
    )


def _network() -> Iterable[Check]:
    limits = {name: _kernel_limit(name) for name in ("rmem_max", "rmem_default")}
    known = {name: value for name, value in limits.items() if value is not None}
    if not known:
        yield Check("udp buffer", True, "cannot be read on this system")
        return
    small = [name for name, value in known.items() if value < _BUFFER]
    figures = ", ".join(f"net.core.{name} = {value}" for name, value in known.items())
    settings = " ".join(f"net.core.{name}={_BUFFER}" for name in small)
    yield Check(
        "udp buffer",
        not small or not os.environ.get("ROS_DISTRO"),
        figures,
        f"raw images over DDS get lost in so small a buffer: sudo sysctl -w {settings}" if small else "",
    )


def _kernel_limit(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/net/core", name).read_text())
    except (OSError, ValueError):
        return None


def _version(package: str) -> str:
    """Returns the version of an installed package, empty when it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _load(module: str) -> tuple[Any, str]:
    """Returns a module, or None and why not."""
    try:
        return importlib.import_module(module), ""
    except Exception as error:  # a broken installation raises whatever it likes
        return None, _reason(error)


def _reason(error: Exception) -> str:
    missing = isinstance(error, ModuleNotFoundError)
    return "missing" if missing else f"does not load: {type(error).__name__}: {error}"


def _try_import(module: str, expression: str) -> tuple[str, str]:
    """Imports a module in a process of its own, which it may take down, and returns what ``expression`` gives there.

    Returns:
        The text and an empty string, or an empty string and why not.
    """
    code = f"import {module}; print({expression})"
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"does not load: {error}"
    if result.returncode == 0 and result.stdout.strip():
        return result.stdout.strip().splitlines()[-1], ""
    last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
    if result.returncode < 0:
        last = f"killed by signal {-result.returncode}"
    root = module.partition(".")[0]
    return "", "missing" if f"No module named '{root}'" in last else f"does not load: {last}"
