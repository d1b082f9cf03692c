"""Adapting the field to a recording: it learns, it says so, and what it writes can be used."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowodom.cli import main
from flowodom.depth.field import FieldConfig, FieldNetwork, load_field, sample, save_field
from flowodom.errors import BagError
from flowodom.evaluation import compare
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.training.adapt import MEASURES, adapt, cut, pairs_of, paths_of, video
from flowodom.training.self_supervised import VideoPairs, motions
from flowodom.trajectory import Trajectory
from flowodom.worlds import Sensor, pinhole, sequence
from flowodom.worlds.recording import render_bag, scene

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
    assert result.after["photometric"] < 0.7 * result.before["photometric"]
    with (tmp_path / "log.csv").open() as file:
        errors = [float(row["photometric"]) for row in csv.DictReader(file)]
    assert len(errors) == 13
    assert errors[-1] < errors[0] < result.before["photometric"]
    assert (tmp_path / "sheet.png").is_file()
    assert load_field(result.weights).config == TINY
    assert set(result.after) == set(MEASURES), "the rendered bag has true poses"
    assert all(name in result.summary() for name in MEASURES.values())
    assert f"depth.field={result.weights}" in result.summary()


def test_true_poses_are_told_by_but_never_learned_from(bag, network, tmp_path):
    start = {name: value.clone() for name, value in network.state_dict().items()}
    known = adapt([bag], tmp_path / "known", network, steps=2)
    network.load_state_dict(start)
    blind = adapt([bag], tmp_path / "blind", network, steps=2, topics={"ground_truth": "none"})
    assert set(blind.after) == {"photometric"}
    assert "drift" not in blind.summary()
    assert blind.weights.read_bytes()[-1000:] == known.weights.read_bytes()[-1000:]


def test_what_is_held_out_shares_no_frame_with_what_is_learned(bag, network):
    pairs = pairs_of(video(bag), network)
    learned, end = cut(pairs)
    assert len(end) >= 3
    assert learned.stamps.max() < end.stamps.min()


def test_paths_chain_the_motions_of_pairs():
    ahead = se3.exp(torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0, 0.0], dtype=torch.float64)).expand(4, 4, 4)
    stamps = torch.tensor([[10, 20], [15, 25], [20, 30], [40, 50]])
    nothing = torch.zeros(4)
    pairs = VideoPairs(nothing, nothing, nothing, nothing, nothing, stamps)
    first, second = paths_of(pairs, ahead)
    assert first.stamps.tolist() == [10, 20, 30, 50]
    assert first.positions[:, 2].tolist() == pytest.approx([0, 1, 2, 3])
    assert second.stamps.tolist() == [15, 25, 50]


def test_poses_by_the_right_depth_do_not_drift():
    world, path = scene("room", "hand_held", seed=5, movers=0)
    steps = list(sequence(world, path, pinhole(), frames=16, rate=10.0, sensor=Sensor(seed=5)))
    exact = {step.frame.stamp: 1 / torch.from_numpy(step.frame.depth)[None, None] for step in steps}
    truth = Trajectory(np.array(list(exact)), np.stack([step.pose.numpy() for step in steps]))
    network = FieldNetwork(replace(TINY, pixels=160 * 120))
    pairs = pairs_of((step.frame for step in steps), network)
    seen = {
        image.numpy().tobytes(): exact[stamp]
        for images, stamps in zip(pairs.images, pairs.stamps.tolist(), strict=True)
        for image, stamp in zip(images, stamps, strict=True)
    }

    def depth(field, place, *, offset=0.5):
        known = torch.cat([seen[image.numpy().tobytes()] for image in field.images])
        rho = sample(known, place)[..., 0]
        return rho, (0.05 * rho).square()

    network.depth = depth
    (found, *_) = paths_of(pairs, motions(network, pairs))
    evaluation = compare(found, truth, correct_scale=True)
    assert evaluation.kitti_translation < 8
    assert evaluation.scale == pytest.approx(1, abs=0.08)


def test_pairs_move_enough_and_keep_their_time_order(bag, network):
    pairs = pairs_of(video(bag), network)
    assert 10 < len(pairs) <= 29
    assert pairs.images.shape[1:] == (2, 3, 48, 64)
    assert pairs.flow[:, 0].norm(dim=-1).flatten(1).median(1).values.min() > 0.01
    opposite = (pairs.flow[:, 0] + pairs.flow[:, 1]).norm(dim=-1).flatten(1).median(1).values
    assert (opposite < 0.03).all()


def test_a_pattern_that_repeats_is_followed_not_mistaken(network):
    v, u = np.mgrid[:120, :200].astype(float)
    tiles = 128 + 60 * np.sin(2 * np.pi * u / 16) * np.sin(2 * np.pi * v / 40)
    frames = [Frame(k, tiles[:, 3 * k : 3 * k + 160].astype(np.uint8), pinhole(160, 120)) for k in range(12)]
    pairs = pairs_of(iter(frames), network)
    gaps = (pairs.stamps[:, 1] - pairs.stamps[:, 0]).tolist()
    assert max(gaps) >= 3, "three frames lead nine pixels, of the sixteen after which the pattern repeats"
    for pair, gap in zip(pairs.flow[:, 0], gaps, strict=True):
        middle = 160 * pair[12:36, 16:48].median(dim=0).values.median(dim=0).values
        assert middle.tolist() == pytest.approx([-3 * gap, 0], abs=0.5)


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
