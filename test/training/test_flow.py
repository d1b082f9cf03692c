"""Learning flow on pairs whose motion is known: losses, augmentation, sources of pairs, and both tasks."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from flowodom.cli import main
from flowodom.flow.consistency import sample
from flowodom.flow.raft import Prediction
from flowodom.flow.uncertainty import negative_log_likelihood, variance
from flowodom.training.augmentation import augment
from flowodom.training.flow import RaftTask, RefinerTask
from flowodom.training.losses import HIDDEN, flow_figures, sequence_loss
from flowodom.training.pairs import LivePairs, Pair, RenderedPairs, StoredPairs
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
    flow = torch.tensor((float(u), float(v))).expand(height, width, 2)
    nowhere = torch.zeros(height, width, dtype=torch.bool)
    return Pair(first, second, flow, -flow, nowhere, nowhere.clone())


def source(numbers):
    return [shifted(number) for number in numbers]


@pytest.mark.parametrize("task", [RaftTask, RefinerTask])
def test_a_task_trains_and_leaves_weights_that_work(task, tmp_path):
    torch.manual_seed(0)
    learned = task(source, source, judged=2)
    plan = Plan(steps=3, batch=2, validate=3, rate=1e-3)
    run = Run(learned, tmp_path, plan, group=Group(CPU))
    before = {name: value.clone() for name, value in learned.model.state_dict().items()}
    assert run.train()
    assert any(not torch.equal(value, before[name]) for name, value in learned.model.state_dict().items())
    assert (tmp_path / f"{learned.name}.safetensors").is_file()
    assert (tmp_path / "sheet.png").is_file()
    assert "epe_seen" in (tmp_path / "log.csv").read_text()


def test_an_untrained_refiner_is_judged_as_good_as_its_start():
    task = RefinerTask(source, source, judged=2)
    figures = task.validate(task.model.eval(), CPU)
    assert figures["epe"] == pytest.approx(figures["start_epe"])


def test_a_refiner_learns_to_correct_what_is_always_wrong():
    torch.manual_seed(0)
    task = RefinerTask(source, source, judged=1)
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
        losses.append(float(loss))
    found = task.predict(task.model, batch, CPU)[-1].flow
    assert (found - batch.flow).abs().mean() < 0.4 * wrong.abs().mean()
    assert losses[-1] < losses[0]


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


def test_augmentation_keeps_flow_and_pictures_together():
    kinds = set()
    for seed in range(12):
        pair = augment(shifted(2), (seed, 2), (96, 80))
        assert pair.previous.shape == (80, 96)
        assert pair.forward.shape == (80, 96, 2)
        kinds.add(tuple(pair.forward[0, 0].tolist()))
        assert set(pair.forward[0, 0].abs().tolist()) == set(shifted(2).forward[0, 0].abs().tolist())
        assert torch.equal(pair.forward, -pair.backward)
        v, u = torch.meshgrid(torch.arange(16, 64.0), torch.arange(16, 80.0), indexing="ij")
        pixels = torch.stack((u, v), -1)
        there = sample(pair.current[..., None].float(), pixels + pair.forward[16:64, 16:80])[..., 0]
        here = pair.previous[16:64, 16:80].float()
        assert torch.corrcoef(torch.stack((here.flatten(), there.flatten())))[0, 1] > 0.9
    assert len(kinds) >= 4
    again = augment(shifted(2), (5, 2), (96, 80))
    assert torch.equal(again.previous, augment(shifted(2), (5, 2), (96, 80)).previous)


def test_rendered_pairs_are_those_of_their_number():
    pairs = RenderedPairs(size=(64, 48))
    first, other = pairs(3), pairs(4)
    assert not torch.equal(first.previous, other.previous)
    again = RenderedPairs(size=(64, 48))(3)
    assert torch.equal(first.previous, again.previous)
    assert torch.equal(first.forward.nan_to_num(), again.forward.nan_to_num())
    seen = ~first.forward_hidden
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    there = sample(first.current[..., None].float(), torch.stack((u, v), -1) + first.forward.nan_to_num())[..., 0]
    assert (there - first.previous.float())[seen].abs().median() < 4


def test_stored_pairs_are_made_once_in_random_order_and_mended(tmp_path):
    made = []
    stored = StoredPairs(lambda n: made.append(n) or shifted(n), tmp_path, count=5)
    stored.fill()
    assert made == [0, 1, 2, 3, 4]
    firsts = [stored(n).previous[0, :8].tolist() for n in range(10)]
    assert len(made) == 5
    assert sorted(firsts[:5]) == sorted(firsts[5:]) == sorted(shifted(n).previous[0, :8].tolist() for n in range(5))
    assert firsts[:5] != firsts[5:]
    (tmp_path / "000003.safetensors").write_bytes(b"broken")
    for number in range(5):
        stored(number)
    assert made[5:] == [3]


def test_live_pairs_of_a_share_are_whole():
    live = LivePairs(seed=1, size=(64, 48), device=CPU)
    pairs = live(range(4, 6))
    assert [pair.previous.shape for pair in pairs] == [(48, 64)] * 2
    assert pairs[0].forward.shape == (48, 64, 2)
    assert pairs[0].previous.dtype == torch.uint8
    assert torch.equal(live(range(4, 6))[1].current, pairs[1].current)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "guess"], "must be one of raft_small"),
        (["--size", "320x100"], "multiples of 8"),
        (["--size", "640x480", "--pairs", "4"], "stored pairs are 320x240"),
    ],
)
def test_the_command_names_what_it_cannot_do(arguments, message, tmp_path, capsys):
    assert main(["train", "flow", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
