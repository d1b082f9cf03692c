import base64
import html.parser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from flowodom import drawing, plots
from flowodom.config import OdometryConfig, parameters
from flowodom.errors import FlowodomError
from flowodom.evaluation import FIGURES
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.odometry import Estimate, Status
from flowodom.page import RUN_FIGURES
from flowodom.report import ReportBuilder
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.objects import MovingObject
from flowodom.trajectory import Trajectory
from flowodom.unit import Scale

CAMERA = PinholeCamera(fx=60.0, fy=60.0, cx=31.5, cy=23.5, width=64, height=48)
DENSE = CAMERA.scaled(0.5)
START = 1_700_000_000_000_000_000
PERIOD = 33_333_333
NASTY = '<script>alert("x")</script>&'


def path(count: int) -> torch.Tensor:
    t = torch.linspace(0, 4, count, dtype=torch.float64)[:, None]
    return se3.exp(torch.cat((2 * torch.sin(t), 0.1 * t, t, 0 * t, 0.2 * t, 0 * t), dim=-1))


def properties() -> PropertySet:
    pixels = DENSE.pixels()
    depth = 2 + 0 * pixels[..., 0]
    depth[:4, :4] = float("nan")
    flow = torch.zeros_like(pixels)
    flow[..., 0] = 1.5
    points = DENSE.unproject(pixels, depth)
    now = DENSE.unproject(pixels + flow, depth)
    residual = torch.zeros_like(points)
    residual[10:14, 10:14, 0] = 0.2
    return PropertySet(
        camera=DENSE,
        points=points,
        scene_flow=now - points + residual,
        weight=torch.where(torch.isfinite(depth), 0.8, 0.0),
        confidence=torch.ones_like(depth),
        flow=flow,
        residual=residual,
    )


