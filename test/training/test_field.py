"""Training the field: it learns, a stopped run goes on as if it had not been, and nothing in the way is trusted."""

import pytest
import torch

from flowodom.cli import main
from flowodom.depth.field import FieldConfig, FieldNetwork, load_field
from flowodom.errors import ConfigError, WeightsError
from flowodom.training import field as training
from flowodom.training.field import Views, augment, judge, losses, train_field
from flowodom.training.views import render_pairs

TINY = FieldConfig(channels=(8, 16), hidden=8, octaves=3, cells=12)


@pytest.fixture(scope="module")
def pairs():
    return render_pairs(1, 3, width=64, height=48)


@pytest.fixture
def quick(monkeypatch, pairs):
    """A training whose worlds are there already."""
    monkeypatch.setattr(training, "render_pairs", lambda *_, **__: pairs)
    monkeypatch.setattr(training, "KEEP", 3)
    return {"config": TINY, "worlds": 1, "batch": 2, "size": (64, 48)}


def test_it_learns(quick, pairs, tmp_path):
    torch.manual_seed(0)
    before = judge(FieldNetwork(TINY), pairs)
    after = train_field(tmp_path, steps=60, rate=1e-2, **quick)
    assert after.abs_rel < 0.7 * before.abs_rel
    again = load_field(tmp_path / "field.safetensors")
    assert again.config.calibration == after.calibration
    assert again.config.scale_deviation == after.scale_deviation


def test_a_stopped_training_goes_on_as_if_it_had_not_been(quick, tmp_path, monkeypatch):
    train_field(tmp_path / "whole", steps=6, **quick)

    class Stop(Exception):
        pass

    original, calls = training.losses, []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise Stop
        return original(*arguments, **options)

    monkeypatch.setattr(training, "losses", stopping)
    with pytest.raises(Stop):
        train_field(tmp_path / "parts", steps=6, **quick)
    train_field(tmp_path / "parts", steps=6, **quick)
    assert len(calls) == 5 + 3
    whole, parts = (load_field(tmp_path / name / "field.safetensors").state_dict() for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_augmented_views_are_still_true(pairs):
    generator = torch.Generator().manual_seed(0)
    plain = Views.of(pairs)
    mirrored = next(v for v in (augment(pairs, generator) for _ in range(9)) if not torch.equal(v.rho, plain.rho))
    torch.testing.assert_close(mirrored.rho, plain.rho.flip(-1))
    torch.testing.assert_close(mirrored.intrinsics[:, 2], 1 - plain.intrinsics[:, 2])
    torch.testing.assert_close(mirrored.motion[:, 0, 3], -plain.motion[:, 0, 3])
    torch.testing.assert_close(torch.linalg.det(mirrored.motion[:, :3, :3]), torch.ones(3))
    assert mirrored.images.min() >= 0
    assert mirrored.images.max() <= 1


def test_losses_are_finite_and_named(pairs):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    found = losses(FieldNetwork(TINY), Views.of(pairs), generator, colours=True)
    assert set(found) == {"depth", "shape", "likelihood", "colour"}
    assert all(value.isfinite() for value in found.values())


def test_bad_input(quick, tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        train_field(tmp_path, steps=0)
    (tmp_path / "checkpoint.pt").write_bytes(b"\x80\x02not a checkpoint")
    with pytest.raises(WeightsError, match="remove it to begin anew"):
        train_field(tmp_path, steps=1, **quick)


def test_the_command(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "FieldConfig", lambda: TINY)
    arguments = ["--out", str(tmp_path), "--steps", "1", "--worlds", "1", "--device", "cpu"]
    assert main(["train", "field", *arguments]) == 0
    assert "delta-1" in capsys.readouterr().out
    assert load_field(tmp_path / "field.safetensors").config.channels == TINY.channels
