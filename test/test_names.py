import pytest

from flowodom.errors import ConfigError
from flowodom.names import Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image", "/robot/image"),
        ("/tf", "/tf"),
        ("~/reset", "/robot/flowodom/reset"),
        ("depth/image", "/robot/depth/image"),
    ],
)
def test_names_are_resolved_as_ros_does(name: str, expected: str) -> None:
    assert Names("flowodom", "robot").resolve(name) == expected


def test_without_a_namespace_names_start_at_the_root() -> None:
    names = Names("flowodom")
    assert names.resolve("image") == "/image"
    assert names.resolve("~/reset") == "/flowodom/reset"
    assert names.full_name == "/flowodom"


def test_rules_rename_topics_whatever_form_either_side_has() -> None:
    names = Names("flowodom", "/robot", ["image:=/camera/image_raw", "/tf:=tf", "~/reset:=reset"])
    assert names.resolve("image") == "/camera/image_raw"
    assert names.resolve("/robot/image") == "/camera/image_raw"
    assert names.resolve("/tf") == "/robot/tf"
    assert names.resolve("~/reset") == "/robot/reset"


def test_rules_rename_the_node_itself() -> None:
    names = Names("flowodom", remappings=["~/reset:=~/restart", "__node:=left", "__ns:=/cameras"])
    assert names.full_name == "/cameras/left"
    assert names.resolve("~/reset") == "/cameras/left/restart"


@pytest.mark.parametrize("rule", ["image", "image:=", ":=image", "image:=two words", "__node:=a/b"])
def test_malformed_rules_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError):
        Names("flowodom", remappings=[rule])
