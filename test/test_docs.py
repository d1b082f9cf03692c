from pathlib import Path

import pytest

from flowodom.session import INPUTS, OUTPUTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("port", [*INPUTS, *OUTPUTS], ids=lambda port: port.name)
def test_every_topic_is_in_the_table_of_the_interface(port: object) -> None:
    text = (ROOT / "docs" / "ros2.md").read_text()
    assert f"`{port.name}`" in text  # type: ignore[attr-defined]
