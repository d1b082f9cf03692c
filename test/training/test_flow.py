"""Learning flow on pairs whose motion is known: losses, and both tasks."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from flowodom.cli import main
from flowodom.errors import ConfigError, WeightsError
from flowodom.flow.checkpoint import load_raft, save_raft
from flowodom.flow.raft import Prediction, Raft
from flowodom.flow.refiner import Refiner, load_refiner, save_refiner
from flowodom.flow.uncertainty import negative_log_likelihood, variance
from flowodom.training import flow as training
from flowodom.training.flow import FlowBatch, FlowPlan, RaftTask, RefinerTask, train_flow
from flowodom.training.losses import HIDDEN, flow_figures, sequence_loss
from flowodom.training.samples import together
from flowodom.training.supervised import Group, Plan, Run

CPU = torch.device("cpu")


def shifted(number, size=(128, 128)):
    """A smooth random picture that moves by a whole number of pixels."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(1, 1, 24, 24, generator=generator)
    wide = functional.interpolate(coarse, size=(200, 200), mode="bicubic")[0, 0].clamp(0, 1).mul(255).to(torch.uint8)
    u, v = torch.randint(-4, 5, (2,), generator=generator).tolist()
    width, height = size
    first = wide[30 : 30 + height, 30 : 30 + width]
    second = wide[30 - v : 30 - v + height, 30 - u : 30 - u + width]
    flow = torch.tensor((float(u), float(v))).view(1, 2, 1, 1).expand(1, 2, height, width)
    return FlowBatch(first[None, None], second[None, None], flow, torch.zeros(1, height, width, dtype=torch.bool))


def source(numbers):
    return together([shifted(number) for number in numbers])


@pytest.mark.parametrize(("task", "network"), [(RaftTask, Raft), (RefinerTask, Refiner)])
def test_a_task_trains_and_leaves_weights_that_work(task, network, tmp_path):
    torch.manual_seed(0)
    learned = task(source, source, network(), judged=2)
    plan = Plan(steps=3, batch=2, validate=3, rate=1e-3)
    run = Run(learned, tmp_path, plan, group=Group(CPU))
    before = {name: value.clone() for name, value in learned.model.state_dict().items()}
    assert run.train()
    assert any(not torch.equal(value, before[name]) for name, value in learned.model.state_dict().items())
    assert (tmp_path / f"{learned.name}.safetensors").is_file()
    assert (tmp_path / "sheet.png").is_file()
    assert "epe_seen" in (tmp_path / "log.csv").read_text()


def test_parts_are_learned_from_and_whole_pairs_judged_by():
    def wide(numbers):
        return together([shifted(number, (160, 144)) for number in numbers])

    task = RaftTask(wide, wide, Raft(), updates=3, crop=(136, 128), judged=1)
    cut = [task.batch([n, n + 1]) for n in range(0, 12, 2)]
    assert all(batch.flow.shape == (2, 2, 128, 136) for batch in cut)
    assert torch.equal(task.batch([4, 5]).previous, cut[2].previous)
    places = {
        (left, top)
        for n, batch in zip(range(0, 12, 2), cut, strict=True)
        for left in range(25)
        for top in range(17)
        if torch.equal(batch.previous, wide([n, n + 1]).previous[..., top : top + 128, left : left + 136])
    }
    assert len(places) > 3
    assert len(task.predict(task.model, cut[0], CPU)) == 3
    with torch.no_grad():
        assert task.sheet(task.model.eval(), CPU).shape[:2] == (144, 5 * 160)


def test_a_run_goes_on_with_the_same_part_and_no_other(monkeypatch, tmp_path):
    def wide(numbers):
        return together([shifted(number, (136, 128)) for number in numbers])

    monkeypatch.setattr(training, "sources", lambda *_, **__: (wide, wide))
    plan = FlowPlan(steps=1, batch=1, size=(136, 128), crop=(128, 128), updates=1)
    assert train_flow(tmp_path, plan, device=CPU)
    assert train_flow(tmp_path, plan, device=CPU, resume=True)
    with pytest.raises(ConfigError, match="crop was \\[128, 128\\] and is None"):
        train_flow(tmp_path, replace(plan, crop=None), device=CPU, resume=True)


def test_an_untrained_refiner_is_judged_as_good_as_its_start():
    task = RefinerTask(source, source, Refiner(), judged=2)
    figures = task.validate(task.model.eval(), CPU)
    assert figures["epe"] == pytest.approx(figures["start_epe"])


