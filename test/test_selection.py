from __future__ import annotations

import pytest

from flowodom.errors import BagError
from flowodom.selection import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, Selection, Topic, is_rectified, select

ODOMETRY = "nav_msgs/msg/Odometry"
POSE = "geometry_msgs/msg/PoseStamped"
TRANSFORM = "geometry_msgs/msg/TransformStamped"


def topics(**kinds):
    """``topics(image="a b:20", info="c")``: names by kind, with a count after a colon (100 without)."""
    types = {
        "image": IMAGE,
        "compressed": COMPRESSED_IMAGE,
        "info": CAMERA_INFO,
        "odometry": ODOMETRY,
        "pose": POSE,
        "transform": TRANSFORM,
        "imu": "sensor_msgs/msg/Imu",
        "cloud": "sensor_msgs/msg/PointCloud2",
    }
    result = []
    for kind, names in kinds.items():
        for item in names.split():
            name, _, count = item.partition(":")
            result.append(Topic(name, types[kind], int(count or 100)))
    return result


RIGS = {
    "realsense, aligned": (
        topics(
            image="/camera/color/image_raw /camera/depth/image_rect_raw /camera/aligned_depth_to_color/image_raw "
            "/camera/infra1/image_rect_raw /camera/infra2/image_rect_raw",
            info="/camera/color/camera_info /camera/depth/camera_info /camera/aligned_depth_to_color/camera_info "
            "/camera/infra1/camera_info /camera/infra2/camera_info",
            imu="/camera/imu",
        ),
        Selection(
            "/camera/color/image_raw",
            "/camera/color/camera_info",
            "/camera/aligned_depth_to_color/image_raw",
            "/camera/aligned_depth_to_color/camera_info",
        ),
    ),
    "realsense, new names": (
        topics(
            image="/camera/camera/color/image_raw /camera/camera/aligned_depth_to_color/image_raw",
            info="/camera/camera/color/camera_info /camera/camera/aligned_depth_to_color/camera_info",
        ),
        Selection(
            "/camera/camera/color/image_raw",
            "/camera/camera/color/camera_info",
            "/camera/camera/aligned_depth_to_color/image_raw",
            "/camera/camera/aligned_depth_to_color/camera_info",
        ),
    ),
    "realsense, infrared and depth": (
        topics(
            image="/camera/depth/image_rect_raw /camera/infra1/image_rect_raw /camera/infra2/image_rect_raw",
            info="/camera/depth/camera_info /camera/infra1/camera_info /camera/infra2/camera_info",
        ),
        Selection(
            "/camera/infra1/image_rect_raw",
            "/camera/infra1/camera_info",
            "/camera/depth/image_rect_raw",
            "/camera/depth/camera_info",
        ),
    ),
    "TUM RGB-D": (
        topics(
            image="/camera/depth/image /camera/rgb/image_color",
            info="/camera/depth/camera_info /camera/rgb/camera_info",
            imu="/imu",
        ),
        Selection(
            "/camera/rgb/image_color", "/camera/rgb/camera_info", "/camera/depth/image", "/camera/depth/camera_info"
        ),
    ),
    "openni with everything": (
        topics(
            image="/camera/rgb/image_raw /camera/rgb/image_rect_color /camera/depth/image_raw "
            "/camera/depth_registered/image_raw /camera/ir/image_raw",
            compressed="/camera/rgb/image_raw/compressed /camera/depth_registered/image_raw/compressedDepth",
            info="/camera/rgb/camera_info /camera/depth/camera_info /camera/depth_registered/camera_info "
            "/camera/ir/camera_info",
        ),
        Selection(
            "/camera/rgb/image_rect_color",
            "/camera/rgb/camera_info",
            "/camera/depth_registered/image_raw",
            "/camera/depth_registered/camera_info",
        ),
    ),
    "EuRoC": (
        topics(image="/cam0/image_raw /cam1/image_raw", imu="/imu0", transform="/vicon/firefly_sbx/firefly_sbx"),
        Selection("/cam0/image_raw", ground_truth="/vicon/firefly_sbx/firefly_sbx"),
    ),
    "KITTI": (
        topics(
            image="/kitti/camera_color_left/image_raw /kitti/camera_color_right/image_raw "
            "/kitti/camera_gray_left/image_raw /kitti/camera_gray_right/image_raw",
            info="/kitti/camera_color_left/camera_info /kitti/camera_color_right/camera_info "
            "/kitti/camera_gray_left/camera_info /kitti/camera_gray_right/camera_info",
            cloud="/kitti/velo/pointcloud",
        ),
        Selection(
            "/kitti/camera_color_left/image_raw",
            "/kitti/camera_color_left/camera_info",
            right="/kitti/camera_color_right/image_raw",
            right_info="/kitti/camera_color_right/camera_info",
        ),
    ),
    "stereo_image_proc": (
        topics(
            image="/stereo/left/image_raw /stereo/left/image_rect_color /stereo/right/image_raw "
            "/stereo/right/image_rect_color",
            info="/stereo/left/camera_info /stereo/right/camera_info",
            odometry="/odom /ground_truth/state",
        ),
        Selection(
            "/stereo/left/image_rect_color",
            "/stereo/left/camera_info",
            right="/stereo/right/image_rect_color",
            right_info="/stereo/right/camera_info",
            ground_truth="/ground_truth/state",
        ),
    ),
    "zed": (
        topics(
            image="/zed/zed_node/rgb/image_rect_color /zed/zed_node/left/image_rect_color "
            "/zed/zed_node/right/image_rect_color /zed/zed_node/depth/depth_registered "
            "/zed/zed_node/confidence/confidence_map",
            info="/zed/zed_node/rgb/camera_info /zed/zed_node/left/camera_info /zed/zed_node/right/camera_info "
            "/zed/zed_node/depth/camera_info",
            odometry="/zed/zed_node/odom",
        ),
        Selection(
            "/zed/zed_node/left/image_rect_color",  # depth is registered to it; rgb is the same image
            "/zed/zed_node/left/camera_info",
            "/zed/zed_node/depth/depth_registered",
            "/zed/zed_node/depth/camera_info",
        ),
    ),
    "compressed only": (
        topics(
            compressed="/camera/color/image_raw/compressed /camera/aligned_depth_to_color/image_raw/compressedDepth "
            "/camera/aligned_depth_to_color/image_raw/compressed",
            info="/camera/color/camera_info",
            odometry="/ground_truth/odom",
        ),
        Selection(
            "/camera/color/image_raw/compressed",
            "/camera/color/camera_info",
            "/camera/aligned_depth_to_color/image_raw/compressedDepth",
            ground_truth="/ground_truth/odom",
        ),
    ),
    "webcam": (
        topics(image="/image_raw", info="/camera_info", compressed="/image_raw/compressed"),
        Selection("/image_raw", "/camera_info"),
    ),
    "simulator": (
        topics(
            image="/front_stereo_camera/left/image_raw /front_stereo_camera/right/image_raw /rear_camera/image_raw "
            "/segmentation/image",
            info="/front_stereo_camera/left/camera_info /front_stereo_camera/right/camera_info "
            "/rear_camera/camera_info",
            odometry="/chassis/odom /model/robot/ground_truth",
        ),
        Selection(
            "/front_stereo_camera/left/image_raw",
            "/front_stereo_camera/left/camera_info",
            right="/front_stereo_camera/right/image_raw",
            right_info="/front_stereo_camera/right/camera_info",
            ground_truth="/model/robot/ground_truth",
        ),
    ),
    "drone with a pose from motion capture": (
        topics(
            image="/camera/image_mono /camera/image_debug",
            info="/camera/camera_info",
            pose="/mocap/drone/pose /setpoint",
        ),
        Selection("/camera/image_mono", "/camera/camera_info", ground_truth="/mocap/drone/pose"),
    ),
    "realsense, no depth": (
        topics(
            image="/camera/color/image_raw /camera/infra1/image_rect_raw /camera/infra2/image_rect_raw",
            info="/camera/color/camera_info /camera/infra1/camera_info /camera/infra2/camera_info",
        ),
        Selection(
            "/camera/infra1/image_rect_raw",
            "/camera/infra1/camera_info",
            right="/camera/infra2/image_rect_raw",
            right_info="/camera/infra2/camera_info",
        ),
    ),
    "oak, compressed": (
        topics(
            compressed="/oak/left/image_raw/compressed /oak/right/image_raw/compressed /oak/rgb/image_raw/compressed",
            info="/oak/left/camera_info /oak/right/camera_info",
        ),
        Selection(
            "/oak/left/image_raw/compressed",
            "/oak/left/camera_info",
            right="/oak/right/image_raw/compressed",
            right_info="/oak/right/camera_info",
        ),
    ),
    "EuRoC with calibration": (
        topics(image="/cam0/image_raw /cam1/image_raw", info="/cam0/camera_info /cam1/camera_info"),
        Selection("/cam0/image_raw", "/cam0/camera_info", right="/cam1/image_raw", right_info="/cam1/camera_info"),
    ),
    "KITTI by number": (
        topics(
            image="/kitti/image_0 /kitti/image_1 /kitti/image_2 /kitti/image_3",
            info="/kitti/image_0_info /kitti/image_1_info /kitti/image_2_info /kitti/image_3_info",
        ),
        Selection("/kitti/image_0", "/kitti/image_0_info", right="/kitti/image_1", right_info="/kitti/image_1_info"),
    ),
    "two fisheyes": (
        topics(
            image="/camera/fisheye1/image_raw /camera/fisheye2/image_raw",
            info="/camera/fisheye1/camera_info /camera/fisheye2/camera_info",
        ),
        Selection(
            "/camera/fisheye1/image_raw",
            "/camera/fisheye1/camera_info",
            right="/camera/fisheye2/image_raw",
            right_info="/camera/fisheye2/camera_info",
        ),
    ),
    "hololens": (
        topics(
            image="/hololens/pv/image /hololens/vlc_lf/image /hololens/vlc_rf/image /hololens/depth_long/image",
            info="/hololens/pv/camera_info /hololens/vlc_lf/camera_info /hololens/depth_long/camera_info",
        ),
        Selection(
            "/hololens/pv/image",
            "/hololens/pv/camera_info",
            "/hololens/depth_long/image",
            "/hololens/depth_long/camera_info",
        ),
    ),
}


