"""A published depth network in the place of the field, with a stand-in for the package that loads it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowodom.config import DepthConfig
from flowodom.depth.published import DEVIATION, PublishedDepth
from flowodom.depth.sources import find_field
from flowodom.errors import ConfigError, WeightsError
from flowodom.frame import Frame
from flowodom.worlds import pinhole


class Flat(torch.nn.Module):
    """Says that everything is 4 m away, on a grid of its own."""

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**config)

    def forward(self, pixel_values):
        assert pixel_values.shape[:2] == (1, 3)
        return SimpleNamespace(predicted_depth=torch.full((1, 37, 53), 4.0))


@pytest.fixture
def package(monkeypatch):
    """Returns a function that puts a package with a network of the given configuration in place."""

    def install(**config):
        def load(name):
            if name == "missing":
                raise OSError("no such network")
            return Flat(**config)

        def prepare(image, return_tensors):
            return {"pixel_values": torch.from_numpy(image).permute(2, 0, 1)[None].float()}

        fake = SimpleNamespace(
            AutoImageProcessor=SimpleNamespace(from_pretrained=lambda _: prepare),
            AutoModelForDepthEstimation=SimpleNamespace(from_pretrained=load),
        )
        monkeypatch.setitem(sys.modules, "transformers", fake)

    return install


@pytest.mark.parametrize("shape", [(120, 160, 3), (120, 160)])
def test_its_depth_is_taken(package, shape):
    package(model_type="depth_anything", depth_estimation_type="metric")
    source = find_field(DepthConfig(field="transformers:some/network"))
    seen = source.observe(Frame(0, np.zeros(shape, np.uint8), pinhole(160, 120)))
    assert (seen.camera.width, seen.camera.height) == (20, 15)
    torch.testing.assert_close(seen.mean, torch.full((15, 20), 0.25))
    torch.testing.assert_close(seen.variance.sqrt(), torch.full((15, 20), 0.25 * DEVIATION))


def test_a_network_without_metres_is_refused(package):
    package(model_type="dpt")
    with pytest.raises(ConfigError, match="does not give metres"):
        PublishedDepth("some/network")


def test_a_network_that_is_not_there(package):
    package(model_type="zoedepth")
    with pytest.raises(WeightsError, match="no such network"):
        PublishedDepth("missing")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="needs the package transformers"):
        PublishedDepth("some/network")
