import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowodom.errors import TrajectoryError
from flowodom.evaluation import (
    FIGURES,
    Evaluation,
    align,
    compare,
    evaluate,
    number_text,
    pairs_apart,
    pose_errors,
    subsequences,
    umeyama,
)
from flowodom.geometry import se3
from flowodom.trajectory import Trajectory, write_kitti, write_tum

START = 1_700_000_000_000_000_000
Array = NDArray[np.float64]


def exp(xi: Any) -> Array:
    return np.asarray(se3.exp(torch.as_tensor(np.asarray(xi, dtype=np.float64))).numpy())


def make(poses: Array, *, rate: float = 20.0, **names: Any) -> Trajectory:
    stamps = START + np.round(np.arange(len(poses)) * 1e9 / rate).astype(np.int64)
    return Trajectory(stamps, poses, **names)


def walk(count: int = 400, *, step: float = 0.05, seed: int = 3) -> Trajectory:
    """A winding path of equal steps in all six degrees of freedom."""
    rng = np.random.default_rng(seed)
    angles = np.cumsum(rng.normal(0, 0.02, (count, 3)), axis=0)
    directions = np.stack((np.cos(angles[:, 0]), np.sin(angles[:, 0]), np.zeros(count)), axis=1)
    directions[:, 2] = 0.3 * np.sin(angles[:, 1])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    poses = exp(np.concatenate((np.zeros((count, 3)), angles), axis=1))
    poses[1:, :3, 3] = step * np.cumsum(directions[1:], axis=0)
    return make(poses)


def noisy(truth: Trajectory, *, scale: float = 1.0, seed: int = 5, sigma: float = 2e-3) -> Trajectory:
    """An estimate of ``truth`` that drifts, of another scale and in another world."""
    rng = np.random.default_rng(seed)
    steps = np.linalg.inv(truth.poses[:-1]) @ truth.poses[1:]
    steps = steps @ exp(sigma * rng.normal(size=(len(steps), 6)))
    steps[:, :3, 3] *= scale
    poses = [exp([5, -3, 1, 0.4, 0.2, 2.0])]
    for step in steps:
        poses.append(poses[-1] @ step)
    return Trajectory(truth.stamps, np.array(poses))


@pytest.fixture(scope="module", params=[1.0, 0.7])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two files, our evaluation of them, and evo's trajectories of them."""
    pytest.importorskip("evo")
    from evo.core import sync
    from evo.tools import file_interface

    folder = tmp_path_factory.mktemp("pair")
    truth = walk()
    write_tum(folder / "truth.tum", truth)
    write_tum(folder / "est.tum", noisy(truth, scale=request.param))
    theirs = [file_interface.read_tum_trajectory_file(folder / name) for name in ("truth.tum", "est.tum")]
    reference, estimate = sync.associate_trajectories(*theirs)
    ours = evaluate(folder / "est.tum", folder / "truth.tum")
    return SimpleNamespace(ours=ours, reference=reference, estimate=estimate, folder=folder)