class Lifted:
    """Counts how often the property set is asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _stride: int) -> PropertySet:
        self.count += 1
        return properties()


def steps(
    count: int,
    *,
    lost: range = range(0),
    scale: Scale = Scale.SENSOR,
    lift: Any = lambda _: properties(),
    drift: float = 1.02,
) -> Iterator[tuple[Frame, Estimate]]:
    """Frames and what an odometry might have told of them; it sees nothing in the frames ``lost``."""
    rng = np.random.default_rng(4)
    poses = path(count)
    poses[:, :3, 3] *= drift
    for i in range(count):
        blind = i in lost
        stamp = START + i * PERIOD
        frame = Frame(stamp=stamp, image=rng.integers(0, 255, (48, 64), dtype=np.uint8), camera=CAMERA)
        yield (
            frame,
            Estimate(
                stamp=stamp,
                status=Status.LOST if blind else Status.TRACKING,
                segment=int(bool(lost) and i >= lost.stop),
                reason=NASTY if blind else "",
                pose=None if blind else poses[i],
                covariance=None if blind else torch.eye(6, dtype=torch.float64) * 1e-4 * i,
                keyframe=i % 5 == 0,
                scale=scale,
                matches=0 if blind else 300,
                inliers=0 if blind else 250,
                timing={"flow": 0.004, "pose": 0.002, **({"window": 0.01} if i % 5 == 0 else {})},
                lift=None if i == 0 or blind else lift,
            ),
        )


def built(count: int = 60, **options: Any) -> ReportBuilder:
    builder = ReportBuilder(snapshots=3)
    for frame, estimate in steps(count, **options):
        builder.add(frame, estimate, {"decode": 0.001})
    return builder


def truth(count: int = 60) -> Trajectory:
    return Trajectory(START + np.arange(count, dtype=np.int64) * PERIOD, path(count).numpy())


class Page(html.parser.HTMLParser):
    """What a browser would see: text, tags, ids, and everything that is loaded from elsewhere."""

    VOID = frozenset(("meta", "img", "br", "link", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.sources.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data


def written(builder: ReportBuilder, folder: Path, **options: Any) -> tuple[str, Page]:
    builder.write(folder / "report.html", **{"title": "room", **options})
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """A page with everything on it: a truth, a loss, a configuration, and text that must be escaped."""
    builder = built(lost=range(20, 25))
    configuration = OdometryConfig()
    return written(builder, tmp_path_factory.mktemp("full"), title=NASTY, truth=truth(), configuration=configuration)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """A page without truth and configuration."""
    return written(built(), tmp_path_factory.mktemp("bare"))


class TestPage:
    def test_is_one_file_that_needs_nothing(self, full: tuple[str, Page]) -> None:
        text, page = full
        assert all(source.startswith(("data:image/", "#")) for source in page.sources), page.sources
        assert "script" not in page.tags
        assert "link" not in page.tags
        assert not re.search(r"@import|url\((?!#)", text)
        assert "prefers-color-scheme: dark" in text
        assert "viewport" in text

    def test_pictures_can_be_read(self, full: tuple[str, Page]) -> None:
        pictures = [source for source in full[1].sources if source.startswith("data:image/jpeg;base64,")]
        assert len(pictures) == 6 * 3
        for source in pictures:
            data = np.frombuffer(base64.b64decode(source.partition(",")[2]), dtype=np.uint8)
            assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape == (48, 64, 3)

    def test_sections(self, full: tuple[str, Page]) -> None:
        _, page = full
        for title in ("Trajectory", "Error", "Published uncertainty", "Speed", "Tracking", "Pictures", "Figures"):
            assert title in page.words
        assert "Each segment by itself" in page.words
        assert page.tags.count("svg") == 7

    def test_every_figure_comes_with_its_definition(self, full: tuple[str, Page]) -> None:
        evaluation = built(lost=range(20, 25)).evaluate(truth())
        words = full[1].words.replace("\u00a0", " ")
        for name, figure in FIGURES.items():
            if getattr(evaluation, name) is not None:
                assert figure.definition in words, name
        for name, figure in RUN_FIGURES.items():
            assert figure.definition in words, name

    def test_every_parameter_is_listed(self, full: tuple[str, Page], tmp_path: Path) -> None:
        for parameter in parameters(OdometryConfig()):
            assert parameter.name in full[1].words
            assert parameter.description in full[1].words.replace("\u00a0", " ")
        _, page = written(built(2), tmp_path, configuration={"odd": NASTY})
        assert NASTY in page.words

    def test_text_is_escaped(self, full: tuple[str, Page]) -> None:
        text, page = full
        assert "<script" not in text
        assert page.words.count(NASTY) == 3  # in the title, the heading and the reason of the loss

    def test_ids_are_unique_between_plots(self, full: tuple[str, Page]) -> None:
        _, page = full
        assert len(set(page.ids)) == len(page.ids)
        for source in page.sources:
            if source.startswith("#"):
                assert source[1:] in page.ids

    def test_same_run_same_page(self, bare: tuple[str, Page], tmp_path: Path) -> None:
        assert written(built(), tmp_path)[0] == bare[0]

    def test_without_truth_says_so(self, bare: tuple[str, Page]) -> None:
        _, page = bare
        assert "There is no ground truth" in page.words
        assert "Over distance" not in page.words
        assert "ATE" not in page.words
        assert page.tags.count("svg") == 4

    @pytest.mark.parametrize("optical", [True, False])
    def test_which_way_is_up(self, tmp_path: Path, optical: bool) -> None:
        upright = se3.so3_exp(torch.tensor([-np.pi / 2, 0, 0], dtype=torch.float64)).numpy()  # R_ros_optical
        for turned in (False, True):
            poses = path(20).numpy()  # of a camera upright in a world whose y points down
            if turned:
                poses[:, :3] = upright @ poses[:, :3]
            if not optical:
                poses[:, :3, :3] = poses[:, :3, :3] @ upright.T
            builder = ReportBuilder(optical=optical)
            for i, pose in enumerate(poses):
                builder.record(START + i * PERIOD, pose)
            text, _ = written(builder, tmp_path)
            assert (">up [m]<" in text) == (not turned)

    def test_knows_every_colour(self, bare: tuple[str, Page]) -> None:
        light, dark = bare[0].split("prefers-color-scheme: dark")
        for role in plots.ROLES:
            assert f"--{role}:" in light
            assert f"--{role}:" in dark

    def test_truth_of_another_time_says_so(self, tmp_path: Path) -> None:
        other = Trajectory(truth().stamps + 10**15, truth().poses)
        _, page = written(built(), tmp_path, truth=other)
        assert "The truth could not be compared" in page.words
        assert "same clock" in page.words

    def test_unknown_scale(self, tmp_path: Path) -> None:
        builder = built(scale=Scale.FIRST_BASELINE, drift=0.5)
        assert not builder.metric
        evaluation = builder.evaluate(truth())
        assert evaluation.scale_corrected
        assert evaluation.scale == pytest.approx(2)
        assert evaluation.drift == pytest.approx(0, abs=1e-6)
        _, page = written(builder, tmp_path, truth=truth())
        assert "its scale is 2.000" in page.words
        assert "ATE Sim(3) rmse" in page.words
        text, page = written(builder, tmp_path)
        assert "scale not metric" in page.words
        assert ">x [m]<" not in text

    def test_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(FlowodomError, match="cannot write the report"):
            built(3).write(tmp_path / "none" / "report.html", title="room")


class TestShortRuns:
    @pytest.mark.parametrize(("count", "with_truth"), [(0, False), (0, True), (1, True), (2, False), (3, True)])
    def test_few_frames(self, tmp_path: Path, count: int, with_truth: bool) -> None:
        _, page = written(built(count), tmp_path, truth=truth() if with_truth else None)
        assert f"{count} frames" in page.words

    def test_nothing_tracked(self, tmp_path: Path) -> None:
        _, page = written(built(10, lost=range(10)), tmp_path, truth=truth())
        assert "No frame was given a pose" in page.words
        assert "The truth could not be compared" in page.words

    def test_standing_still(self, tmp_path: Path) -> None:
        builder = ReportBuilder(optical=False)
        for i in range(20):
            builder.record(START + i * PERIOD, np.eye(4), covariance=np.zeros((6, 6)))
        still = Trajectory(truth(20).stamps, np.tile(np.eye(4), (20, 1, 1)))
        _, page = written(builder, tmp_path, truth=still)
        assert "ATE SE(3) rmse" in page.words

    def test_messages_without_estimates(self, tmp_path: Path) -> None:
        builder = ReportBuilder(optical=False)
        for i, pose in enumerate(path(30).numpy()):
            builder.record(START + i * PERIOD, pose)
        assert len(builder) == 30
        _, page = written(builder, tmp_path, truth=truth(30))
        assert "Speed" not in page.words.split("Figures")[0]
        assert page.tags.count("svg") == 5


class TestCollecting:
    def test_trajectory(self) -> None:
        trajectory = built(30, lost=range(10, 15)).trajectory()
        assert len(trajectory) == 25
        assert trajectory.segments is not None
        np.testing.assert_array_equal(np.unique(trajectory.segments), [0, 1])
        assert trajectory.covariances is not None
        np.testing.assert_allclose(trajectory.covariances[3], 3e-4 * np.eye(6))

    def test_stamps_that_jump_back_are_left_out(self) -> None:
        builder = ReportBuilder()
        for stamp in (5, 6, 6, 3, 7):
            builder.record(stamp, np.eye(4))
        np.testing.assert_array_equal(builder.trajectory().stamps, [5, 6, 7])

    def test_share_of_frames_is_known(self) -> None:
        assert built(lost=range(20, 26)).evaluate(truth()).tracked == pytest.approx(90)

    @pytest.mark.parametrize("count", [2, 7, 13, 50, 200])
    def test_snapshots_are_few_and_even(self, count: int) -> None:
        lift = Lifted()
        builder = ReportBuilder(snapshots=4)
        for frame, estimate in steps(count, lift=lift):
            builder.add(frame, estimate)
        chosen = [shot.index for shot in builder._chosen()]
        assert min(4, count - 1) - 1 <= len(chosen) <= 6
        assert len(set(np.diff(chosen))) <= 1
        assert chosen[-1] >= count / 2
        assert lift.count <= 8 * (1 + np.log2(count))  # most frames never lift their fields

    def test_where_nothing_is_drawn_nothing_is_lifted(self) -> None:
        lift = Lifted()
        builder = ReportBuilder(snapshots=0)
        for frame, estimate in steps(8, lift=lift):
            builder.add(frame, estimate)
        assert lift.count == 0
        assert len(builder) == 8

    def test_snapshot_lies_on_the_frame_before(self) -> None:
        builder = ReportBuilder()
        images = []
        for frame, estimate in steps(6, lost=range(3, 4)):
            builder.add(frame, estimate)
            images.append(frame.image)
        shots = {shot.index: shot for shot in builder._chosen()}
        assert sorted(shots) == [1, 2, 4, 5]
        for index, before in ((1, 0), (2, 1), (4, 2), (5, 4)):
            np.testing.assert_array_equal(shots[index].grey, images[before])

    def test_snapshot_is_a_copy(self) -> None:
        builder = ReportBuilder()
        kept = []
        for frame, estimate in steps(3):
            builder.add(frame, estimate)
            kept.append(frame)
        before = builder._chosen()[0].grey.copy()
        for frame in kept:
            frame.image[:] = 0
        np.testing.assert_array_equal(builder._chosen()[0].grey, before)

    def test_fields_are_in_pixels_of_the_image(self) -> None:
        shot = built(3)._chosen()[0]
        np.testing.assert_allclose(shot.flow[..., 0], 3.0)
        inside = shot.residual[11:13, 11:13]
        np.testing.assert_allclose(inside[..., 0], 0.2 / 2 * CAMERA.fx, rtol=1e-4)
        np.testing.assert_allclose(inside[..., 1], 0, atol=1e-4)
        assert np.isnan(shot.residual[0, 0]).all()
        assert np.isnan(shot.depth[0, 0])


class TestDrawing:
    GREY = np.full((20, 30), 200, dtype=np.uint8)

    def test_flow(self) -> None:
        flow = np.zeros((10, 15, 2), dtype=np.float32)
        flow[:, 10:, 0] = 4
        flow[:, :3] = np.nan
        picture = drawing.flow_picture(self.GREY, flow, 4.0)
        assert picture.shape == (20, 30, 3)
        assert np.ptp(picture[:, :18].astype(int), axis=2).max() == 0  # still or unknown: the image
        red, green, blue = picture[10, 27].astype(int)
        assert red > 2 * max(green, blue)  # to the right

    def test_directions_differ(self) -> None:
        wheel, opacity = drawing.flow_wheel(64)
        assert opacity[0, 0] == 0
        assert opacity[32, 60] > 200
        colours = {tuple(int(v) // 64 for v in wheel[y, x]) for y, x in ((32, 60), (60, 32), (32, 4), (4, 32))}
        assert len(colours) == 4

    def test_depth(self) -> None:
        depth = np.full((20, 30), 4, dtype=np.float32)
        depth[:, :10] = 1
        depth[:, 20:25] = np.nan
        depth[:, 25:] = 0
        picture = drawing.inverse_depth_picture(self.GREY, depth, 1.0, 4.0).astype(int)
        assert picture[5, 5].sum() > 3 * picture[5, 15].sum()
        assert np.ptp(picture[:, 20:], axis=2).max() == 0

    def test_weight(self) -> None:
        weight = np.zeros((20, 30), dtype=np.float32)
        weight[:, 15:] = 1
        weight[:, :3] = np.nan
        picture = drawing.weight_picture(self.GREY, weight).astype(int)
        assert np.ptp(picture[:, :14], axis=2).max() == 0
        assert picture[5, 25, 1] > picture[5, 25, 0] + 50


def test_plots_take_their_colours_from_the_page() -> None:
    plot = plots.path_plot([np.random.default_rng(0).normal(size=(9, 2))], None, ("x", "y"), description="a < b")
    assert 'aria-label="a &lt; b"' in plot.svg
    assert "var(--estimate)" in plot.svg
    named = {f"--{role}" for role in plots.ROLES}
    assert set(re.findall(r"var\((--\w+)\)", plot.svg)) <= named
    assert set(re.findall(r"#[0-9a-f]{6}", plot.svg)) == set()


def test_forecasts_of_the_base_and_of_objects_are_judged(tmp_path: Path) -> None:
    builder, speed = ReportBuilder(snapshots=1), torch.tensor([0.4, 0, 0, 0, 0, 0], dtype=torch.float64)
    zero = torch.zeros(6, 6, dtype=torch.float64)
    box = torch.tensor([[-0.2, -0.2, -0.2], [0.2, 0.2, 0.2]], dtype=torch.float64)
    for k, (frame, estimate) in enumerate(steps(60)):
        pose = se3.exp(speed * k / 30)
        # Every third frame it is not seen: where it was expected then is no evidence.
        seen = estimate.stamp if k % 3 else estimate.stamp - 1
        known = MovingObject(4, pose, zero, speed, zero, box, 9, True, seen, estimate.stamp, pose[None, :3, 3], None)
        builder.add(frame, estimate, objects=[known])
    found = builder.forecasts()
    assert list(found) == ["base", "objects"]
    assert found["objects"].translation[1] < 1e-6
    assert found["objects"].resting[1] == pytest.approx(0.1, rel=0.2)
    assert 0 < found["objects"].count[1] <= 40
    kept = builder.drift(builder.evaluate(truth(60)))
    assert kept["forecast"]["objects"]["seconds"] == list(found["objects"].seconds)
    assert kept["poses"] > 0
    text, _ = written(builder, tmp_path, truth=truth(60))
    assert "Moving objects" in text
    assert "points on them" in text


def test_the_angle_over_time_is_since_the_first_pose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, draw = [], plots.error_plot

    def spy(progress: Any, translation: Any, rotation: Any, **options: Any) -> Any:
        drawn.append(rotation)
        return draw(progress, translation, rotation, **options)

    monkeypatch.setattr(plots, "error_plot", spy)
    # Of a body that is turned against the estimate's: an alignment by positions would leave 17 degrees.
    turn = se3.exp(torch.tensor([0, 0, 0, 0, 0, 0.3], dtype=torch.float64)).numpy()
    other = truth(60)
    written(built(60), tmp_path, truth=Trajectory(other.stamps, other.poses @ turn))
    over_time, over_distance = drawn
    assert over_time[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(over_time, over_distance)
