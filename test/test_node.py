import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_nodes_do_what_is_promised_when_launched_for_real() -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not sourced, so its nodes cannot be run")
    pytest.importorskip("launch_testing", reason="launch_testing is not installed")
    # In a process of its own: ROS's Cyclone DDS and that of PyPI do not go together in one.
    environment = {**os.environ, "ROS_DOMAIN_ID": str(90 + os.getpid() % 10)}
    done = subprocess.run(
        [sys.executable, "-m", "launch_testing.launch_test", str(Path(__file__).with_name("launch_node.py"))],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