def test_a_refiner_learns_to_correct_what_is_always_wrong():
    torch.manual_seed(0)
    task = RefinerTask(source, source, Refiner(), judged=1)
    batch = task.batch([5, 6])
    wrong = torch.tensor((0.5, -0.5)).view(1, 2, 1, 1)
    batch = replace(batch, flow=batch.start + wrong)
    optimizer = torch.optim.Adam(task.model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = task.loss(task.model, batch, CPU)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    found = task.predict(task.model, batch, CPU)[-1].flow
    assert (found - batch.flow).abs().mean() < 0.4 * wrong.abs().mean()
    assert losses[-1] < losses[0]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains for a step that moves the weights hardly at all."""
    monkeypatch.setattr(training, "sources", lambda *_, **__: (source, source))
    plan = FlowPlan(steps=1, batch=2, rate=1e-9, size=(128, 128))
    return lambda model, start: train_flow(tmp_path / "out", plan, model=model, device=CPU, start=start)


@pytest.mark.parametrize(
    ("model", "network", "save", "load"),
    [
        ("raft_small", lambda: Raft(uncertain=False), save_raft, load_raft),
        ("refiner", Refiner, save_refiner, load_refiner),
    ],
)
def test_training_goes_on_from_weights_that_may_lack_the_uncertainty(model, network, save, load, trained, tmp_path):
    torch.manual_seed(7)
    known = network()
    save(tmp_path / "known.safetensors", known, {})
    assert trained(model, tmp_path / "known.safetensors")
    found = load(tmp_path / "out" / f"{model}.safetensors").state_dict()
    assert any("mixture" in name for name in found)
    for name, value in known.state_dict().items():
        assert torch.allclose(found[name], value, atol=1e-3)


def test_training_does_not_go_on_from_another_size(trained, tmp_path):
    save_raft(tmp_path / "large.safetensors", Raft(size="large"), {})
    with pytest.raises(WeightsError, match="raft_large, and raft_small is to be trained"):
        trained("raft_small", tmp_path / "large.safetensors")


def test_the_likelihood_is_that_of_a_density():
    mixture = torch.tensor((0.4, -0.5, -1.0)).view(1, 3, 1, 1)
    axis = torch.linspace(-60, 60, 2401)
    error = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None]
    density = (-negative_log_likelihood(error, mixture.expand(-1, -1, 2401, 2401))).exp() * 0.05**2
    assert float(density.sum()) == pytest.approx(1, abs=0.02)
    assert float((density * error[:, 0] ** 2).sum()) == pytest.approx(float(variance(mixture)), rel=0.03)


def test_later_updates_and_visible_points_count_more():
    truth = torch.zeros(1, 2, 4, 4)
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    good, bad = Prediction(truth, None), Prediction(truth + 1, None)
    assert sequence_loss([bad, good], truth, hidden) == pytest.approx(0.8 * 2)
    assert sequence_loss([good, bad], truth, hidden) == pytest.approx(2)
    hidden[..., :2] = True
    half = Prediction(truth + hidden[:, None], None)
    assert sequence_loss([half], truth, hidden) == pytest.approx(2 * HIDDEN / (1 + HIDDEN))


def test_unknown_and_absurd_flow_is_not_learned_from():
    truth = torch.zeros(1, 2, 4, 4)
    truth[..., 0, 0], truth[..., 0, 1] = math.nan, 1e5
    found = torch.zeros(1, 2, 4, 4, requires_grad=True)
    nowhere = torch.zeros(1, 4, 4, dtype=torch.bool)
    loss = sequence_loss([Prediction(found, None)], truth, nowhere)
    loss.backward()
    assert loss == 0
    assert found.grad.isfinite().all()
    assert flow_figures(found.detach(), truth, nowhere) == {"epe": 0, "epe_seen": 0, "over_1px": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "guess"], "must be one of raft_small"),
        (["--size", "320x100"], "multiples of 8"),
        (["--crop", "320x100"], "multiples of 8"),
        (["--crop", "160x256"], "must fit into"),
        (["--updates", "0"], "at least one update"),
        (["--pairs", "-1"], "pairs 0 or more"),
    ],
)
def test_the_command_names_what_it_cannot_do(arguments, message, tmp_path, capsys):
    assert main(["train", "flow", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
