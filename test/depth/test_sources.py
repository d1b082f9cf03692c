"""Which depth a configuration asks for."""

import numpy as np
import pytest
import torch

from flowodom.config import DepthConfig
from flowodom.depth.field import FieldConfig, FieldDepth, FieldNetwork, save_field
from flowodom.depth.filter import FilterDepth
from flowodom.depth.fusion import FusedDepth
from flowodom.depth.sensor import SensorDepth
from flowodom.depth.sources import choose_depth, field_file, find_field, measures
from flowodom.depth.stereo import StereoDepth
from flowodom.errors import WeightsError
from flowodom.frame import Frame, OtherEye
from flowodom.geometry import se3
from flowodom.worlds import pinhole

CAMERA = pinhole(16, 12)
IMAGE = np.zeros((12, 16), np.uint8)
RIGHT = se3.identity()
RIGHT[0, 3] = -0.1
ALONE = Frame(0, IMAGE, CAMERA)
MEASURED = Frame(0, IMAGE, CAMERA, np.ones((12, 16), np.float32))
PAIR = Frame(0, IMAGE, CAMERA, other=OtherEye(IMAGE, CAMERA, RIGHT))
BOTH = Frame(0, IMAGE, CAMERA, MEASURED.depth, other=PAIR.other)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FieldNetwork(FieldConfig(channels=(8, 8), hidden=8))


@pytest.mark.parametrize(
    ("source", "first", "kind"),
    [
        ("auto", MEASURED, SensorDepth),
        ("auto", ALONE, FilterDepth),
        ("auto", PAIR, StereoDepth),
        ("auto", BOTH, SensorDepth),
        ("sensor", ALONE, SensorDepth),
        ("sensor", PAIR, SensorDepth),
        ("filter", MEASURED, FilterDepth),
        ("filter", PAIR, FilterDepth),
    ],
)
def test_without_a_field(source, first, kind):
    assert type(choose_depth(DepthConfig(source=source), None, first)) is kind


def test_what_is_measured_is_known():
    assert not measures(DepthConfig(), ALONE)
    assert measures(DepthConfig(), MEASURED)
    assert measures(DepthConfig(), PAIR)
    assert not measures(DepthConfig(source="sensor"), PAIR)
    assert not measures(DepthConfig(source="filter"), BOTH)


@pytest.mark.parametrize(
    ("name", "first", "kind"),
    [
        ("", ALONE, FusedDepth),
        ("", MEASURED, SensorDepth),
        ("", PAIR, StereoDepth),
        ("mine", ALONE, FusedDepth),
        ("mine", MEASURED, FusedDepth),
        ("mine", PAIR, FusedDepth),
    ],
)
def test_auto_combines_what_there_is(network, name, first, kind):
    source = choose_depth(DepthConfig(field=name), FieldDepth(network), first)
    assert type(source) is kind
    assert source.metric == (first is not ALONE)


def test_the_configured_field_is_found(network, tmp_path):
    path = tmp_path / "field.safetensors"
    save_field(path, network, {})
    assert field_file(DepthConfig(field=str(path))) == path
    assert find_field(DepthConfig(field=str(path))).scale_deviation == network.config.scale_deviation
    assert find_field(DepthConfig(field=str(path), source="filter")) is None


def test_a_missing_field_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="no file of weights"):
        find_field(DepthConfig(field=str(tmp_path / "none.safetensors")))