@pytest.mark.parametrize("rig", RIGS)
def test_known_rigs(rig):
    known, expected = RIGS[rig]
    assert select(known) == expected
    assert select(reversed(known)) == expected


def test_depth_by_encoding_where_the_name_is_silent():
    known = topics(image="/sensor/a /sensor/b")
    chosen = select(known, encodings={"/sensor/a": "32FC1", "/sensor/b": "rgb8"})
    assert (chosen.image, chosen.depth) == ("/sensor/b", "/sensor/a")


def test_infrared_of_16_bits_is_no_depth():
    assert select(topics(image="/camera/ir/image_raw"), encodings={"/camera/ir/image_raw": "16UC1"}).depth is None


def test_each_part_can_be_overridden_or_switched_off():
    known, _ = RIGS["realsense, aligned"]
    chosen = select(known, {"image": "/camera/infra2/image_rect_raw"})
    assert chosen.image == "/camera/infra2/image_rect_raw"
    assert chosen.camera_info == "/camera/infra2/camera_info"
    assert chosen.depth == "/camera/depth/image_rect_raw"
    assert select(known, {"depth": "none"}).depth is None
    assert select(known, {"depth": ""}).depth_info is None
    assert select(known, {"depth": "camera/depth/image_rect_raw"}).depth == "/camera/depth/image_rect_raw"
    assert select(known, {"camera_info": "/camera/depth/camera_info"}).camera_info == "/camera/depth/camera_info"
    truth, _ = RIGS["stereo_image_proc"]
    assert select(truth, {"ground_truth": "/odom"}).ground_truth == "/odom"


