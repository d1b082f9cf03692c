import pytest

from flowodom.config import SessionConfig, override
from flowodom.endpoints import Endpoint, Quality, input_quality, likely_type, mismatch, output_quality
from flowodom.session import INPUTS, OUTPUTS

PORTS = {port.name: port for port in INPUTS}


def offer(msgtype: str = "sensor_msgs/msg/Image", **quality: bool) -> list[Endpoint]:
    return [Endpoint("/camera/image", msgtype, Quality(**quality))]


def test_sensor_data_may_get_lost_and_transforms_may_not() -> None:
    config = SessionConfig()
    assert not input_quality(PORTS["image"], config).reliable
    assert input_quality(PORTS["/tf_static"], config) == Quality(reliable=True, latched=True, depth=100)
    assert input_quality(PORTS["depth"], override(config, {"qos.reliable": True})).reliable


def test_odometry_goes_out_reliably_and_the_path_is_latched() -> None:
    qualities = {port.name: output_quality(port) for port in OUTPUTS}
    assert all(quality.reliable for quality in qualities.values())
    assert [name for name, quality in qualities.items() if quality.latched] == ["path"]


def test_what_fits_is_no_mismatch() -> None:
    assert mismatch(PORTS["image"], offer(reliable=False), Quality(reliable=False)) is None
    assert mismatch(PORTS["image"], offer("sensor_msgs/msg/CompressedImage"), Quality()) is None
    assert mismatch(PORTS["image"], [], Quality()) is None


@pytest.mark.parametrize(
    ("offered", "asked", "text"),
    [
        (offer("std_msgs/msg/String"), Quality(reliable=False), "/camera/image carries std_msgs/msg/String"),
        (offer(reliable=False), Quality(reliable=True), "best effort"),
        (offer(latched=False), Quality(latched=True), "not latched"),
    ],
)
def test_what_does_not_fit_is_named(offered: list[Endpoint], asked: Quality, text: str) -> None:
    error = mismatch(PORTS["image"], offered, asked)
    assert error is not None
    assert text in str(error)


@pytest.mark.parametrize(
    ("topic", "name"), [("/camera/image_raw", "Image"), ("/camera/image_raw/compressed", "CompressedImage")]
)
def test_the_type_is_guessed_from_the_transport_at_the_end_of_a_name(topic: str, name: str) -> None:
    assert likely_type(PORTS["image"], topic) == f"sensor_msgs/msg/{name}"
    assert likely_type(PORTS["camera_info"], topic) == "sensor_msgs/msg/CameraInfo"
