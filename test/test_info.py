from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from conftest import CAMERA, START

from flowodom.bags import BagWriter
from flowodom.errors import BagError
from flowodom.info import describe


def test_a_whole_recording(make_bag):
    text = describe(make_bag(count=6))
    for part in (
        "0.17 s from 2023-11-14 22:13:20 UTC, 25 messages",
        "/camera/image_raw",
        "sensor_msgs/msg/CameraInfo",
        "160x120 rgb8, 30.0 Hz, frame 'camera_optical_frame'",
        "160x120, no distortion",
        "focal length 80.0 80.0 px, centre 79.5 59.5 px, view 90 x 74 deg",
        "160x120 32FC1, 30.0 Hz",
        "100 % of the first is valid, 2.00 to 2.00 m",
        "Odometry in frame 'world' of 'camera_link'",
        "camera_link -> camera_optical_frame (fixed)",
    ):
        assert part in text
    assert "warnings" not in text


def test_overrides_are_followed_and_checked(make_bag):
    bag = make_bag()
    assert "none: a single camera" in describe(bag, {"depth": "none"})
    with pytest.raises(BagError, match="/other"):
        describe(bag, {"image": "/other"})


def drop(*topics):
    return lambda topic, message, time: None if topic in topics else (topic, message, time)


def test_what_is_missing_is_said(make_bag):
    text = describe(make_bag(edit=drop("/camera/camera_info", "/ground_truth/odom", "/tf_static")))
    assert "there is no CameraInfo" in text
    assert "none: drift cannot be measured" in text
    assert "no transform leads to the camera's frame 'camera_optical_frame'" in text


def test_a_recording_without_images(make_bag):
    text = describe(make_bag(edit=drop("/camera/image_raw", "/camera/depth_registered/image_raw")))
    assert "nothing" in text
    assert "there is no camera image" in text


def test_a_cut_recording_is_described_as_far_as_it_goes(make_bag):
    bag = make_bag(count=20)
    file = next(bag.glob("*.mcap"))
    os.truncate(file, file.stat().st_size // 2)
    text = describe(bag)
    assert "damaged" in text
    assert "160x120 rgb8" in text


def edits(**changes):
    """``edits(image=f)``: f(message, index) for the messages whose topic ends so."""
    counts: dict[str, int] = {}

    def edit(topic, message, time):
        for part, change in changes.items():
            if part in topic:
                counts[part] = counts.get(part, -1) + 1
                message = change(message, counts[part])
        return None if message is None else (topic, message, time)

    return edit


def restamp(message, stamp):
    time = dataclasses.replace(message.header.stamp, sec=stamp // 10**9, nanosec=stamp % 10**9)
    return dataclasses.replace(message, header=dataclasses.replace(message.header, stamp=time))


def test_odd_stamps(make_bag):
    def image(message, i):
        return restamp(message, START + [0, 33, 33, 66, 50, 99, 600, 633][i] * 10**6)

    text = describe(make_bag(count=8, edit=edits(**{"camera/image_raw": image})))
    assert "go back 1 times" in text
    assert "repeat 1 times" in text
    assert "missing 1 times" in text
    zero = describe(make_bag("zero", edit=edits(**{"camera/image_raw": lambda m, i: restamp(m, 0)})))
    assert "all zero" in zero


def test_depth_that_does_not_fit(make_bag, factory):
    small = np.full((60, 80), np.nan, np.float32)
    text = describe(make_bag(edit=edits(depth=lambda m, i: factory.image(START + i * 10**9, "depth_frame", small))))
    assert "depth is 80x60 in frame 'depth_frame', but the image 160x120 in 'camera_optical_frame'" in text
    assert "no valid pixel" in text
    assert "4 of 5 images have no depth within 20 ms" in text


def test_a_calibration_that_does_not_fit(make_bag, factory):
    other = dataclasses.replace(CAMERA, width=640, height=480)
    text = describe(make_bag(edit=edits(camera_info=lambda m, i: factory.camera_info(START, "c", other))))
    assert "the image is 160x120 but its camera info says 640x480" in text
    text = describe(
        make_bag("zeros", edit=edits(camera_info=lambda m, i: dataclasses.replace(m, k=m.k * 0, p=m.p * 0)))
    )
    assert "is not calibrated" in text


def test_distortion_is_shown(make_bag, factory):
    bent = factory.camera_info(START, "c", CAMERA, distortion=[-0.3, 0.1, 0, 0, 0])
    text = describe(make_bag(edit=edits(camera_info=lambda m, i: bent)))
    assert "plumb_bob -0.3, 0.1, 0, 0, 0" in text


def test_two_sizes_and_an_unknown_encoding(make_bag, factory):
    small = factory.image(START, "c", np.zeros((60, 80, 3), np.uint8))
    text = describe(make_bag(edit=edits(**{"camera/image_raw": lambda m, i: small if i == 3 else m})))
    assert "several sizes (80x60, 160x120)" in text
    odd = describe(
        make_bag("odd", edit=edits(**{"camera/image_raw": lambda m, i: dataclasses.replace(m, encoding="x")}))
    )
    assert "image encoding 'x' is not supported" in odd


def test_slow_and_long_recordings(tmp_path, factory):
    image = factory.image(START, "camera", np.zeros((8, 8), np.uint8))
    with BagWriter(tmp_path / "bag.mcap") as writer:
        for i in range(100):
            time = START + i * 10**9
            writer.write("/image", restamp(image, time), time)
    text = describe(tmp_path / "bag.mcap")
    assert "1.0 Hz: neighbours share little" in text
    assert "only the first 60 s" in text


def test_real_recordings(recordings):
    for name in ("kitchen_rgbd", "street_mono", "desk_rgbd_10"):
        text = describe(recordings / name)
        assert "replay would use" in text
        assert "warnings" not in text
