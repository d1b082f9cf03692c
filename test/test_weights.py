"""Files of weights: what is written is read, and nothing in them is ever run."""

import pickle

import pytest
import torch
from torch import nn

from flowodom import weights
from flowodom.errors import WeightsError


class Trap:
    """Leaves a mark when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_tensors_and_words_come_back(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.float16)}
    weights.write(tmp_path / "w.safetensors", tensors, {"steps": "7"})
    again, words = weights.read(tmp_path / "w.safetensors")
    assert words == weights.words(tmp_path / "w.safetensors") == {"steps": "7"}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("name", ["posing.safetensors", "plain.pth"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_is_never_run(name, how, tmp_path):
    mark = tmp_path / "mark"
    if how == "torch":
        torch.save({"weight": Trap(mark)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"weight": Trap(mark)}))
    mark.unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="holds a pickle" if name.startswith("posing") else "no checkpoint of plain"):
        weights.read(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 250])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_cut_short_is_named(name, keep, tmp_path):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"a": torch.zeros(100)}, path)
    else:
        weights.write(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=name):
        weights.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "got list"), ({}, "got dict"), ({"a": torch.zeros(1), "b": "text"}, "got str under 'b'")],
)
def test_checkpoints_of_something_else_are_named(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        weights.read(tmp_path / "other.pth")


def test_no_file_is_named(tmp_path):
    for name in ("nothing.safetensors", "nothing.pth"):
        with pytest.raises(WeightsError, match="no file of weights at"):
            weights.read(tmp_path / name)


def test_filling_needs_every_tensor(tmp_path):
    layer = nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    weights.fill(layer, state, tmp_path)
    assert (layer.weight == 1).all()
    with pytest.raises(WeightsError, match=r"1 tensors are missing \['bias'\], 1 are unknown \['more'\]"):
        weights.fill(layer, {"weight": torch.ones(3, 2), "more": torch.zeros(1)}, tmp_path)


def test_what_ships_has_a_card_and_is_small():
    files = sorted(weights.FOLDER.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < 25e6
    for path in files:
        assert weights.read(path)[1], "metadata that say what it is"
        card = path.with_suffix(".md").read_text(encoding="utf-8").lower()
        for matter in ("data", "training", "seed", "steps", "flowodom train"):
            assert matter in card, f"{path.name}: {matter}"
        assert weights.shipped(path.stem) == path


def test_what_does_not_ship_is_none():
    assert weights.shipped("nothing") is None
