"""Flow methods and devices by name."""

import pytest

from flowodom import weights
from flowodom.config import FlowConfig, parameters
from flowodom.errors import ConfigError, WeightsError
from flowodom.flow.checkpoint import save_raft
from flowodom.flow.learned import RaftFlow, RefinedFlow
from flowodom.flow.methods import METHODS, make_flow
from flowodom.flow.raft import Raft
from flowodom.flow.refiner import Refiner, save_refiner
from flowodom.odometry import resolve_device


def test_the_configuration_offers_every_method_and_no_other():
    (offered,) = (p.choices for p in parameters(FlowConfig()) if p.name == "method")
    assert set(offered) == set(METHODS)


@pytest.mark.parametrize("name", ["dis", "lucas_kanade", "horn_schunck"])
def test_methods_without_weights_can_be_made(name):
    assert callable(make_flow(FlowConfig(method=name)))


def test_networks_are_made_from_the_file_that_is_named(tmp_path):
    raft, refiner = tmp_path / "raft.safetensors", tmp_path / "refiner.safetensors"
    save_raft(raft, Raft(size="small"), {})
    save_refiner(refiner, Refiner(width=8), {})
    assert isinstance(make_flow(FlowConfig(method="raft", weights=str(raft))), RaftFlow)
    assert isinstance(make_flow(FlowConfig(method="refined", weights=str(refiner))), RefinedFlow)
    with pytest.raises(WeightsError, match="holds a refiner, not a raft"):
        make_flow(FlowConfig(method="raft", weights=str(refiner)))
    with pytest.raises(WeightsError, match="holds raft, not a refiner"):
        make_flow(FlowConfig(method="refined", weights=str(raft)))


@pytest.mark.parametrize("name", ["raft", "refined"])
def test_a_network_without_weights_says_where_to_get_them(name, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=f"flow.method={name}; name a file in flow.weights"):
        make_flow(FlowConfig(method=name))


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(ConfigError, match="dis, lucas_kanade"):
        make_flow(FlowConfig(method="guess"))


def test_a_device_that_is_not_there_says_what_to_do():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="try auto or cpu"):
        resolve_device("abacus")
