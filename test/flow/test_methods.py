"""Flow methods and devices by name."""

import pytest
import torch

from flowodom import weights
from flowodom.config import FlowConfig, SessionConfig, parameters
from flowodom.errors import ConfigError, WeightsError
from flowodom.flow.checkpoint import save_raft
from flowodom.flow.dis import DisFlow
from flowodom.flow.learned import RaftFlow, RefinedFlow
from flowodom.flow.methods import METHODS, NETWORKS, SHARE, make_flow, method_for
from flowodom.flow.raft import Raft
from flowodom.flow.refiner import Refiner, save_refiner
from flowodom.odometry import decided, resolve_device


def test_the_configuration_offers_every_method_and_no_other():
    (offered,) = (p.choices for p in parameters(FlowConfig()) if p.name == "method")
    assert set(offered) == {"auto", *METHODS}


@pytest.mark.parametrize(
    ("shares", "best"),
    [
        ({}, "dis"),
        ({"raft": None}, "dis"),
        ({"raft": 1.2}, "dis"),
        ({"raft": 0.9}, "raft"),
        ({"raft": 0.9, "refined": 0.5}, "refined"),
        ({"raft": 0.4, "refined": 0.5}, "raft"),
        ({"raft": None, "refined": 0.5}, "refined"),
        ({"raft": 1.2, "refined": 0.5, "raft_refined": 0.4}, "raft_refined"),
        ({"raft": 1.2, "refined": 0.5, "raft_refined": 0.6}, "refined"),
        ({"raft_refined": 0.4}, "dis"),
    ],
)
def test_auto_is_what_was_measured_to_err_least_on_a_gpu_and_the_fastest_method_without(
    shares, best, monkeypatch, tmp_path
):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    said = {NETWORKS[method][0]: {} for method in shares}
    for method, share in shares.items():
        if share is not None:
            said[NETWORKS[method][0]][SHARE.format(method)] = str(share)
    for name, words in said.items():
        weights.write(tmp_path / f"{name}.safetensors", {"a": torch.zeros(1)}, {"model": "any", **words})
    auto, gpu = FlowConfig(), torch.device("cuda")
    assert auto.method == "auto"
    assert method_for(auto, gpu) == best
    assert method_for(auto, torch.device("cpu")) == "dis"
    assert isinstance(make_flow(auto, "cpu"), DisFlow)
    assert method_for(FlowConfig(method="lucas_kanade"), gpu) == "lucas_kanade"


def test_nothing_is_left_open_in_a_configuration_that_is_decided():
    config = decided(SessionConfig(device="cpu", camera_height=0.3))
    assert (config.flow.method, config.device, config.camera_height) == ("dis", "cpu", 0.3)
    assert decided(config) == config


@pytest.mark.parametrize("method", ["auto", "dis"])
def test_weights_ask_for_the_network_that_they_are_of(method):
    with pytest.raises(ConfigError, match=r"flow\.method=raft or refined or raft_refined"):
        make_flow(FlowConfig(method=method, weights="raft.safetensors"))


@pytest.mark.parametrize("name", ["dis", "lucas_kanade", "horn_schunck"])
def test_methods_without_weights_can_be_made(name):
    assert callable(make_flow(FlowConfig(method=name)))


def test_networks_are_made_from_the_file_that_is_named(tmp_path):
    raft, refiner = tmp_path / "raft.safetensors", tmp_path / "refiner.safetensors"
    save_raft(raft, Raft(size="small"), {})
    save_refiner(refiner, Refiner(width=8), {})
    assert isinstance(make_flow(FlowConfig(method="raft", weights=str(raft))), RaftFlow)
    assert isinstance(make_flow(FlowConfig(method="refined", weights=str(refiner))), RefinedFlow)
    assert isinstance(make_flow(FlowConfig(method="raft_refined", weights=str(raft))), RefinedFlow)
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
    with pytest.raises(ConfigError, match="auto, dis, lucas_kanade"):
        make_flow(FlowConfig(method="guess"))


def test_a_device_that_is_not_there_says_what_to_do():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="try auto or cpu"):
        resolve_device("abacus")
