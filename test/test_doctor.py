from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from flowodom import doctor
from flowodom.doctor import Check, checks


@pytest.fixture
def bare(monkeypatch):
    """A machine without ROS, on which other processes are not started."""
    for name in ("ROS_DISTRO", "RMW_IMPLEMENTATION", "ROS_DOMAIN_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "_try_import", lambda module, expression: ("1.0", ""))
    return monkeypatch


def by_name(found):
    return {check.name: check for check in found}


def test_this_machine_can_run_flowodom(bare):
    found = by_name(checks())
    for name in ("python", "torch", "device", "threads", "opencv", "rosbags", "rosbags-image", "mcap"):
        assert found[name].ok, found[name]
        assert found[name].found
    assert all(check.ok for check in found.values())


def test_lines_say_ok_or_how_to_mend():
    assert str(Check("python", True, "3.11")).startswith("ok    python")
    assert str(Check("ros", True, "none", "source it")).startswith("note  ros")
    text = str(Check("torch", False, "missing", "pip install torch"))
    assert text.startswith("mend  torch")
    assert text.endswith("-> pip install torch")


def test_missing_needs_are_errors_and_missing_options_are_notes(bare):
    bare.setattr(doctor, "_load", lambda module: (None, "missing"))
    bare.setattr(doctor, "_version", lambda package: "")
    bare.setattr(doctor, "_try_import", lambda module, expression: ("", "missing"))
    found = by_name(checks())
    assert not any(found[name].ok for name in ("torch", "opencv", "rosbags", "mcap"))
    assert all(found[name].ok for name in ("open3d", "cyclonedds", "ros"))
    assert all(found[name].mend for name in ("torch", "opencv", "rosbags", "mcap", "open3d", "cyclonedds", "ros"))


def test_small_udp_buffers_are_mended_by_sysctl(bare):
    bare.setattr(doctor, "_kernel_limit", lambda name: 212992)
    check = by_name(checks())["udp buffer"]
    assert check.ok
    assert "sysctl -w net.core.rmem_max=4194304 net.core.rmem_default=4194304" in check.mend
    bare.setenv("ROS_DISTRO", "jazzy")
    assert not by_name(checks())["udp buffer"].ok
    bare.setattr(doctor, "_kernel_limit", lambda name: 8 << 20)
    assert by_name(checks())["udp buffer"] == Check(
        "udp buffer", True, "net.core.rmem_max = 8388608, net.core.rmem_default = 8388608"
    )
    bare.setattr(doctor, "_kernel_limit", lambda name: None)
    assert by_name(checks())["udp buffer"].ok


def test_ros_that_does_not_load(bare):
    bare.setenv("ROS_DISTRO", "jazzy")
    bare.setenv("ROS_DOMAIN_ID", "999")
    bare.setattr(doctor, "_try_import", lambda module, expression: ("", "does not load: wrong Python"))
    found = by_name(checks())
    assert not found["ros"].ok
    assert "system-site-packages" in found["ros"].mend
    assert found["cv_bridge"].mend == "sudo apt install ros-jazzy-cv-bridge"
    assert not found["domain"].ok


def test_a_gpu_and_a_torch_that_cannot_use_it(bare):
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda i: "H200", device_count=lambda: 1)
    torch = SimpleNamespace(__version__="2.9", cuda=cuda, get_num_threads=lambda: 1)
    bare.setattr(doctor, "_load", lambda module: (torch, ""))
    assert by_name(doctor._torch())["device"].found == "cuda: H200"
    cuda.is_available = lambda: False
    bare.setattr(doctor, "_has_nvidia", lambda: True)
    assert "built for CUDA" in by_name(doctor._torch())["device"].mend
    bare.setattr(doctor, "_cores", lambda: 8)
    bare.setenv("OMP_NUM_THREADS", "1")
    assert "unset" in by_name(doctor._torch())["threads"].mend


def test_an_open3d_without_its_system_libraries(bare):
    bare.setattr(doctor, "_try_import", lambda module, expression: ("", "does not load: OSError: libusb-1.0.so.0"))
    check = by_name(checks())["open3d"]
    assert check.ok
    assert "apt install libusb-1.0-0 libgl1" in check.mend


def test_two_opencvs_at_once(bare):
    bare.setattr(doctor, "_version", lambda package: "4.10")
    assert "overwrite each other" in by_name(checks())["opencv"].mend


def test_the_doctor_survives_anything(bare):
    def explode():
        raise RuntimeError("boom")

    bare.setattr(doctor, "_ros", explode)
    check = by_name(checks())["ros"]
    assert not check.ok
    assert "boom" in check.found


def test_a_module_that_takes_its_process_down(tmp_path, monkeypatch):
    (tmp_path / "fatal.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "broken.py").write_text("raise OSError('libfoo.so: cannot open')")
    (tmp_path / "whole.py").write_text("x = 3")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor._try_import("fatal", "1") == ("", "does not load: killed by signal 11")
    assert doctor._try_import("broken", "1") == ("", "does not load: OSError: libfoo.so: cannot open")
    assert doctor._try_import("whole", "whole.x") == ("3", "")
    assert doctor._try_import("not_there_at_all", "1") == ("", "missing")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "does not load" in doctor._try_import("whole", "1")[1]