def test_the_right_camera_can_be_named_or_left_out():
    known, chosen = RIGS["stereo_image_proc"]
    assert select(known, {"right": "none"}).right is None
    assert select(known, {"right": "none"}).right_info is None
    assert select(known, {"right": "/stereo/right/image_raw"}).right == "/stereo/right/image_raw"
    assert select(known, {"right_info": "/stereo/left/camera_info"}).right_info == "/stereo/left/camera_info"
    assert select(known, {"image": "/stereo/left/image_raw"}).right == "/stereo/right/image_raw"
    assert select(known, {"image": chosen.right}).right is None
    realsense, _ = RIGS["realsense, no depth"]
    assert select(realsense, {"right": "none"}).image == "/camera/color/image_raw"


def test_depth_that_is_registered_goes_before_the_right_camera():
    known, _ = RIGS["zed"]
    assert select(known).right is None
    assert select(known, {"depth": "none"}).right == "/zed/zed_node/right/image_rect_color"
    assert select(known, {"depth": "none"}).right_info == "/zed/zed_node/right/camera_info"
    named = select(known, {"right": "/zed/zed_node/right/image_rect_color"})
    assert (named.depth, named.right) == (None, "/zed/zed_node/right/image_rect_color")


def test_a_right_camera_without_calibration_is_none():
    known = topics(image="/left/image_raw /right/image_raw", info="/left/camera_info")
    assert select(known).right is None


def test_only_the_words_for_the_side_are_changed():
    known = topics(image="/left_arm/left/image /left_arm/right/image", info="/left_arm/left/info /left_arm/right/info")
    assert select(known).right == "/left_arm/right/image"


def test_an_odometry_that_is_no_truth_is_not_taken_for_one():
    assert select(topics(image="/image", odometry="/odom", pose="/slam/pose")).ground_truth is None


def test_wrong_overrides_say_what_there_is():
    known = topics(image="/camera/image", info="/camera/camera_info")
    with pytest.raises(BagError, match=r"(?s)image topic /wrong is not there.*/camera/camera_info .*/camera/image "):
        select(known, {"image": "/wrong"})
    with pytest.raises(BagError, match=r"is sensor_msgs/msg/CameraInfo, but must be one of sensor_msgs/msg/Image"):
        select(known, {"depth": "/camera/camera_info"})
    with pytest.raises(BagError, match=r"no 'imu' to select; there are: image"):
        select(known, {"imu": "/imu"})


def test_no_image_at_all_says_what_there_is():
    with pytest.raises(BagError, match=r"(?s)no camera image.*/imu"):
        select(topics(imu="/imu"))
    with pytest.raises(BagError, match="none"):
        select([])
    with pytest.raises(BagError, match="no camera image"):
        select(topics(image="/camera/depth/image"))


def test_topics_without_messages_do_not_count():
    assert select(topics(image="/color/image:0 /grey/image:5")).image == "/grey/image"


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/camera/image_rect", True),
        ("/camera/image_rect_color/compressed", True),
        ("/camera/image_raw", False),
        ("/rect/image_raw", False),
        ("/camera/image_direct", False),
    ],
)
def test_rectified_images_are_known_by_name(topic, rectified):
    assert is_rectified(topic) == rectified
    assert Selection(topic).rectified == rectified
