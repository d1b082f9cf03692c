"""The benchmark of the learned pipeline runs where there is no GPU, so that it will where there is one."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_it_compares_with_the_plain_design_and_its_limits(gpu, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    sizes = ["--size", "160x128", "--training-size", "32x24", "--pairs", "2", "--batch", "2"]
    gpu.main(["--device", "cpu", *sizes, "--out", str(out)])
    figures = json.loads(out.read_text())
    assert figures["results"].keys() == {"plain", "ours, 8 updates", "ours"}
    for name, row in figures["results"].items():
        assert row.keys() == gpu.MEASURES.keys()
        assert 0 < row["updates"] <= 8 if name == "ours" else row["updates"] == 8
        assert row["limit ms"] > 0
    # The same number of updates of the same network, but fewer images encoded and no level of detail kept for training.
    assert figures["results"]["ours, 8 updates"]["limit ms"] < figures["results"]["plain"]["limit ms"]
    assert f"{figures['ratio']:.2f} times as fast" in capsys.readouterr().out


def test_it_times_the_odometry(gpu, tmp_path):
    out = tmp_path / "odometry.json"
    gpu.main(["--device", "cpu", "--size", "160x128", "--pairs", "3", "--odometry", "1", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert len(figures["results"]) == 4, "with a depth camera and without, with the network and without"
    for row in figures["results"].values():
        assert row["cpu ms"] > 0
    assert figures["results"]["RGB-D, 1 updates"]["no pose %"] == 0


def test_the_limit_is_the_slower_of_arithmetic_and_memory(gpu):
    a, b = torch.ones(64, 32), torch.ones(32, 16)
    rates, many = {torch.float32: 1000.0}, 1e12
    with gpu.Work(rates, many) as work:
        a @ b
    assert work.seconds == pytest.approx(2 * 64 * 32 * 16 / 1000)
    with gpu.Work({torch.float32: many}, 4.0) as work:
        (a.T + 1).sum()
    assert work.seconds == pytest.approx(2 * a.numel() + a.numel() + 1, rel=1e-6)