class TestAgainstEvo:
    @pytest.mark.parametrize("kind", ["se3", "sim3"])
    def test_ate(self, pair: SimpleNamespace, kind: str) -> None:
        import copy

        from evo.core import metrics

        aligned = copy.deepcopy(pair.estimate)
        _, _, scale = aligned.align(pair.reference, correct_scale=kind == "sim3")
        ape = metrics.APE(metrics.PoseRelation.translation_part)
        ape.process_data((pair.reference, aligned))
        for statistic in ("rmse", "mean", "median", "max"):
            ours = getattr(pair.ours, f"ate_{kind}_{statistic}")
            assert ours == pytest.approx(ape.get_all_statistics()[statistic], rel=1e-9), statistic
        if kind == "sim3":
            assert pair.ours.scale == pytest.approx(scale, rel=1e-9)

    @pytest.mark.parametrize(
        ("name", "delta", "unit"), [("frame", 1, "frames"), ("second", 20, "frames"), ("metre", 1.0, "meters")]
    )
    def test_rpe(self, pair: SimpleNamespace, name: str, delta: float, unit: str) -> None:
        # Frames come at 20 Hz, and every step is 0.05 m long, so that pairs are a second or a metre apart exactly.
        from evo.core import metrics

        for kind, relation in (
            ("translation", metrics.PoseRelation.translation_part),
            ("rotation", metrics.PoseRelation.rotation_angle_deg),
        ):
            rpe = metrics.RPE(
                relation, delta, metrics.Unit[unit], rel_delta_tol=0.01, all_pairs=True, pairs_from_reference=True
            )
            rpe.process_data((pair.reference, pair.estimate))
            for statistic in ("rmse", "median"):
                ours = getattr(pair.ours, f"rpe_{name}_{kind}_{statistic}")
                assert ours == pytest.approx(rpe.get_all_statistics()[statistic], rel=1e-6), (kind, statistic)

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5])
    def test_pairs_of_subsequences(self, pair: SimpleNamespace, share: float) -> None:
        # The mean over one length of sub-sequences is an RPE too; KITTI's figures are means over several lengths.
        from evo.core import metrics

        truth = Trajectory(START + np.arange(400) * 50_000_000, np.array(pair.reference.poses_se3))
        first, second, lengths = subsequences(truth.distances)
        chosen = np.isclose(lengths, share * truth.distances[-1])
        count = int((second - first)[chosen].max())
        rpe = metrics.RPE(metrics.PoseRelation.translation_part, count, metrics.Unit.frames, all_pairs=True)
        rpe.process_data((pair.reference, pair.estimate))
        estimate = Trajectory(truth.stamps, np.array(pair.estimate.poses_se3))
        same = chosen & (second - first == count)
        ours = end_errors(estimate, truth, first[same], second[same])[0]
        np.testing.assert_allclose(ours, np.array(rpe.error)[first[same]], rtol=1e-6)

    def test_end(self, pair: SimpleNamespace) -> None:
        from evo.core import metrics

        for name, relation in (
            ("end_translation", metrics.PoseRelation.translation_part),
            ("end_rotation", metrics.PoseRelation.rotation_angle_deg),
        ):
            rpe = metrics.RPE(relation, 399, metrics.Unit.frames, all_pairs=True)
            rpe.process_data((pair.reference, pair.estimate))
            assert getattr(pair.ours, name) == pytest.approx(rpe.error[0], rel=1e-6)

    def test_path_and_drift(self, pair: SimpleNamespace) -> None:
        assert pair.ours.path_length == pytest.approx(pair.reference.path_length, rel=1e-9)
        assert pair.ours.drift == pytest.approx(100 * pair.ours.end_translation / pair.reference.path_length)

    def test_relative_errors_after_scaling(self, pair: SimpleNamespace) -> None:
        import copy

        from evo.core import metrics

        aligned = copy.deepcopy(pair.estimate)
        aligned.align(pair.reference, correct_only_scale=True)
        rpe = metrics.RPE(metrics.PoseRelation.translation_part, 20, metrics.Unit.frames, all_pairs=True)
        rpe.process_data((pair.reference, aligned))
        ours = evaluate(pair.folder / "est.tum", pair.folder / "truth.tum", correct_scale=True)
        assert ours.scale_corrected
        assert ours.rpe_second_translation_rmse == pytest.approx(rpe.get_all_statistics()["rmse"], rel=1e-6)
        assert ours.ate_se3_rmse == pair.ours.ate_se3_rmse


def end_errors(
    estimate: Trajectory, truth: Trajectory, first: NDArray[np.intp], second: NDArray[np.intp]
) -> tuple[Array, Array]:
    """Errors of motions between pairs, one at a time and by another route than the package's."""
    translations, rotations = [], []
    for i, j in zip(first, second, strict=True):
        error = np.linalg.inv(np.linalg.inv(truth.poses[i]) @ truth.poses[j]) @ (
            np.linalg.inv(estimate.poses[i]) @ estimate.poses[j]
        )
        translations.append(np.linalg.norm(error[:3, 3]))
        rotations.append(np.rad2deg(np.arccos(np.clip((np.trace(error[:3, :3]) - 1) / 2, -1, 1))))
    return np.array(translations), np.array(rotations)


