"""The training loop on a task of its own: it learns, goes on where it was, and shares work between processes."""

import csv
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import pytest
import torch

from flowodom import weights
from flowodom.errors import ConfigError, WeightsError
from flowodom.training import checkpoints
from flowodom.training.supervised import WARM_UP, one_cycle

from .line import PLAN, Line, train


def rows(out):
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_learns_and_leaves_weights_log_and_picture(tmp_path):
    _, done = train(tmp_path, replace(PLAN, steps=200, validate=50))
    assert done
    log = rows(tmp_path)
    assert [row["step"] for row in log] == ["50", "100", "150", "200"]
    assert float(log[-1]["error"]) < 0.2 * float(log[0]["error"])
    state, words = weights.read(tmp_path / "line.safetensors")
    assert words["steps"] == "200"
    assert words["error"] == f"{float(log[-1]['error']):.4g}"
    line = Line()
    line.model.load_state_dict(state)
    assert line.validate(line.model, torch.device("cpu"))["error"] == pytest.approx(float(log[-1]["error"]), rel=1e-4)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (4, 6, 3)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, _ = train(tmp_path / "whole")
    for step in (7, 19):
        batch = Line.batch

        def killed(self, numbers, batch=batch, step=step):
            if numbers[0] >= 4 * step:
                raise KeyboardInterrupt
            return batch(self, numbers)

        monkeypatch.setattr(Line, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", replace(PLAN, save=0.0), resume=True)
        monkeypatch.setattr(Line, "batch", batch)
    run, done = train(tmp_path / "parts", resume=True)
    assert done
    for kind in ("_model", "_average"):
        parts, expected = (getattr(r, kind).state_dict() for r in (run, whole))
        assert all(torch.equal(parts[name], value) for name, value in expected.items())
    assert [row["step"] for row in rows(tmp_path / "parts")] == ["10", "20", "30"]


def test_what_a_killed_process_logged_and_did_not_keep_is_logged_once(tmp_path):
    train(tmp_path, replace(PLAN, minutes=1e-9))
    with (tmp_path / "log.csv").open("a") as file:
        file.write("10,0.1,0.1\n2")
    train(tmp_path, resume=True)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "10", "20", "30"]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "log.csv").write_text("step,loss,error\n10,0.1,0.1\n")
    train(tmp_path / "begun", resume=True)
    assert [row["step"] for row in rows(tmp_path / "begun")] == ["10", "20", "30"]


def test_it_stops_when_its_time_is_up(tmp_path):
    run, done = train(tmp_path, replace(PLAN, minutes=1e-9))
    assert not done
    assert run.step == 1
    assert train(tmp_path, PLAN, resume=True)[1]


def test_a_run_is_not_overwritten_or_changed_by_accident(tmp_path):
    train(tmp_path)
    with pytest.raises(ConfigError, match="resume it or choose another folder"):
        train(tmp_path)
    with pytest.raises(ConfigError, match="batch was 4 and is 8"):
        train(tmp_path, replace(PLAN, batch=8), resume=True)


def test_what_is_learned_from_may_not_change_under_way(tmp_path):
    train(tmp_path)
    with pytest.raises(ConfigError, match=r"size was \[320, 240\] and is \[64, 48\]"):
        train(tmp_path, replace(PLAN, size=(64, 48)), resume=True)


def test_a_step_that_has_no_gradient_is_left_out(tmp_path, monkeypatch):
    loss = Line.loss

    def broken(self, model, batch, device):
        return loss(self, model, batch, device) * (float("nan") if batch[0][0, 0] > 1 else 1)

    monkeypatch.setattr(Line, "loss", broken)
    run, done = train(tmp_path, replace(PLAN, batch=1))
    assert done
    assert all(value.isfinite().all() for value in run._model.state_dict().values())


def test_two_processes_learn_what_one_does(tmp_path):
    train(tmp_path / "one")
    script = Path(__file__).with_name("line.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = subprocess.run([*command, tmp_path / "two"], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    one, two = (weights.read(tmp_path / name / "line.safetensors")[0] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)


def test_the_rate_rises_once_and_falls_to_nothing():
    rates = [one_cycle(step, 200) for step in range(201)]
    top = rates.index(max(rates))
    assert max(rates) == 1
    assert top == pytest.approx(WARM_UP * 200, abs=1)
    assert all(b > a for a, b in pairwise(rates[: top + 1]))
    assert all(b <= a for a, b in pairwise(rates[top:]))
    assert rates[-1] == 0


def test_checkpoints_come_in_small_files_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "LARGEST", 100)
    tensors = {
        "large": torch.arange(70.0).view(7, 10),
        "small": torch.arange(3),
        "scalar": torch.tensor(4.0),
        "none": torch.zeros(0, 2),
    }
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, tensors, {"plan": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found, state = checkpoints.load(tmp_path)
    assert state["step"] == state["plan"] == 3
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    for path in (tmp_path / "step-00000003").glob("*.safetensors"):
        assert sum(value.nbytes for value in weights.read(path)[0].values()) <= 100


def test_a_checkpoint_half_written_does_not_count(tmp_path):
    assert checkpoints.load(tmp_path) is None
    checkpoints.save(tmp_path, 1, {"a": torch.ones(2)}, {})
    (tmp_path / "step-00000002.part").mkdir()
    assert checkpoints.load(tmp_path)[1]["step"] == 1


@pytest.mark.parametrize("damage", ["000.safetensors", "state.json"])
def test_a_damaged_checkpoint_says_what_to_do(damage, tmp_path):
    folder = checkpoints.save(tmp_path, 1, {"a": torch.ones(50)}, {})
    (folder / damage).write_bytes((folder / damage).read_bytes()[:30])
    with pytest.raises(WeightsError, match="remove it to go on from the one before"):
        checkpoints.load(tmp_path)
