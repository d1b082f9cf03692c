"""Training the field: it learns depth, its uncertainty and views, and goes through the loop that all tasks share."""

import csv
from dataclasses import replace

import cv2
import pytest
import torch

from flowodom.cli import main
from flowodom.depth.field import FieldConfig, FieldNetwork, load_field, save_field
from flowodom.training import field as training
from flowodom.training.field import FieldTask, Lesson, Views, judge, losses
from flowodom.training.samples import rendered
from flowodom.training.supervised import Group, Plan, Run

CPU = torch.device("cpu")
TINY = FieldConfig(channels=(8, 16), hidden=8, octaves=3, cells=12)
PLAN = Plan(steps=6, batch=2, rate=1e-2, average=0.9, validate=3, save=0.0)


@pytest.fixture(scope="module")
def views():
    return rendered(Views.of, seed=1, size=(64, 48), device=CPU)(range(4))


@pytest.fixture
def source(views):
    return lambda numbers: Views(
        **{name: torch.cat([value[n % 4][None] for n in numbers]) for name, value in views.tensors().items()}
    )


def train(out, source, plan=PLAN, *, resume=False):
    torch.manual_seed(0)
    task = FieldTask(source, source, FieldNetwork(TINY), judged=4)
    done = Run(task, out, plan, group=Group(CPU), resume=resume, half=False).train()
    return done


def test_it_learns_and_knows_how_sure_to_be(source, views, tmp_path):
    torch.manual_seed(0)
    exam = [views[k : k + 1] for k in range(4)]
    before = judge(FieldNetwork(TINY), exam)
    assert train(tmp_path, source, replace(PLAN, steps=150, validate=150))
    with (tmp_path / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["abs_rel"]) < 0.7 * before["abs_rel"]
    network = load_field(tmp_path / "field.safetensors")
    assert network.config.calibration == pytest.approx(float(row["calibration"]), rel=1e-4)
    assert network.config.scale_deviation == pytest.approx(float(row["scale_deviation"]), rel=1e-4)
    assert judge(network, exam)["abs_rel"] == pytest.approx(float(row["abs_rel"]), rel=0.02)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (4 * 48, 5 * 64, 3)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(source, tmp_path):
    train(tmp_path / "whole", source)

    def stopping(numbers):
        if numbers[0] >= 8:
            raise KeyboardInterrupt
        return source(numbers)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stopping)
    assert train(tmp_path / "parts", source, resume=True)
    whole, parts = (load_field(tmp_path / name / "field.safetensors").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_losses_are_finite_and_named(views):
    torch.manual_seed(0)
    lesson = Lesson.draw(views, TINY.cells, 0)
    found = losses(FieldNetwork(TINY), lesson)
    assert set(found) == {"depth", "shape", "likelihood", "colour"}
    assert all(value.isfinite() for value in found.values())
    assert torch.equal(lesson.place, Lesson.draw(views, TINY.cells, 0).place)


def test_colours_of_what_moves_on_its_own_are_not_learned(views):
    torch.manual_seed(0)
    network = FieldNetwork(TINY)
    lesson = Lesson.draw(replace(views, moving=torch.ones_like(views.moving)), TINY.cells, 0)
    assert losses(network, lesson)["colour"] == 0
    still = replace(lesson, views=replace(views, moving=torch.zeros_like(views.moving)))
    assert losses(network, still)["colour"] > 0


def test_the_command_trains_stops_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "FieldConfig", lambda: TINY)
    monkeypatch.setattr(training, "JUDGED_VIEWS", 2)
    command = ["train", "field", "--out", str(tmp_path), "--steps", "3", "--batch", "2", "--size", "48x32"]
    command += ["--pairs", "4", "--device", "cpu"]
    assert main([*command, "--minutes", "1e-9"]) == 0
    assert "stopped, --resume goes on" in capsys.readouterr().out
    assert main(command) == 2
    assert "resume it" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert load_field(tmp_path / "field.safetensors").config.pixels == 48 * 32
    with (tmp_path / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "3"]


def test_the_command_goes_on_from_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "JUDGED_VIEWS", 2)
    torch.manual_seed(0)
    known = FieldNetwork(TINY)
    save_field(tmp_path / "known.safetensors", known, {})
    command = ["train", "field", "--out", str(tmp_path / "out"), "--start", str(tmp_path / "known.safetensors")]
    command += ["--steps", "1", "--batch", "2", "--size", "48x32", "--pairs", "2", "--rate", "1e-6", "--device", "cpu"]
    assert main(command) == 0
    found = load_field(tmp_path / "out" / "field.safetensors")
    assert (found.config.channels, found.config.pixels) == (TINY.channels, 48 * 32)
    for name, value in known.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-3)


def test_the_command_names_what_it_cannot_do(tmp_path, capsys):
    assert main(["train", "field", "--out", str(tmp_path), "--size", "24x24"]) == 2
    assert "32 or more" in capsys.readouterr().err
    assert main(["train", "field", "--out", str(tmp_path), "--steps", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert main(["train", "field", "--out", str(tmp_path), "--start", str(tmp_path / "none.safetensors")]) == 2
    assert "no file of weights" in capsys.readouterr().err