class TestKitti:
    def test_long_path_as_the_benchmark_has_it(self) -> None:
        truth = walk(1200, step=0.5)
        estimate = noisy(truth)
        ours = compare(estimate, truth)
        # The benchmark's procedure, spelled out: https://www.cvlibs.net/datasets/kitti/eval_odometry.php
        translations, rotations = [], []
        distances = truth.distances.tolist()
        for start in range(0, len(truth), 10):
            for length in (100, 200, 300, 400, 500, 600, 700, 800):
                end = next((i for i in range(start, len(truth)) if distances[i] > distances[start] + length), None)
                if end is None:
                    continue
                (translation,), (rotation,) = end_errors(estimate, truth, np.array([start]), np.array([end]))
                translations.append(translation / length)
                rotations.append(rotation / length)
        assert len(translations) > 200
        assert ours.kitti_translation == pytest.approx(100 * np.mean(translations), rel=1e-9)
        assert ours.kitti_rotation == pytest.approx(100 * np.mean(rotations), rel=1e-6)

    def test_short_path_scales_the_lengths(self) -> None:
        distances = np.linspace(0, 20, 101)
        first, second, lengths = subsequences(distances)
        np.testing.assert_allclose(np.unique(lengths), [2, 4, 6, 8, 10])
        assert (first[lengths == lengths.max()] == np.arange((lengths == lengths.max()).sum())).all()
        assert (distances[second] > distances[first] + lengths).all()
        assert (distances[second - 1] <= distances[first] + lengths).all()

    def test_no_path_no_figure(self) -> None:
        assert len(subsequences(np.zeros(50))[0]) == 0
        assert len(subsequences(np.zeros(0))[0]) == 0


class TestExact:
    def test_perfect_estimate_has_no_error(self) -> None:
        truth = walk()
        world = exp([3, 2, 1, 0.1, 0.2, 0.3])
        result = compare(Trajectory(truth.stamps, world @ truth.poses), truth)
        for name, figure in FIGURES.items():
            if figure.group in ("Absolute error", "Relative error", "Drift") and name != "scale":
                assert getattr(result, name) == pytest.approx(0, abs=1e-6), name
        assert result.scale == pytest.approx(1)
        assert (result.poses, result.coverage, result.tracked) == (400, 100, None)

    def test_scale_is_recovered(self) -> None:
        truth = walk()
        poses = truth.poses.copy()
        poses[:, :3, 3] *= 0.8
        result = compare(Trajectory(truth.stamps, poses), truth)
        assert result.scale == pytest.approx(1.25)
        assert result.ate_sim3_max == pytest.approx(0, abs=1e-9)
        assert result.rpe_metre_translation_median is not None
        assert compare(Trajectory(truth.stamps, poses), truth, correct_scale=True).drift == pytest.approx(0, abs=1e-9)

    def test_known_drift(self) -> None:
        poses = np.tile(np.eye(4), (201, 1, 1))
        poses[:, 0, 3] = np.linspace(0, 20, 201)
        truth = make(poses)
        poses = poses.copy()
        poses[:, 0, 3] *= 1.02
        result = compare(make(poses), truth)
        assert result.path_length == pytest.approx(20)
        assert result.end_translation == pytest.approx(0.4)
        assert result.drift == pytest.approx(2)
        # A sub-sequence ends at the first pose beyond its length, so that it is up to a step longer than it is called.
        assert result.kitti_translation == pytest.approx(2, rel=0.06)
        assert result.rpe_metre_translation_rmse == pytest.approx(0.02)
        assert result.rpe_second_translation_rmse == pytest.approx(0.04)
        assert result.rpe_frame_translation_median == pytest.approx(0.002)
        assert result.end_rotation == pytest.approx(0, abs=1e-9)

    def test_known_turn(self) -> None:
        poses = np.tile(np.eye(4), (101, 1, 1))
        poses[:, 0, 3] = np.linspace(0, 10, 101)
        turned = exp(np.linspace(0, 1, 101)[:, None] * np.array([0, 0, 0, 0, 0, np.deg2rad(5)]))
        turned[:, :3, 3] = poses[:, :3, 3]
        result = compare(make(turned, rate=10), make(poses, rate=10))
        assert result.end_rotation == pytest.approx(5)
        assert result.rpe_second_rotation_rmse == pytest.approx(0.5)
        assert result.rpe_metre_rotation_median == pytest.approx(0.5)

    def test_fast_car_has_errors_per_metre(self) -> None:
        truth = walk(50, step=3.0)
        poses = truth.poses.copy()
        poses[:, :3, 3] *= 1.01
        result = compare(Trajectory(truth.stamps, poses), truth)
        assert result.rpe_metre_translation_rmse == pytest.approx(0.01)

    def test_truth_of_another_rate(self) -> None:
        truth = walk(2000, step=0.01)
        estimate = noisy(truth, sigma=1e-4)
        every = compare(estimate.select(slice(None, None, 4)), truth)
        thinned = compare(estimate.select(slice(None, None, 4)), truth.select(slice(None, None, 10)), tolerance=0.3)
        assert thinned.poses == every.poses - 2  # those after the last true pose
        assert thinned.ate_se3_rmse == pytest.approx(every.ate_se3_rmse, rel=0.1)


