"""RAFT from files: own and published ones, and files that are of something else."""

import pytest
import torch

from flowodom import weights
from flowodom.errors import WeightsError
from flowodom.flow.checkpoint import load_raft, save_raft
from flowodom.flow.raft import Raft

from . import published_raft as published


@pytest.mark.parametrize("size", ["small", "large"])
def test_published_files_load_in_both_layouts(size, tmp_path):
    authors, torchvision = published.random_weights(size)
    torch.save(authors, tmp_path / "authors.pth")
    weights.write(tmp_path / "torchvision.safetensors", torchvision, {})
    models = [load_raft(tmp_path / name) for name in ("authors.pth", "torchvision.safetensors")]
    for model in models:
        assert model.size == size
        assert model.update.mixture is None
        assert not model.training
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_own_files_come_back_with_their_uncertainty(tmp_path):
    model = Raft(size="small", uncertain=True)
    save_raft(tmp_path / "own.safetensors", model, {"steps": "3"})
    again = load_raft(tmp_path / "own.safetensors")
    assert again.update.mixture is not None
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert weights.read(tmp_path / "own.safetensors")[1] == {"model": "raft", "size": "small", "steps": "3"}


def test_a_checkpoint_within_a_checkpoint_is_found(tmp_path):
    torch.save({"model": published.random_weights("small")[1]}, tmp_path / "training.pth")
    assert load_raft(tmp_path / "training.pth").size == "small"


def without(state):
    return dict(list(state.items())[:-1])


def misshapen(state):
    return state | {"feature_encoder.conv.weight": torch.zeros(7, 96, 1, 1)}


def foreign(state):
    return {"encoder.weight": torch.zeros(3), "decoder.weight": torch.zeros(3)}


def unknown_size(state):
    return state | {"feature_encoder.convnormrelu.0.weight": torch.zeros(48, 3, 7, 7)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "1 tensors are missing"),
        (misshapen, r"must be of shape \(128, 96, 1, 1\), got \(7, 96, 1, 1\)"),
        (foreign, "keys must be those of RAFT.*encoder.weight"),
        (unknown_size, "no size of RAFT"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.write(path, change(published.random_weights("small")[1]), {})
    with pytest.raises(WeightsError, match=message):
        load_raft(path)


def test_weights_of_another_model_are_refused(tmp_path):
    weights.write(tmp_path / "field.safetensors", {"a": torch.zeros(1)}, {"model": "field"})
    with pytest.raises(WeightsError, match="holds a field, not a raft"):
        load_raft(tmp_path / "field.safetensors")
