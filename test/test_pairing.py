import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flowodom.config import SessionConfig, override
from flowodom.errors import FrameError
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.health import Health
from flowodom.messages import MessageFactory
from flowodom.pairing import Moment, Pairing, Picture

SECOND = 1_000_000_000
STEP = SECOND // 10
CAMERA = PinholeCamera(fx=40.0, fy=40.0, cx=15.5, cy=11.5, width=32, height=24)
BIG = PinholeCamera(fx=80.0, fy=80.0, cx=31.5, cy=23.5, width=64, height=48)
Ready = list[tuple[int, int | None]]
make = MessageFactory()


class Desk:
    """A pairing with short ways to feed it; ``ready`` are the stamps of image and depth that came out of it so far."""

    def __init__(self, *, calibrated: bool = True, with_depth: bool = True, **values: object) -> None:
        self.health = Health()
        config = override(SessionConfig(), {name.replace("__", "."): value for name, value in values.items()})
        self.pairing = Pairing(config, self.health, with_depth=with_depth, resolve="/front/{}".format)
        self.ready: Ready = []
        if calibrated:
            self.calibrate()

    def calibrate(self, camera: PinholeCamera = CAMERA) -> None:
        self.pairing.calibrate(make.camera_info(0, "camera", camera))
        self.work()

    def image(self, stamp: int, camera: PinholeCamera = CAMERA) -> bool:
        pixels = np.full((camera.height, camera.width), 100, dtype=np.uint8)
        jumped = self.pairing.add_image(Picture(stamp, "camera", pixels))
        self.work()
        return jumped

    def depth(self, stamp: int) -> None:
        self.pairing.add_depth(Picture(stamp, "camera", np.full((24, 32), 2.0, dtype=np.float32)))
        self.work()

    def work(self, *, final: bool = False) -> None:
        for moment in self.pairing.ready(final=final):
            self.ready.append((moment.image.stamp, None if moment.depth is None else moment.depth.stamp))