class TestUmeyama:
    def test_mirror_image_is_no_rotation(self) -> None:
        points = np.random.default_rng(0).normal(size=(30, 3))
        found = umeyama(points, points * np.array([1, 1, -1]))
        assert found is not None
        assert np.linalg.det(found.rotation) == pytest.approx(1)

    def test_points_on_a_line(self) -> None:
        line = np.outer(np.linspace(0, 5, 20), [1.0, 2.0, 2.0])
        turn = exp([0, 0, 0, 0.3, 0.5, -0.2])[:3, :3]
        found = umeyama(line, line @ turn.T + 1, with_scale=True)
        assert found is not None
        np.testing.assert_allclose(
            found.scale * line @ found.rotation.T + found.translation, line @ turn.T + 1, atol=1e-9
        )

    def test_needs_the_same_stamps(self) -> None:
        truth = walk(20)
        with pytest.raises(TrajectoryError, match="associate them first"):
            align(truth.select(slice(0, 10)), truth)


class TestDegenerate:
    def test_one_pose(self) -> None:
        result = compare(walk(1), walk(5))
        assert result.poses == 1
        assert [
            name for name in FIGURES if name.startswith(("ate", "rpe", "kitti", "end")) and getattr(result, name)
        ] == []
        assert "poses compared" in result.table()

    def test_two_poses(self) -> None:
        truth = walk(5)
        result = compare(noisy(truth).select(slice(0, 2)), truth)
        assert result.ate_se3_rmse is None
        assert result.rpe_frame_translation_rmse == result.end_translation
        assert result.rpe_second_translation_rmse is None

    def test_truth_that_stands_still(self) -> None:
        still = make(np.tile(exp([1, 2, 3, 0.1, 0, 0]), (60, 1, 1)))
        estimate = Trajectory(still.stamps, still.poses @ exp(1e-3 * np.random.default_rng(1).normal(size=(60, 6))))
        result = compare(estimate, still)
        assert result.ate_se3_rmse == pytest.approx(1e-3 * 3**0.5, rel=0.2)
        assert result.scale is None
        assert result.ate_sim3_rmse is None
        assert result.drift is None
        assert result.rpe_metre_translation_rmse is None
        assert result.kitti_translation is None
        assert result.rpe_second_translation_rmse is not None

    def test_estimate_that_stands_still(self) -> None:
        truth = walk(60)
        result = compare(Trajectory(truth.stamps, np.tile(np.eye(4), (60, 1, 1))), truth, correct_scale=True)
        assert result.scale is None
        assert result.drift is not None

    def test_empty_and_foreign(self) -> None:
        truth = walk(5)
        with pytest.raises(TrajectoryError, match="no poses"):
            compare(truth.select(slice(0, 0)), truth)
        with pytest.raises(TrajectoryError, match="same clock"):
            compare(Trajectory(truth.stamps - 10**15, truth.poses), truth)


