"""Adapting the field to a recording: it learns, it says so, and what it writes can be used."""

import csv

import pytest
import torch

from flowodom.cli import main
from flowodom.depth.field import FieldConfig, FieldNetwork, load_field, save_field
from flowodom.errors import BagError
from flowodom.training.adapt import adapt, pairs_of, video
from flowodom.worlds.recording import render_bag

TINY = FieldConfig(channels=(8, 16, 16), hidden=16, octaves=3, cells=12, near=0.5, far=20.0, pixels=64 * 48)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapt") / "room.mcap"
    render_bag(path, seed=5, frames=30, size=(64, 48), rate=15.0, depth=False, movers=0)
    return path


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FieldNetwork(TINY)


def test_it_learns_from_images_alone(bag, network, tmp_path):
    result = adapt([bag], tmp_path, network, steps=25, rate=3e-3)
    assert result.after < 0.7 * result.before
    with (tmp_path / "log.csv").open() as file:
        errors = [float(row["photometric"]) for row in csv.DictReader(file)]
    assert len(errors) == 13
    assert errors[-1] < errors[0] < result.before
    assert (tmp_path / "sheet.png").is_file()
    assert load_field(result.weights).config == TINY
    assert f"depth.field={result.weights}" in result.summary()


def test_pairs_move_enough_and_keep_their_time_order(bag, network):
    pairs = pairs_of(video(bag), network)
    assert 10 < len(pairs) <= 29
    assert pairs.images.shape[1:] == (2, 3, 48, 64)
    assert pairs.flow[:, 0].norm(dim=-1).flatten(1).median(1).values.min() > 0.01
    opposite = (pairs.flow[:, 0] + pairs.flow[:, 1]).norm(dim=-1).flatten(1).median(1).values
    assert (opposite < 0.03).all()


def test_a_recording_without_motion_is_refused(make_bag, network, tmp_path):
    still = make_bag(count=8, step=(0.0, 0.0, 0.0))
    with pytest.raises(BagError, match="only 0 pairs"):
        adapt([still], tmp_path, network, steps=1)


def test_the_command_writes_weights(bag, network, tmp_path, capsys):
    save_field(tmp_path / "start.safetensors", network, {})
    arguments = ["--set", f"depth.field={tmp_path / 'start.safetensors'}", "--steps", "2", "--device", "cpu"]
    assert main(["adapt", str(bag), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert "before" in capsys.readouterr().out
    assert load_field(tmp_path / "out" / "field.safetensors").config == TINY
