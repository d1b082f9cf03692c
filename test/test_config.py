"""Parameters: their ranges, and their way through command lines and files."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from flowodom.config import OdometryConfig, SessionConfig, load, override, parameter, parameters, to_yaml
from flowodom.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    count: int = parameter(3, "How many.", low=1, high=5)
    shape: str = parameter("round", "Which shape.", choices=("round", "square"), live=True)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    length: float = parameter(1.5, "How long.", unit="m", low=0.0)
    active: bool = parameter(True, "Whether it is at work.")
    name: str = parameter("", "What it is called.")


def write(folder: Path, text: str) -> Path:
    path = folder / "parameters.yaml"
    path.write_text(text)
    return path


def test_parameters_lists_every_leaf_in_order():
    found = list(parameters(Outer()))
    assert [p.name for p in found] == ["inner.count", "inner.shape", "length", "active", "name"]
    assert [p.kind for p in found] == [int, str, float, bool, str]
    count, shape, length = found[:3]
    assert (count.value, count.low, count.high, count.live) == (3, 1, 5, False)
    assert (shape.choices, shape.live) == (("round", "square"), True)
    assert (length.unit, length.description) == ("m", "How long.")


def test_override_replaces_and_leaves_the_rest_alone():
    config = Outer()
    changed = override(config, {"inner.count": 5, "active": False})
    assert changed == Outer(inner=Inner(count=5), active=False)
    assert config == Outer()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("inner.count", "4", 4),
        ("inner.shape", "square", "square"),
        ("length", "2", 2.0),
        ("length", 2, 2.0),
        ("length", "1e-3", 0.001),
        ("active", "False", False),
        ("active", "true", True),
        ("name", "5", "5"),
    ],
)
def test_values_become_the_type_of_their_parameter(name, value, expected):
    found = {p.name: p.value for p in parameters(override(Outer(), {name: value}))}[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inner.count", 0, "at least 1, got 0"),
        ("inner.count", 6, "at most 5, got 6"),
        ("inner.count", 2.0, "must be int, got 2.0"),
        ("inner.count", "two", "must be int, got 'two'"),
        ("inner.count", True, "must be int, got True"),
        ("inner.count", None, "must be int, got None"),
        ("inner.shape", "oval", "one of round, square, got 'oval'"),
        ("inner.shape", 1, "must be str, got 1"),
        ("length", -0.1, "at least 0.0, got -0.1"),
        ("length", "far", "must be float"),
        ("length", False, "must be float, got False"),
        ("length", math.nan, "finite"),
        ("length", "inf", "finite"),
        ("active", 1, "must be bool, got 1"),
        ("active", "yes", "must be bool, got 'yes'"),
        ("name", 3, "must be str, got 3"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(name, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(Outer(), {name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["colour", "inner", "inner.colour", "count", "inner.count.low", ""])
def test_unknown_names_are_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match=r"unknown parameter.*inner\.count, inner\.shape, length"):
        override(Outer(), {name: 1})


def test_load_reads_a_ros_parameter_file(tmp_path):
    path = write(tmp_path, "/**:\n  ros__parameters:\n    length: 2.5\n    inner:\n      count: 4\n")
    assert load(path, Outer()) == Outer(inner=Inner(count=4), length=2.5)


def test_load_takes_any_node_name_and_dotted_names(tmp_path):
    path = write(tmp_path, "/robot/odometry:\n  ros__parameters:\n    inner.count: 4\n")
    assert load(path, Outer()) == Outer(inner=Inner(count=4))


def test_load_reads_a_bare_mapping(tmp_path):
    assert load(write(tmp_path, "length: 2\ninner: {shape: square}\n"), Outer()) == Outer(Inner(shape="square"), 2.0)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n", "/**:\n  ros__parameters:\n"])
def test_load_of_a_file_without_parameters_changes_nothing(tmp_path, text):
    assert load(write(tmp_path, text), Outer(length=9.0)) == Outer(length=9.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "mapping of parameters, got list"),
        ("just words\n", "mapping of parameters, got str"),
        ("a: [\n", "cannot read"),
        ("/**:\n  ros__parameters: 5\n", "must be a mapping, got int"),
        ("colour: red\n", "unknown parameter 'colour'"),
        ("inner:\n", "unknown parameter 'inner'"),
        ("length: {x: 1}\n", "unknown parameter 'length.x'"),
        ("inner: {count: 9}\n", "at most 5"),
        ("length: .inf\n", "finite"),
    ],
)
def test_load_refuses_what_it_cannot_use(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, text), Outer())


def test_load_refuses_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read parameters from .*absent"):
        load(tmp_path / "absent.yaml", Outer())
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path, Outer())
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x9c")
    with pytest.raises(ConfigError, match="cannot read"):
        load(path, Outer())


@pytest.mark.parametrize(
    "config",
    [
        Outer(),
        Outer(Inner(5, "square"), 1e-7, False, "no"),
        Outer(name="a name that is so long that a careful printer would wrap its line " * 4),
        Outer(name="colon: # and 'quotes'"),
        OdometryConfig(),
        SessionConfig(),
    ],
)
def test_yaml_round_trip(tmp_path, config):
    assert load(write(tmp_path, to_yaml(config)), type(config)()) == config


def test_yaml_is_a_ros_parameter_file_that_explains_itself():
    text = to_yaml(Outer())
    assert yaml.safe_load(text) == {
        "/**": {
            "ros__parameters": {"inner": {"count": 3, "shape": "round"}, "length": 1.5, "active": True, "name": ""},
        }
    }
    assert "# How long. [m] (at least 0)" in text
    assert "# How many. (at least 1; at most 5)" in text
    assert "# Which shape. (one of round, square) (may change while running)" in text


def test_every_parameter_is_explained_and_its_default_is_allowed():
    for p in parameters(SessionConfig()):
        assert p.description.endswith("."), p.name
        assert p.check(p.value) == p.value
        assert type(p.value) is p.kind, p.name


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OdometryConfig().device = "cuda"