class TestSegments:
    def restarted(self) -> tuple[Trajectory, Trajectory]:
        """An exact tracker, but for a loss in which a metre went by, and a second run of half the scale."""
        truth = walk(300)
        poses = truth.poses.copy()
        start = np.linalg.inv(poses[150]) @ poses[150:]
        start[:, :3, 3] *= 0.5
        poses[150:] = poses[129] @ start
        numbers = np.repeat([0, 1], 150)
        keep = np.ones(300, dtype=bool)
        keep[130:150] = False
        return Trajectory(truth.stamps, poses, numbers).select(keep), truth

    def test_each_and_the_whole(self) -> None:
        estimate, truth = self.restarted()
        result = compare(estimate, truth, frames=300)
        assert result.segment_count == 2
        assert [s.segment for s in result.segments] == [0, 1]
        assert [s.poses for s in result.segments] == [130, 150]
        assert result.segments[0].ate_se3_rmse == pytest.approx(0, abs=1e-9)
        assert result.segments[1].scale == pytest.approx(2)
        assert result.segments[1].ate_sim3_rmse == pytest.approx(0, abs=1e-9)
        assert result.ate_se3_rmse is not None
        assert result.ate_se3_rmse > 0.1
        assert result.tracked == pytest.approx(100 * 280 / 300)
        assert result.coverage == pytest.approx(100 * (129 + 149) / 299, rel=1e-6)
        assert re.search(r"segment +poses", result.table())

    def test_relative_errors_stay_inside(self) -> None:
        estimate, truth = self.restarted()
        result = compare(estimate, truth, correct_scale=True)
        for name in FIGURES:
            if name.startswith(("rpe", "kitti")):
                assert getattr(result, name) == pytest.approx(0, abs=1e-6), name
        assert result.end_translation is not None
        assert result.end_translation > 0.1


class TestUncertainty:
    @pytest.mark.parametrize(("factor", "share"), [(1.0, (97, 100)), (5.0, (100, 100)), (0.2, (0, 10))])
    def test_factor_is_recovered(self, factor: float, share: tuple[float, float]) -> None:
        truth = walk(3000)
        rng = np.random.default_rng(2)
        half = rng.normal(size=(6, 6)) * np.repeat([0.02, 0.002], 3)[:, None]
        covariance = half @ half.T
        errors = rng.multivariate_normal(np.zeros(6), covariance, len(truth))
        errors[0] = 0
        poses = truth.poses @ np.linalg.inv(exp(errors))
        estimate = Trajectory(truth.stamps, poses, covariances=np.tile(factor**2 * covariance, (len(truth), 1, 1)))
        np.testing.assert_allclose(pose_errors(estimate, truth), errors, atol=1e-9)
        result = compare(estimate, truth)
        assert result.sigma_width == pytest.approx(factor, rel=0.03)
        assert result.sigma_share is not None
        assert share[0] <= result.sigma_share <= share[1]

    def test_what_a_segment_began_with_is_left_out(self) -> None:
        truth, rng = walk(300), np.random.default_rng(3)
        half = rng.normal(size=(6, 6)) * np.repeat([0.02, 0.002], 3)[:, None]
        covariances = np.tile(half @ half.T, (300, 1, 1))
        covariances[0] = 0
        errors = rng.multivariate_normal(np.zeros(6), half @ half.T, 300)
        errors[0] = 0
        poses = truth.poses @ np.linalg.inv(exp(errors))
        carried = np.asarray(se3.adjoint(np.linalg.inv(np.linalg.inv(poses[:1]) @ poses)))
        unsure = covariances + carried @ np.diag([4.0, 4.0, 4.0, 0.1, 0.1, 0.1]) @ carried.swapaxes(-1, -2)
        known, begun = (compare(Trajectory(truth.stamps, poses, covariances=c), truth) for c in (covariances, unsure))
        assert begun.sigma_width == pytest.approx(known.sigma_width, rel=1e-3)
        assert begun.sigma_share == known.sigma_share

    def test_unusable_covariances_are_passed_over(self) -> None:
        truth = walk(10)
        covariances = np.tile(np.eye(6), (10, 1, 1))
        covariances[3, 0, 0] = np.nan
        covariances[4] = 0
        result = compare(Trajectory(truth.stamps, truth.poses, covariances=covariances), truth)
        assert result.sigma_share == 100
        nothing = Trajectory(truth.stamps, truth.poses, covariances=0 * np.nan_to_num(covariances))
        assert compare(nothing, truth).sigma_share is None