def test_depth_that_comes_first_or_late_or_with_a_small_difference_is_paired() -> None:
    desk = Desk()
    desk.depth(0)
    desk.image(0)
    desk.image(STEP)
    desk.image(2 * STEP)
    assert desk.ready == [(0, 0)]
    desk.depth(STEP + SECOND // 100)
    desk.depth(2 * STEP)
    assert desk.ready == [(0, 0), (STEP, STEP + SECOND // 100), (2 * STEP, 2 * STEP)]


def test_the_nearest_depth_is_taken() -> None:
    desk = Desk()
    desk.depth(STEP - SECOND // 60)
    desk.image(STEP)
    assert desk.ready == []
    desk.depth(STEP + SECOND // 500)
    assert desk.ready == [(STEP, STEP + SECOND // 500)]


def test_images_between_slower_depth_are_used_without_and_counted() -> None:
    desk = Desk()
    for i in range(4):
        desk.image(i * STEP)
        if i % 2 == 0:
            desk.depth(i * STEP)
    assert desk.ready == [(0, 0), (STEP, None), (2 * STEP, 2 * STEP)]
    assert desk.health.counts["unpaired"] == 1


def test_images_before_the_first_depth_and_all_without_that_of_a_sensor_are_skipped() -> None:
    for source, ready in (("auto", [(STEP, STEP), (2 * STEP, None)]), ("sensor", [(STEP, STEP)])):
        desk = Desk(depth__source=source)
        for i in range(4):
            desk.image(i * STEP)
            if i % 2 == 1:
                desk.depth(i * STEP)
        assert desk.ready == [*ready, (3 * STEP, 3 * STEP)]


def test_images_do_not_wait_for_depth_that_by_its_rate_cannot_come_yet() -> None:
    desk, slow = Desk(), 5 * STEP
    for i in range(50):
        desk.image(i * STEP)
        if i % 5 == 0:
            desk.depth(i * STEP)
    assert [stamp for stamp, _ in desk.ready][-1] == 48 * STEP
    desk.image(50 * STEP)
    assert desk.ready[-1] == (48 * STEP, None)  # 49 and 50 may still get theirs
    desk.depth(50 * STEP)
    assert desk.ready[-2:] == [(49 * STEP, None), (50 * STEP, 50 * STEP)]
    assert [depth for _, depth in desk.ready if depth is not None] == list(range(0, 51 * STEP, slow))


def test_depth_that_comes_once_a_second_is_used_from_its_third_on_and_is_waited_for_only_when_due() -> None:
    desk = Desk()
    for i in range(41):
        desk.image(i * STEP)
        if i % 10 == 0:
            desk.depth(i * STEP)
        if i in (26, 36):
            assert desk.ready[-1][0] == i * STEP
    assert [depth for _, depth in desk.ready if depth is not None] == [0, 20 * STEP, 30 * STEP, 40 * STEP]
    assert [stamp for stamp, _ in desk.ready] == [i * STEP for i in range(41)]


def test_where_no_depth_can_come_images_do_not_wait() -> None:
    for desk in (Desk(with_depth=False), Desk(depth__source="filter")):
        desk.depth(0)
        desk.image(0)
        assert desk.ready == [(0, None)]


def test_depth_that_stops_is_waited_for_and_then_done_without(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    with caplog.at_level(logging.WARNING):
        for i in range(6):
            desk.image(i * STEP)
        assert desk.ready == []
        for i in range(6, 10):
            desk.image(i * STEP)
    assert desk.ready == [(i * STEP, None) for i in range(10)]
    assert caplog.text.count("no depth on /front/depth for 0.5 s") == 1
    desk.depth(10 * STEP)
    desk.image(10 * STEP)
    assert desk.ready[-1] == (10 * STEP, 10 * STEP)


def test_at_the_end_depth_that_lacks_for_the_last_image_has_not_stopped(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.image(0)
    desk.depth(0)
    desk.image(STEP)
    with caplog.at_level(logging.WARNING):
        desk.work(final=True)
    assert desk.ready == [(0, 0), (STEP, None)]
    assert "going on" not in caplog.text
    assert desk.health.counts["unpaired"] == 1


def test_depth_that_must_be_a_sensors_is_never_done_without() -> None:
    desk = Desk(depth__source="sensor")
    for i in range(10):
        desk.image(i * STEP)
    desk.work(final=True)
    assert desk.ready == []
    assert desk.health.counts["unpaired"] == 10
    assert "/front/depth" in str(desk.health.problems["depth"])


def test_images_wait_for_their_calibration_and_only_so_long() -> None:
    desk = Desk(calibrated=False, with_depth=False)
    for i in range(8):
        desk.image(i * STEP)
    assert desk.ready == []
    assert desk.health.counts["uncalibrated"] == 2
    assert "/front/camera_info" in str(desk.health.problems["calibration"])
    desk.calibrate()
    assert desk.ready == [(i * STEP, None) for i in range(2, 8)]
    assert desk.health.problems == {}


def test_a_change_of_size_goes_on_once_its_calibration_has_come() -> None:
    desk = Desk(with_depth=False)
    desk.image(0)
    desk.image(STEP, BIG)
    assert desk.ready == [(0, None)]
    desk.calibrate(BIG)
    assert desk.ready == [(0, None), (STEP, None)]


def focused(stretch: float) -> PinholeCamera:
    return replace(CAMERA, fx=stretch * CAMERA.fx, fy=stretch * CAMERA.fy)


class Autofocus(Desk):
    """A pairing of a camera whose lens is told anew with every image; ``frames`` are what came out of it."""

    def __init__(self) -> None:
        self.frames: dict[int, Frame] = {}
        super().__init__(with_depth=False)

    def focus(self, stamp: int, stretch: float) -> None:
        self.pairing.calibrate(make.camera_info(stamp, "camera", focused(stretch)))
        self.work()

    def work(self, *, final: bool = False) -> None:
        for moment in self.pairing.ready(final=final):
            self.frames[moment.image.stamp] = self.pairing.frame(moment)

    def unseen(self, stamp: int) -> int:
        """Returns how many pixels of a frame its lens has not seen."""
        ignore = self.frames[stamp].ignore
        return 0 if ignore is None else int(ignore.sum())


def test_images_of_a_lens_that_focuses_by_itself_are_brought_to_one_camera(caplog: pytest.LogCaptureFixture) -> None:
    desk = Autofocus()
    with caplog.at_level(logging.INFO):
        for i, stretch in enumerate((1.0, 1.05, 1.09, 0.97)):
            desk.focus(i * STEP, stretch)
            desk.image(i * STEP)
    assert list(desk.frames) == [0, STEP, 2 * STEP, 3 * STEP]
    assert all(frame.camera == CAMERA for frame in desk.frames.values())
    assert desk.unseen(0) == desk.unseen(3 * STEP) == 0
    assert 0 < desk.unseen(STEP) <= desk.unseen(2 * STEP)
    assert caplog.text.count("the lens of 'camera' changes") == 1


def test_an_image_waits_for_what_its_own_lens_was_like_and_no_longer() -> None:
    desk = Autofocus()
    desk.image(0)
    desk.focus(0, 1.0)
    desk.focus(STEP, 1.08)
    desk.image(STEP)
    desk.image(2 * STEP)
    assert list(desk.frames) == [0, STEP]
    desk.focus(2 * STEP, 1.0)
    assert desk.unseen(STEP) > desk.unseen(2 * STEP) == 0
    desk.image(3 * STEP)
    assert list(desk.frames) == [0, STEP, 2 * STEP]
    for i in range(4, 13):  # nothing is told any more
        desk.image(i * STEP)
    assert list(desk.frames) == [i * STEP for i in range(13)]


def test_a_lens_that_is_told_anew_once_keeps_no_image_waiting_for_long() -> None:
    desk = Autofocus()
    desk.focus(0, 1.02)
    for i in range(6, 12):
        desk.image(i * STEP)
        assert len(desk.frames) == i - 5
    assert list(desk.frames) == [i * STEP for i in range(6, 12)]


def test_repeated_and_late_images_are_passed_over() -> None:
    desk = Desk(with_depth=False)
    for stamp in (STEP, STEP, STEP - SECOND // 50, 2 * STEP):
        assert not desk.image(stamp)
    assert desk.ready == [(STEP, None), (2 * STEP, None)]
    assert (desk.health.counts["repeated"], desk.health.counts["out_of_order"]) == (1, 1)


def test_a_short_jump_back_is_known_by_the_image_after_it() -> None:
    desk = Desk(with_depth=False)
    step = SECOND // 30
    assert [desk.image(i * step) for i in (0, 1, 2, 0, 1, 2)] == [False, False, False, False, True, False]
    assert [stamp for stamp, _ in desk.ready] == [0, step, 2 * step, step, 2 * step]
    assert desk.health.counts["jumps"] == 1


def test_depth_of_before_a_jump_that_comes_after_it_does_no_harm() -> None:
    desk = Desk()
    for i in range(5):
        desk.image(i * STEP)
        desk.depth(i * STEP)
    desk.image(5 * STEP)
    desk.image(0)
    desk.depth(5 * STEP)
    desk.depth(0)
    desk.image(STEP)
    desk.depth(STEP)
    assert desk.ready[-2:] == [(0, 0), (STEP, STEP)]


def test_what_was_cleared_does_not_come_out() -> None:
    desk = Desk()
    desk.image(0)
    desk.pairing.clear()
    desk.depth(0)
    assert desk.ready == []


def test_a_frame_has_the_depth_and_the_mask_that_fit_it() -> None:
    desk = Desk()
    image = Picture(0, "camera", np.full((24, 32), 100, dtype=np.uint8))
    depth = Picture(0, "camera", np.full((24, 32), 2.0, dtype=np.float32))
    mask = np.zeros((24, 32, 3), dtype=np.uint8)
    mask[:10] = 255
    desk.pairing.set_mask(Picture(0, "camera", mask))
    frame = desk.pairing.frame(Moment(image, depth))
    assert frame.camera == CAMERA
    assert frame.depth is not None
    assert frame.ignore is not None
    np.testing.assert_allclose(frame.depth[1:-1, 1:-1], 2.0)
    assert frame.ignore[:9].all()
    assert not frame.ignore[11:].any()
    frame = desk.pairing.frame(Moment(image, Picture(0, "camera", depth.pixels[::2, ::2])))
    assert frame.depth is None
    assert "/front/depth is 16x12 but the image is 32x24" in str(desk.health.problems["depth size"])
    desk.pairing.frame(Moment(image, depth))
    assert desk.health.problems == {}


class Rig(Desk):
    """A pairing of a stereo rig; ``eyes`` are the stamps of the images, and of the right ones with them."""

    def __init__(self, *, baseline: float = 0.1, tf: Tensor | None = None, with_right: bool = True, **values: object):
        self.health = Health()
        config = override(SessionConfig(), {name.replace("__", "."): value for name, value in values.items()})

        def locate(target: str, source: str, stamp: int) -> Tensor:
            if tf is None:
                raise FrameError(f"no transform from {source} to {target}")
            return tf

        self.pairing = Pairing(
            config, self.health, with_depth=False, with_right=with_right, resolve="/rig/{}".format, locate=locate
        )
        self.ready: Ready = []
        self.eyes: Ready = []
        self.frames: list[Frame] = []
        self.calibrate()
        if baseline >= 0:
            self.calibrate_right(baseline)

    def calibrate_right(self, baseline: float) -> None:
        self.pairing.calibrate_right(make.camera_info(0, "right", CAMERA, baseline=baseline))
        self.work()

    def right(self, stamp: int, camera: PinholeCamera = CAMERA) -> None:
        pixels = np.full((camera.height, camera.width), 90, dtype=np.uint8)
        self.pairing.add_right(Picture(stamp, "right", pixels))
        self.work()

    def work(self, *, final: bool = False) -> None:
        for moment in self.pairing.ready(final=final):
            self.frames.append(self.pairing.frame(moment))
            seen = self.frames[-1].other is not None and moment.right is not None
            self.eyes.append((moment.image.stamp, moment.right.stamp if seen and moment.right else None))


class Kinect:
    """A pairing whose depth comes from a camera of its own, 10 cm beside and half as fine."""

    def __init__(self, *, placed: bool = True) -> None:
        self.health = Health()
        self.placed = placed
        self.pairing = Pairing(SessionConfig(), self.health, resolve="/front/{}".format, locate=self.locate)
        self.pairing.calibrate(make.camera_info(0, "camera", BIG))
        self.depth = Picture(0, "depth", np.full((24, 32), 2.0, dtype=np.float32))
        self.pairing.add_image(Picture(0, "camera", np.full((48, 64), 100, dtype=np.uint8)))
        self.pairing.add_depth(self.depth)

    def locate(self, target: str, source: str, _: int) -> Tensor:
        assert (target, source) == ("camera", "depth")
        if not self.placed:
            raise FrameError("no transform from depth to camera")
        return se3.matrix(torch.eye(3, dtype=torch.float64), torch.tensor((0.1, 0.0, 0.0), dtype=torch.float64))

    def calibrate_depth(self, camera: PinholeCamera = CAMERA) -> None:
        self.pairing.calibrate_depth(make.camera_info(0, "depth", camera))


def test_depth_of_a_camera_beside_is_moved_to_the_camera_once_its_place_is_known() -> None:
    kinect = Kinect()
    assert list(kinect.pairing.ready()) == []
    kinect.calibrate_depth()
    (moment,) = kinect.pairing.ready()
    depth = kinect.pairing.frame(moment).depth
    assert depth is not None
    assert depth.shape == (24, 32)  # as coarse as it came
    np.testing.assert_allclose(depth[:, 2:], 2.0, rtol=1e-6)
    assert np.isnan(depth[:, :2]).all()  # 40 px * 0.1 m / 2 m beside
    assert kinect.health.problems == {}


def test_depth_whose_place_nobody_tells_is_taken_for_registered_where_it_fits_and_that_is_reported() -> None:
    for kinect, camera in ((Kinect(), None), (Kinect(placed=False), CAMERA)):
        if camera is not None:
            kinect.calibrate_depth(camera)
        (moment,) = kinect.pairing.ready(final=True)
        assert kinect.pairing.frame(moment).depth is None  # of another size
        problem = str(kinect.health.problems["depth place"])
        assert "'depth'" in problem
        assert ("/front/depth_info" if camera is None else "no transform from depth to camera") in problem
        assert "32x24" in str(kinect.health.problems["depth size"])
        fitting = Picture(0, "depth", np.full((48, 64), 2.0, dtype=np.float32))
        depth = kinect.pairing.frame(moment._replace(depth=fitting)).depth
        assert depth is not None
        np.testing.assert_allclose(depth, 2.0)


def test_depth_in_another_frame_with_the_calibration_of_the_image_is_registered() -> None:
    kinect = Kinect(placed=False)
    kinect.calibrate_depth(BIG)
    moment = Moment(
        Picture(0, "camera", np.zeros((48, 64), np.uint8)), Picture(0, "depth", np.ones((48, 64), np.float32))
    )
    depth = kinect.pairing.frame(moment).depth
    assert depth is not None
    np.testing.assert_allclose(depth, 1.0)
    assert kinect.health.problems == {}


def test_coarser_depth_of_the_same_camera_is_used_as_it_is() -> None:
    kinect = Kinect(placed=False)
    kinect.calibrate_depth()
    moment = Moment(Picture(0, "camera", np.zeros((48, 64), np.uint8)), Picture(0, "camera", kinect.depth.pixels))
    depth = kinect.pairing.frame(moment).depth
    assert depth is not None
    np.testing.assert_allclose(depth, 2.0, rtol=1e-6)
    assert depth.shape == (24, 32)


def test_depth_that_does_not_fit_its_own_calibration_is_not_used() -> None:
    kinect = Kinect()
    kinect.calibrate_depth(BIG)
    moment = Moment(Picture(0, "camera", np.zeros((48, 64), np.uint8)), kinect.depth)
    assert kinect.pairing.frame(moment).depth is None
    assert "32x24" in str(kinect.health.problems["depth size"])


def test_an_image_waits_for_that_of_the_right_camera() -> None:
    rig = Rig()
    rig.image(0)
    assert rig.eyes == []
    rig.right(SECOND // 1000)
    rig.right(STEP)
    rig.image(STEP)
    assert rig.eyes == [(0, SECOND // 1000), (STEP, STEP)]
    eye = rig.frames[0].other
    assert eye is not None
    assert eye.camera == CAMERA
    assert int(eye.image[5, 5]) == 90
    torch.testing.assert_close(eye.place, torch.tensor([0.1, 0, 0], dtype=torch.float64))
    assert rig.health.problems == {}


def test_right_images_that_never_come_are_done_without(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    with caplog.at_level(logging.WARNING):
        for i in range(10):
            rig.image(i * STEP)
    assert rig.eyes == [(i * STEP, None) for i in range(10)]
    assert caplog.text.count("no right image on /rig/right for 0.5 s: going on with the left camera alone") == 1
    rig.right(10 * STEP)
    rig.image(10 * STEP)
    assert rig.eyes[-1] == (10 * STEP, 10 * STEP)


def test_an_image_whose_right_one_was_lost_is_used_without() -> None:
    rig = Rig()
    for i in range(4):
        rig.image(i * STEP)
        if i != 2:
            rig.right(i * STEP)
    assert rig.eyes == [(0, 0), (STEP, STEP), (2 * STEP, None), (3 * STEP, 3 * STEP)]
    assert rig.health.counts["unpaired"] == 1


def test_a_right_camera_nobody_told_of_is_not_waited_for_until_it_is_heard() -> None:
    rig = Rig(with_right=False)
    rig.image(0)
    assert rig.eyes == [(0, None)]
    rig.right(STEP)
    rig.image(STEP)
    rig.image(2 * STEP)
    assert rig.eyes == [(0, None), (STEP, STEP)]
    rig.right(2 * STEP)
    assert rig.eyes[-1] == (2 * STEP, 2 * STEP)


def test_without_a_baseline_tf_says_where_the_right_camera_is() -> None:
    place = se3.exp(torch.tensor([-0.2, 0, 0, 0, 0.01, 0], dtype=torch.float64))
    rig = Rig(baseline=0.0, tf=place)
    rig.image(0)
    rig.right(0)
    assert rig.frames[0].other is not None
    torch.testing.assert_close(rig.frames[0].other.motion, place)


def test_without_a_baseline_anywhere_one_camera_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(baseline=0.0)
    with caplog.at_level(logging.WARNING):
        for i in range(8):
            rig.image(i * STEP)
            rig.right(i * STEP)
            if i < 5:
                assert rig.eyes == []  # a transform may still come
    assert rig.eyes == [(i * STEP, None) for i in range(8)]
    text = str(rig.health.problems["stereo"])
    assert "/rig/right_info has no baseline" in text
    assert "no transform from camera to right" in text
    assert caplog.text.count("has no baseline") == 1


def test_a_calibration_that_comes_late_is_waited_for() -> None:
    rig = Rig(baseline=-1.0)
    rig.image(0)
    rig.right(0)
    assert rig.eyes == []
    rig.calibrate_right(0.1)
    assert rig.eyes == [(0, 0)]


def test_right_images_that_do_not_fit_their_calibration_are_not_used() -> None:
    rig = Rig()
    rig.image(0)
    rig.right(0, BIG)
    assert rig.eyes == [(0, None)]
    assert "64x48" in str(rig.health.problems["stereo"])
    rig.image(STEP)
    rig.right(STEP)
    assert rig.eyes[-1] == (STEP, STEP)
    assert rig.health.problems == {}


def test_depth_goes_before_the_right_camera_while_it_comes() -> None:
    desk = Desk()
    desk.pairing.calibrate_right(make.camera_info(0, "right", CAMERA, baseline=0.1))
    pixels = np.full((24, 32), 90, dtype=np.uint8)
    found = []
    for i in range(12):
        desk.pairing.add_image(Picture(i * STEP, "camera", pixels))
        desk.pairing.add_right(Picture(i * STEP, "right", pixels))
        if i < 3:
            desk.pairing.add_depth(Picture(i * STEP, "camera", np.full((24, 32), 2.0, dtype=np.float32)))
        found += [(m.depth is not None, m.right is not None) for m in desk.pairing.ready()]
    assert found == [(True, False)] * 3 + [(False, True)] * 9
    assert "going on with the stereo pair" in str(desk.health.problems["depth"])


def test_where_no_right_camera_is_asked_for_none_is_used() -> None:
    for source in ("filter", "sensor"):
        rig = Rig(depth__source=source)
        rig.right(0)
        rig.image(0)
        assert rig.eyes == [(0, None)]
