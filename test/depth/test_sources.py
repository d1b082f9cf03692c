"""Which depth a configuration asks for."""

import pytest
import torch

from flowodom.config import DepthConfig
from flowodom.depth.field import FieldConfig, FieldDepth, FieldNetwork, save_field
from flowodom.depth.filter import FilterDepth
from flowodom.depth.fusion import FusedDepth
from flowodom.depth.sensor import SensorDepth
from flowodom.depth.sources import choose_depth, field_file, find_field
from flowodom.errors import WeightsError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FieldNetwork(FieldConfig(channels=(8, 8), hidden=8))


@pytest.mark.parametrize(
    ("source", "with_sensor", "kind"),
    [
        ("auto", True, SensorDepth),
        ("auto", False, FilterDepth),
        ("sensor", False, SensorDepth),
        ("filter", True, FilterDepth),
    ],
)
def test_without_a_field(source, with_sensor, kind):
    assert type(choose_depth(DepthConfig(source=source), None, with_sensor=with_sensor)) is kind


@pytest.mark.parametrize(
    ("name", "with_sensor", "kind"),
    [("", False, FusedDepth), ("", True, SensorDepth), ("mine", False, FusedDepth), ("mine", True, FusedDepth)],
)
def test_auto_combines_what_there_is(network, name, with_sensor, kind):
    source = choose_depth(DepthConfig(field=name), FieldDepth(network), with_sensor=with_sensor)
    assert type(source) is kind
    assert source.metric == with_sensor


def test_the_configured_field_is_found(network, tmp_path):
    path = tmp_path / "field.safetensors"
    save_field(path, network, {})
    assert field_file(DepthConfig(field=str(path))) == path
    assert find_field(DepthConfig(field=str(path))).scale_deviation == network.config.scale_deviation
    assert find_field(DepthConfig(field=str(path), source="filter")) is None


def test_a_missing_field_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="no file of weights"):
        find_field(DepthConfig(field=str(tmp_path / "none.safetensors")))
