"""Flow methods and devices by name."""

import pytest

from flowodom.config import FlowConfig, parameters
from flowodom.errors import ConfigError
from flowodom.flow.methods import METHODS, make_flow
from flowodom.odometry import resolve_device


def test_every_method_that_the_configuration_offers_can_be_made():
    (offered,) = (p.choices for p in parameters(FlowConfig()) if p.name == "method")
    assert set(offered) == set(METHODS)
    for name in offered:
        assert type(make_flow(name)) is METHODS[name]


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(ConfigError, match="dis, lucas_kanade"):
        make_flow("raft")


def test_a_device_that_is_not_there_says_what_to_do():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="try auto or cpu"):
        resolve_device("abacus")
