from types import SimpleNamespace

import pytest
import torch

from flowodom.errors import ConfigError, FrameError
from flowodom.frames import FrameTree, motion_of, parse_pose, quaternion_from_euler
from flowodom.geometry import se3

SECOND = 1_000_000_000


def motion(x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    return se3.matrix(
        se3.so3_exp(torch.tensor([0.0, 0.0, yaw], dtype=torch.float64)), torch.tensor([x, y, z], dtype=torch.float64)
    )


def test_static_chain_is_composed_both_ways_and_holds_for_all_times() -> None:
    tree = FrameTree()
    tree.insert("base", "camera", 0, motion(x=1.0, yaw=0.5), static=True)
    tree.insert("camera", "optical", 0, motion(y=2.0), static=True)
    expected = motion(x=1.0, yaw=0.5) @ motion(y=2.0)
    torch.testing.assert_close(tree.lookup("base", "optical", 5 * SECOND), expected)
    torch.testing.assert_close(tree.lookup("optical", "base", 0), se3.inverse(expected))
    torch.testing.assert_close(tree.lookup("base", "base", 0), se3.identity())


def test_siblings_are_found_over_their_parent() -> None:
    tree = FrameTree()
    tree.insert("base", "left", 0, motion(y=0.1), static=True)
    tree.insert("base", "right", 0, motion(y=-0.1), static=True)
    torch.testing.assert_close(tree.lookup("left", "right", 0), motion(y=-0.2))


def test_moving_transforms_are_interpolated_on_the_geodesic() -> None:
    tree = FrameTree()
    tree.insert("base", "camera", 1 * SECOND, motion(yaw=0.0))
    tree.insert("base", "camera", 2 * SECOND, motion(yaw=1.0))
    torch.testing.assert_close(tree.lookup("base", "camera", SECOND * 5 // 4), motion(yaw=0.25))


def test_order_of_arrival_does_not_matter() -> None:
    tree = FrameTree()
    tree.insert("base", "camera", 2 * SECOND, motion(x=2.0))
    tree.insert("base", "camera", 1 * SECOND, motion(x=1.0))
    torch.testing.assert_close(tree.lookup("base", "camera", SECOND * 3 // 2), motion(x=1.5))


def test_a_lookup_just_outside_the_history_holds_and_one_far_outside_is_refused() -> None:
    tree = FrameTree(tolerance=0.1)
    tree.insert("base", "camera", 1 * SECOND, motion(x=1.0))
    torch.testing.assert_close(tree.lookup("base", "camera", SECOND + SECOND // 20), motion(x=1.0))
    with pytest.raises(FrameError, match=r"not known at 3\.000 s"):
        tree.lookup("base", "camera", 3 * SECOND)


def test_a_later_static_transform_replaces_the_earlier_one() -> None:
    tree = FrameTree()
    tree.insert("base", "camera", 0, motion(x=1.0), static=True)
    tree.lookup("base", "camera", 0)
    tree.insert("base", "camera", 0, motion(x=2.0), static=True)
    torch.testing.assert_close(tree.lookup("base", "camera", 0), motion(x=2.0))


def test_unknown_and_unconnected_frames_are_named() -> None:
    tree = FrameTree()
    with pytest.raises(FrameError, match="none at all"):
        tree.lookup("base", "camera", 0)
    tree.insert("base", "arm", 0, motion(), static=True)
    tree.insert("rig", "camera", 0, motion(), static=True)
    with pytest.raises(FrameError, match="the frame lidar"):
        tree.lookup("base", "lidar", 0)
    with pytest.raises(FrameError, match="not connected"):
        tree.lookup("base", "camera", 0)
    assert not tree.connected("base", "camera")


def test_two_parents_that_disagree_are_named_and_forgiven_once_one_is_silent() -> None:
    tree = FrameTree(duration=1.0)
    tree.insert("base", "left", 0, motion(x=1.0), static=True)
    tree.insert("base", "right", 0, motion(x=2.0), static=True)
    tree.insert("left", "camera", SECOND, motion())
    tree.insert("right", "camera", SECOND, motion())
    assert tree.contradictions() == {"camera": ("left", "right")}
    with pytest.raises(FrameError, match="camera has the parents left and right"):
        tree.lookup("base", "camera", SECOND)
    for second in (2, 3):
        tree.insert("left", "camera", second * SECOND, motion())
    assert tree.contradictions() == {}
    torch.testing.assert_close(tree.lookup("base", "camera", 3 * SECOND), motion(x=1.0))


def test_a_second_parent_that_leads_elsewhere_does_no_harm() -> None:
    tree = FrameTree()
    tree.insert("base", "camera", 0, motion(x=1.0), static=True)
    tree.insert("map", "camera", 0, motion(x=5.0))
    torch.testing.assert_close(tree.lookup("base", "camera", 0), motion(x=1.0))
    assert "camera" in tree.contradictions()


def test_bad_transforms_are_refused() -> None:
    tree = FrameTree()
    with pytest.raises(FrameError, match="two different frame names"):
        tree.insert("base", "/base", 0, motion())
    with pytest.raises(FrameError, match="NaN"):
        tree.insert("base", "camera", 0, motion(x=float("nan")))
    assert tree.frames() == set()


def test_a_message_with_one_bad_transform_still_gives_the_good_ones() -> None:
    tree = FrameTree()

    def transform(parent: str, child: str) -> SimpleNamespace:
        return SimpleNamespace(
            header=SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=1, nanosec=5)),
            child_frame_id=child,
            transform=SimpleNamespace(
                translation=SimpleNamespace(x=1.0, y=2.0, z=3.0), rotation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
            ),
        )

    with pytest.raises(FrameError, match="two different"):
        tree.insert_message(SimpleNamespace(transforms=[transform("", "a"), transform("/base", "camera")]), static=True)
    torch.testing.assert_close(tree.lookup("base", "camera", 0), motion(1.0, 2.0, 3.0))


def test_a_camera_is_fixed_to_the_root_of_its_static_transforms() -> None:
    tree = FrameTree()
    tree.insert("odom", "base_footprint", 0, se3.identity())
    tree.insert("base_footprint", "camera_link", 0, se3.identity(), static=True)
    tree.insert("camera_link", "camera", 0, se3.identity(), static=True)
    assert tree.root("/camera") == "base_footprint"
    assert tree.root("elsewhere") == "elsewhere"
    tree.insert("camera", "base_footprint", 0, se3.identity(), static=True)
    assert tree.root("camera") in tree.frames()


def test_clearing_keeps_the_static_transforms() -> None:
    tree = FrameTree()
    tree.insert("base", "camera", 0, motion(x=1.0), static=True)
    tree.insert("odom", "base", SECOND, motion(x=3.0))
    tree.clear_moving()
    assert tree.frames() == {"base", "camera"}


def test_poses_and_transforms_are_both_read_and_a_zero_quaternion_is_no_rotation() -> None:
    pose = SimpleNamespace(
        position=SimpleNamespace(x=1.0, y=0.0, z=0.0), orientation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=0.0)
    )
    torch.testing.assert_close(motion_of(pose), motion(x=1.0))


def test_a_transform_can_be_passed_over_either_way_round() -> None:
    tree = FrameTree()

    def transform(parent: str, child: str) -> SimpleNamespace:
        return SimpleNamespace(
            header=SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=1, nanosec=0)),
            child_frame_id=child,
            transform=SimpleNamespace(
                translation=SimpleNamespace(x=0.0, y=0.0, z=0.0), rotation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
            ),
        )

    transforms = [transform("odom", "base"), transform("base", "odom"), transform("base", "camera")]
    tree.insert_message(SimpleNamespace(transforms=transforms), without={"odom", "base"})
    assert tree.frames() == {"base", "camera"}


def test_euler_angles_turn_about_fixed_axes() -> None:
    quarter = 0.5 * torch.pi
    rotation = se3.from_quaternion(torch.tensor(quaternion_from_euler(quarter, 0.0, quarter), dtype=torch.float64))
    # Roll takes y to z, where the yaw that follows leaves it.
    torch.testing.assert_close(
        rotation @ torch.tensor([0.0, 1, 0], dtype=torch.float64), rotation.new_tensor([0.0, 0, 1])
    )


def test_poses_are_read_from_text() -> None:
    assert parse_pose("extrinsic", "  ") is None
    pose = parse_pose("extrinsic", "1 2 3 0 0 0.5")
    assert pose is not None
    torch.testing.assert_close(pose, motion(1.0, 2.0, 3.0, yaw=0.5))
    torch.testing.assert_close(parse_pose("extrinsic", "1, 2, 3, 0, 0, 0, 2"), motion(1.0, 2.0, 3.0))
    torch.testing.assert_close(parse_pose("extrinsic", "0 0 0 1 2 3", lambda *_: (0, 0, 0, 1)), motion())


@pytest.mark.parametrize("text", ["1 2 3", "a b c d e f", "0 0 0 0 0 0 0"])
def test_malformed_poses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="extrinsic must be"):
        parse_pose("extrinsic", text)