class TestPairsApart:
    def test_nearest(self) -> None:
        first, second = pairs_apart(np.array([0, 0.4, 0.95, 1.5, 1.8, 2.8]), 1.0)
        np.testing.assert_array_equal(first, [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(second, [2, 3, 4, 5, 5])

    def test_a_leap_is_taken_whole(self) -> None:
        first, second = pairs_apart(np.array([0, 0.1, 0.2, 3.0, 3.1]), 1.0)
        np.testing.assert_array_equal(first, [0, 1, 2])
        np.testing.assert_array_equal(second, [3, 3, 3])

    def test_too_short(self) -> None:
        assert len(pairs_apart(np.array([0.0, 0.5]), 1.0)[0]) == 0
        assert len(pairs_apart(np.zeros(0), 1.0)[0]) == 0
        assert len(pairs_apart(np.zeros(9), 1.0)[0]) == 0


class TestOutput:
    def test_table_says_what_everything_is(self) -> None:
        truth = walk()
        result = compare(noisy(truth), truth, frames=400)
        table = " ".join(result.table().split())
        for name, figure in FIGURES.items():
            known = getattr(result, name) is not None
            assert (figure.label in table) == known or not known
            assert (figure.definition in table) == known, name
        assert max(map(len, result.table(width=110).splitlines())) <= 110
        assert len(result.table(definitions=False)) < len(result.table()) / 2

    def test_dictionary_is_json(self) -> None:
        truth = walk()
        loaded = json.loads(json.dumps(compare(noisy(truth), truth).as_dict(), allow_nan=False))
        assert set(FIGURES) < set(loaded)
        assert loaded["definitions"]["drift"]["unit"] == "%"
        assert loaded["segments"][0]["poses"] == 400

    def test_every_figure_has_one_sentence(self) -> None:
        for name, figure in FIGURES.items():
            assert hasattr(Evaluation, name) or name in Evaluation.__dataclass_fields__
            assert re.fullmatch(r"[A-Z][^\n]+\.", figure.definition), name
        assert len({figure.label for figure in FIGURES.values()}) == len(FIGURES)

    def test_documentation_has_the_same(self) -> None:
        page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
        for name, figure in FIGURES.items():
            assert f"| `{name}` | {figure.unit} | {figure.definition} |" in page, name

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "-"), (0.0, "0"), (7, "7"), (12345.6, "12346"), (99.96, "100"), (0.99996, "1.00"), (1.234, "1.23"),
            (-0.05678, "-0.0568"), (0.00012345, "0.000123"), (1.5e-7, "1.5e-07"),
        ],
    )  # fmt: skip
    def test_number_text(self, value: float | None, text: str) -> None:
        assert number_text(value) == text


class TestFiles:
    def test_kitti_files_by_line(self, tmp_path: Path) -> None:
        truth = walk(60)
        write_kitti(tmp_path / "truth.txt", truth)
        write_kitti(tmp_path / "est.txt", noisy(truth))
        result = evaluate(tmp_path / "est.txt", tmp_path / "truth.txt")
        assert result.poses == 60
        assert result.ate_se3_rmse == pytest.approx(compare(noisy(truth), truth).ate_se3_rmse, rel=1e-6)

    def test_real_truth_against_itself(self, recordings: Path, tmp_path: Path) -> None:
        result = evaluate(recordings / "kitchen_rgbd", recordings / "kitchen_rgbd", truth_topic="/ground_truth/odom")
        assert result.poses == 240
        assert result.ate_se3_max == pytest.approx(0, abs=1e-9)
